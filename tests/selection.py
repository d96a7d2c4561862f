"""Which tests `python -m pytest` runs, and which only `--exhaustive` adds. Markers on a test say so:

- `each_pair`: few of its cases, in which every two values of two parameters meet. For a product whose parameters do
  not act together: what three of them do at once, two of them do already.
- `each_value`: fewer, in which every value of every parameter occurs. For a path that other tests take in pairs.
- `values_at_most`, `pairs_at_most`: as `each_value` and `each_pair`, with `--exhaustive` too. For products of thousands
  of cases whose parameters other tests take in full, without what is new here; the marker's argument says where, or why
  the parameters do not act together.
- `exhaustive`: none; the marker's argument says what takes its place. Also of one case: `pytest.param(…, marks=…)`.
- `float32_by_default`: of the four dtypes float32 (conftest.py); the marker's argument says where the others are.
- `float32_in`: of the cases with one of these values, layouts or forms, those of float32; the last argument says what
  takes the place of the others.

`longer` leaves nothing out: it is on a test that does more with `--exhaustive` under the same name, which
`--without-passed` (passed.py) has to run again.

The choice by these markers is the same on every machine, for it looks at nothing but the cases and their order.
"""

from __future__ import annotations

import itertools

import numpy as np

OTHER_DTYPES = {"float16", "bfloat16", "float64"}
# Of the first two, every case runs with --exhaustive.
STRENGTHS = ("each_value", 1), ("each_pair", 2), ("values_at_most", 1), ("pairs_at_most", 2)


def covering(rows, strength):
    """Numbers of few rows that hold, for every `strength` columns, each combination of values that any row has there.

    Greedy: next is the row with most of what is missing; of several, the one whose combinations have been rarest.
    """
    held = []  # by combination: the rows that hold it
    for columns in itertools.combinations(np.transpose(rows), strength):
        found = list(zip(*columns, strict=True))
        held += [[one == combination for one in found] for combination in dict.fromkeys(found)]
    held, chosen = np.array(held), []
    times = np.zeros(len(held), int)
    while not times.all():
        row = np.lexsort((times @ held, -held[times == 0].sum(0)))[0]
        chosen.append(int(row))
        times += held[:, row]
    return sorted(chosen)


def is_of_another_dtype(item):
    """Where its marker wants float32."""
    if (marker := item.get_closest_marker("float32_in")) is None:
        return False
    names = {value for value in item.callspec.params.values() if isinstance(value, str)}
    return not names.isdisjoint(marker.args[:-1]) and not names.isdisjoint(OTHER_DTYPES)


def left_out(items, exhaustive):
    """The tests that are not run, with `--exhaustive` or without."""
    out = set()
    if not exhaustive:
        out = {item for item in items if item.get_closest_marker("exhaustive") or is_of_another_dtype(item)}
    for marker, strength in STRENGTHS[2 * exhaustive :]:
        marked = [item for item in items if item not in out and item.get_closest_marker(marker)]
        for _, cases in itertools.groupby(marked, key=lambda item: item.nodeid.partition("[")[0]):
            cases = list(cases)
            rows = [[id(value) for value in case.callspec.params.values()] for case in cases]
            chosen = {cases[number] for number in covering(rows, strength)}
            out.update(case for case in cases if case not in chosen)
    return out
