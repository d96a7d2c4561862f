"""Which tests `python -m pytest` runs, and which only `--exhaustive` adds. Markers on a test say so:

- `each_pair`: few of its cases, in which every two values of two parameters meet. For a product whose parameters do
  not act together: what three of them do at once, two of them do already.
- `each_value`: fewer, in which every value of every parameter occurs. For a path that other tests take in pairs.
- `exhaustive`: none; the marker's argument says what takes its place. Also for single cases: `pytest.param(…, marks=…)`.

The choice is the same on every machine, for it looks at nothing but the cases and their order.
"""

from __future__ import annotations

import itertools

import numpy as np


def covering(rows, strength):
    """Numbers of few rows that hold, for every `strength` columns, each combination of values that any row has there.

    Greedy: the row with most of what is missing, the first of several.
    """
    held_by = []
    for columns in itertools.combinations(np.transpose(rows), strength):
        kinds = list(zip(*columns, strict=True))
        held_by += [[kind == one for kind in kinds] for one in dict.fromkeys(kinds)]
    missing, chosen = np.array(held_by), []
    while len(missing):
        chosen.append(int(missing.sum(0).argmax()))
        missing = missing[~missing[:, chosen[-1]]]
    return sorted(chosen)


def left_out(items):
    """The tests that only `--exhaustive` runs."""
    out = {item for item in items if item.get_closest_marker("exhaustive")}
    for marker, strength in (("each_value", 1), ("each_pair", 2)):
        marked = [item for item in items if item not in out and item.get_closest_marker(marker)]
        for _, cases in itertools.groupby(marked, key=lambda item: item.nodeid.partition("[")[0]):
            cases = list(cases)
            rows = [[id(value) for value in case.callspec.params.values()] for case in cases]
            chosen = {cases[number] for number in covering(rows, strength)}
            out.update(case for case in cases if case not in chosen)
    return out
