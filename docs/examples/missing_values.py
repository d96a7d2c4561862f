"""Missing values of a table: standardized as if they were not there, instead of filled in before.

    python docs/examples/missing_values.py

Measurements of 569 breast tumours, which scikit-learn ships, of which 30 % are taken away: large ones more often, as
where an instrument has a limit. What standardizes them for a linear classifier is either told which are missing, or
sees zeros in their place. Needs scikit-learn (the extra `demo`).
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

import nbnorm

MISSING = 0.3


def with_gaps(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """x with NaN where a value has been lost."""
    rank = x.argsort(0).argsort(0) / len(x)  # 0 to 1 in each column
    return np.where(rng.random(x.shape) < 2 * MISSING * rank, np.nan, x)


def standardized(train: np.ndarray, *others: np.ndarray, nan: str) -> list[np.ndarray]:
    """By the mean and variance of train; what is missing becomes 0, the mean."""
    state = nbnorm.BatchNormState(train.shape[1], momentum=None, use_gamma=False, use_beta=False, eps=1e-12)
    state.update(nbnorm.batch_stats(train, nan=nan))
    return [np.nan_to_num(nbnorm.batch_norm_inference(x, state)) for x in (train, *others)]


def accuracy(x: np.ndarray, labels: np.ndarray, nan: str) -> float:
    """Of a linear classifier, in five folds."""
    right = 0
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(x, labels):
        fitted, unseen = standardized(x[train], x[test], nan=nan)
        right += (LogisticRegression(max_iter=1000).fit(fitted, labels[train]).predict(unseen) == labels[test]).sum()
    return right / len(labels)


def main() -> None:
    whole, labels = load_breast_cancer(return_X_y=True)
    gaps = with_gaps(whole, np.random.default_rng(0))
    found = {
        "every value": accuracy(whole, labels, "propagate"),
        'nan="omit"': accuracy(gaps, labels, "omit"),
        "zeros in the gaps": accuracy(np.nan_to_num(gaps), labels, "propagate"),
    }
    print(f"{np.isnan(gaps).mean():.0%} missing")
    for name, share in found.items():
        print(f"{name:20} {share:.1%} right")
    assert found['nan="omit"'] > found["zeros in the gaps"]


if __name__ == "__main__":
    main()
