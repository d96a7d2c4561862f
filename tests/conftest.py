"""The kernel cache, and what a test gets for an argument called `dtype`, `rng` or `given`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sources import hash_of_sources

ROOT = Path(__file__).resolve().parent.parent


def _use_a_kernel_cache_of_these_sources():
    """Numba's cache overlooks an edited helper in another file; a directory per source hash does not."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    assert "numba" not in sys.modules, "numba has read its configuration already; start pytest another way"
    os.environ["NUMBA_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "kernels" / hash_of_sources(ROOT / "nbnorm"))


_use_a_kernel_cache_of_these_sources()

pytest.register_assert_rewrite("common", "hostile", "launches", "tolerance")

import numpy as np  # noqa: E402
from common import random_state, sample  # noqa: E402
from launches import cupy, started  # noqa: E402, F401  fixtures
from tolerance import DTYPES  # noqa: E402

import nbnorm  # noqa: E402


def pytest_generate_tests(metafunc):
    """A test with an argument `dtype` runs for all four dtypes."""
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES)


@pytest.fixture
def rng():
    return np.random.default_rng(20150211)


@pytest.fixture
def given(rng):
    """Arguments that fit; `memory` holds x and what lies around it."""
    memory = sample(rng, (10, 3, 6))
    x, state = memory[:8], random_state(rng, 3)
    _, saved = nbnorm.batch_norm_training(x, state)
    return SimpleNamespace(
        x=x,
        memory=memory,
        state=state,
        saved=saved,
        dy=sample(rng, x.shape),
        out=np.full(x.shape, 7, np.float32),
    )
