"""What the default suite leaves out: never a pair of values that occurs."""

import importlib
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from selection import covering, left_out
from tolerance import float32_by_default

HERE = Path(__file__).parent
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


def test_float32_runs_by_default_and_every_other_dtype_with_exhaustive():
    others = {
        param.values[0]: [mark.args for mark in param.marks if mark.name == "exhaustive"]
        for param in float32_by_default("elsewhere")
    }
    assert others == {"float32": []} | {name: [("elsewhere",)] for name in ("float16", "bfloat16", "float64")}


def test_what_float32_in_names_occurs():
    """A value that no case has would mark nothing."""
    marked = {}
    for path in HERE.glob("test_*.py"):
        if "mark." + "float32_in(" in path.read_text():
            of_module = vars(importlib.import_module(path.stem)).items()
            marked |= {name: one.pytestmark for name, one in of_module if name.startswith("test") and is_marked(one)}
    assert len(marked) >= 3
    for name, marks in marked.items():
        cases = [case for mark in marks if mark.name == "parametrize" for case in mark.args[1]]
        values = {value for case in cases for value in getattr(case, "values", [case]) if isinstance(value, str)}
        named = {value for mark in marks if mark.name == "float32_in" for value in mark.args[:-1]}
        assert named <= values, name


def is_marked(test):
    return any(mark.name == "float32_in" for mark in getattr(test, "pytestmark", ()))


class Case(SimpleNamespace):
    """An item of pytest, as far as the choice looks at it."""

    __hash__ = object.__hash__

    def get_closest_marker(self, name):
        return SimpleNamespace(args=self.markers[name]) if name in self.markers else None


def some_cases(markers, *values):
    return [
        Case(nodeid=f"test[{row}]", callspec=SimpleNamespace(params=dict(enumerate(row))), markers=markers)
        for row in itertools.product(*values)
    ]


@pytest.mark.parametrize(
    ("markers", "default", "exhaustive"),
    [
        ((), 12, 12),
        (("each_value",), 3, 12),
        (("each_pair",), 6, 12),
        (("pairs_at_most",), 6, 6),
        (("values_at_most",), 3, 3),
        (("each_value", "pairs_at_most"), 3, 6),
        (("exhaustive", "pairs_at_most"), 0, 6),
        (("exhaustive",), 0, 12),
    ],
    ids=str,
)
def test_how_many_of_3_times_2_times_2_cases_run(markers, default, exhaustive):
    cases = some_cases(dict.fromkeys(markers, ()), range(3), range(2), range(2))
    assert len(cases) - len(left_out(cases, exhaustive=False)) == default
    assert len(cases) - len(left_out(cases, exhaustive=True)) == exhaustive


def test_in_some_layouts_float32_alone_runs_by_default():
    cases = [
        case
        for markers in ({}, {"float32_in": ("rows", "last", "elsewhere")})
        for case in some_cases(markers, ("first", "rows", "last", "elsewhere"), ("float64", "float32"), (1.0,))
    ]
    out = left_out(cases, exhaustive=False)
    assert {(*case.markers, *case.callspec.params.values()) for case in out} == {
        ("float32_in", "rows", "float64", 1.0),
        ("float32_in", "last", "float64", 1.0),
    }
    assert not left_out(cases, exhaustive=True)


# ---- what has passed already

SUITE = """
import os, pytest
def test_one(): pass
@pytest.mark.longer
def test_two(): pass
@pytest.mark.parametrize("n", [pytest.param(1), pytest.param(2, marks=pytest.mark.exhaustive("1"))])
def test_three(n): pass
def test_four():
    if not os.environ.get("PACKAGE"):
        pytest.skip("no package")
"""


def test_what_has_passed_is_left_out_but_for_what_does_more(tmp_path):
    (tmp_path / "nbnorm").mkdir()
    tests = tmp_path / "tests"
    tests.mkdir()
    for path in HERE.glob("*.py"):
        if not path.name.startswith("test_"):
            shutil.copy(path, tests)
    shutil.copy(HERE.parent / "pyproject.toml", tmp_path)
    (tests / "test_suite.py").write_text(SUITE)

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE / "cuda")])}

    def names(*options, **more):
        command = [sys.executable, "-m", "pytest", "-v", "-n", "0", "--color=no", "tests/test_suite.py", *options]
        done = subprocess.run(command, cwd=tmp_path, env={**environment, **more}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"::(\S+) PASSED", done.stdout)

    refused = [sys.executable, "-m", "pytest", "-n", "0", "tests/test_suite.py", "--without-passed"]
    done = subprocess.run(refused, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "nothing has passed with these files" in done.stderr
    assert names() == ["test_one", "test_two", "test_three[1]"]
    assert names("--exhaustive", "--without-passed", PACKAGE="1") == ["test_two", "test_three[2]", "test_four"]
    assert names("--exhaustive", "--without-passed") == ["test_two"]  # test_four is no news any more
    with (tests / "test_suite.py").open("a") as file:
        file.write("\n# edited\n")
    done = subprocess.run(refused, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR


def test_what_does_more_with_exhaustive_is_marked():
    """Who asks for the option or has its numbers without the marker would be left out in favour of less."""
    asks = re.compile(r'getoption\("exhaustive"\)|environ.get\("NBNORM_(CALLS|EXAMPLES|SIGNALS|STEPS)"')
    tests = set(HERE.rglob("test_*.py")) - {Path(__file__)}  # and those of the simulator
    found = {path.stem for path in tests if asks.search(path.read_text())}
    marked = {path.stem for path in tests if "mark.longer" in path.read_text()}
    assert found == marked
