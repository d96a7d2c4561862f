"""What the default suite leaves out: never a pair of values that occurs."""

import itertools

import pytest
from selection import covering

PRODUCT = list(itertools.product(range(5), range(3), range(4), range(2)))
HOLES = [row for row in PRODUCT if row[0] != row[1] and row[2:] != (3, 0)]


@pytest.mark.parametrize(("strength", "most"), [(1, 5), (2, 20), (3, 60)])
@pytest.mark.parametrize("rows", [PRODUCT, HOLES], ids=["product", "holes"])
def test_a_covering_part_has_every_combination(rows, strength, most):
    """`most` is the product of the longest columns: fewer cannot do."""
    chosen = covering(rows, strength)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= most
    for columns in itertools.combinations(range(4), strength):
        assert {tuple(rows[i][c] for c in columns) for i in chosen} == {tuple(row[c] for c in columns) for row in rows}


def test_values_occur_equally_often():
    values = [PRODUCT[i][0] for i in covering(PRODUCT, 2)]
    assert max(map(values.count, range(5))) - min(map(values.count, range(5))) <= 1
