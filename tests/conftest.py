"""How the suite runs (kernel cache, cores, selection, summary), and what a test gets for an argument called `dtype`,
`rng` or `given`.
"""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from pathlib import Path

import passed
import pytest
from selection import left_out
from sources import hash_of_sources

ROOT = Path(__file__).resolve().parent.parent


def _use_a_kernel_cache_of_these_sources():
    """Numba's cache overlooks an edited helper in another file; a directory per source hash does not."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    assert "numba" not in sys.modules, "numba has read its configuration already; start pytest another way"
    os.environ["NUMBA_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "kernels" / hash_of_sources(ROOT / "nbnorm"))


def _wait_without_spinning():
    """Several processes share the cores: an OpenMP thread that waits must leave its core to who has work.

    libgomp reads these once, when it is loaded; it spins for milliseconds after every parallel region otherwise.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


_use_a_kernel_cache_of_these_sources()
_wait_without_spinning()

pytest.register_assert_rewrite("common", "derivatives", "hostile", "launches", "tolerance")

import numpy as np  # noqa: E402
from common import arguments_that_fit  # noqa: E402
from launches import cupy, started  # noqa: E402, F401  fixtures
from tolerance import DTYPES, float32_by_default  # noqa: E402

# ---- how the suite runs

# Files that take long, in the order in which two workers begin with them. The first one compiles nearly all kernels; by
# the time when other files need them, they are in the cache.
FIRST = (
    *("test_training", "test_cuda_offline", "test_cuda_simulator", "test_cache", "test_fuzz", "test_vector"),
    *("test_gpu_benchmark", "test_processes"),
)

# Random calls, examples of Hypothesis, signals, steps of threads and forks; with --exhaustive as many as the tests say.
FEWER = {"NBNORM_CALLS": "5000", "NBNORM_EXAMPLES": "100", "NBNORM_SIGNALS": "5000", "NBNORM_STEPS": "25"}


def pytest_addoption(parser):
    parser.addoption("--exhaustive", action="store_true", help="what is left out otherwise: see tests/selection.py")
    parser.addoption("--without-passed", action="store_true", help="but for what has passed with these files already")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """The whole suite takes all cores, a file to a worker. A part that was named runs in this process. -n overrules."""
    if hasattr(config, "workerinput"):
        return  # a worker, which comes by here too and must not have workers of its own
    option = config.option
    is_part = config.args_source.name != "TESTPATHS" or option.keyword or option.markexpr
    if getattr(option, "numprocesses", 0) is None and not (is_part or option.usepdb):  # 0: without pytest-xdist
        option.numprocesses = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 8)
        option.dist, option.loadscopereorder = "loadfile", False


def pytest_configure(config):
    """Of what is drawn at random, fewer by default."""
    passed.begin(config, ROOT)
    if not config.getoption("exhaustive"):
        for name, number in FEWER.items():
            os.environ.setdefault(name, number)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    rank = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    if any("[" in arg for arg in config.args):  # a case that was named runs
        return
    out = left_out(items, config.getoption("exhaustive"))
    if config.getoption("without_passed"):
        before = config.stash[passed.BEFORE]
        out |= {item for item in items if item.nodeid in before and not item.get_closest_marker("longer")}
    if out:
        config.hook.pytest_deselected(items=[item for item in items if item in out])
        items[:] = [item for item in items if item not in out]


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure():
    """A compiler leaves two million objects: pytest and Python would look through them for ten seconds."""
    gc.collect()  # what is lost and says so when it goes, does it now
    gc.freeze()


def pytest_terminal_summary(terminalreporter, config):
    """A line for each reason to skip, however many places have it; and whether all has run. What has is remembered."""
    if config.getoption("without_passed"):
        number = len(config.stash[passed.BEFORE])
        terminalreporter.line(f"Without those of {number} tests that had passed which do no more with --exhaustive")
    passed.remember(config, terminalreporter.stats)
    reasons = Counter(str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", ()))
    if reasons:
        terminalreporter.section("skipped")
    for reason, number in sorted(reasons.items()):
        terminalreporter.line(f"{number:5} {reason.removeprefix('Skipped: ')}", yellow=True)
    if config.getoption("exhaustive"):
        terminalreporter.line("Of the largest cross products a covering part: values_ and pairs_at_most")
    else:
        terminalreporter.line("Of large cross products a covering part (tests/selection.py); more of it: --exhaustive")


# ---- what a test gets


def pytest_generate_tests(metafunc):
    """A test with an argument `dtype` runs for all four dtypes; tests/selection.py says when for one."""
    if "dtype" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("float32_by_default")
        metafunc.parametrize("dtype", DTYPES if marker is None else float32_by_default(*marker.args))


@pytest.fixture
def rng():
    return np.random.default_rng(20150211)


@pytest.fixture
def given(rng):
    """Arguments that fit; `memory` holds x and what lies around it."""
    return arguments_that_fit(rng, (8, 3, 6))
