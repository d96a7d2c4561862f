"""The kernel cache: whatever has become of it, results are right, nothing is raised, one warning says so, and what is
damaged is written anew.

Most cases are a process of their own, which folds the statistics of a batch into two states: that takes the two
kernels that compile fastest.
NBNORM_STRESS=1 runs the full numbers of processes.
"""

import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
import zipfile
from pathlib import Path

import numba
import numpy as np
import pytest
import reference
from sources import hash_of_sources

import nbnorm
from nbnorm._cpu import launch

PACKAGE = Path(nbnorm.__file__).parent
MEAN, M2 = np.array([0.5, 1, -2, 4]), np.array([5.0, 10, 20, 40])  # of 6 values: few bits, and none lost in M2 / 5
PROGRAM = """
import atexit, gc, json, sys, warnings
atexit.register(gc.freeze)  # Python would take a third of a second to free what Numba has made
sys.path.insert(0, sys.argv[1])
if len(sys.argv) > 2:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)  # what a full disk does, without filling one
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import numpy as np, nbnorm
    stats = nbnorm.BatchStats(np.array(6.0), np.array([0.5, 1, -2, 4]), np.array([5.0, 10, 20, 40]))
    states = [nbnorm.BatchNormState(4, momentum=momentum) for momentum in (0.5, None)]
    for state in states:
        state.update(stats)
from nbnorm._cpu.commits import commit_pooled, commit_running
hits = [sum(kernel.dispatcher.stats.cache_hits.values()) for kernel in (commit_pooled, commit_running)]
found = [[w.category.__name__, str(w.message)] for w in caught]
running = [[state.running_mean.tolist(), state.running_var.tolist()] for state in states]
print(json.dumps({"file": nbnorm.__file__, "running": running, "warnings": found, "hits": hits}))
"""


READ_ONLY = """
import os
def refuse(*args): raise PermissionError("read-only")
os.unlink = os.replace = refuse
"""


def start(cache, *limit, package=PACKAGE, before="", **environment):
    return subprocess.Popen(
        [sys.executable, "-c", before + PROGRAM, str(package.parent), *map(str, limit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment},
    )


def outcome(process):
    """What the process found; it has not failed, and its statistics are right."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found = json.loads(out)
    weighted = reference.moving_average(np.zeros(4), np.ones(4), MEAN, M2, 6, 0.5)
    np.testing.assert_array_equal(found["running"], np.array([weighted, (MEAN, M2 / 5)], np.float64))
    return found


def the_warning(found, text="NUMBA_CACHE_DIR"):
    ((category, message),) = found["warnings"]
    assert category == "RuntimeWarning"
    assert text in message
    return message


def contents(directory):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.rglob("*.nb?")}


def assert_whole(cache):
    """A process finds everything in it."""
    found = outcome(start(cache))
    assert (found["warnings"], found["hits"]) == ([], [1, 1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache that has the kernels."""
    directory = tmp_path_factory.mktemp("cache")
    found = outcome(start(directory))
    assert (found["warnings"], found["hits"]) == ([], [0, 0])
    return directory


@pytest.fixture
def own_cache(cache, tmp_path):
    return Path(shutil.copytree(cache, tmp_path / "cache"))


def test_a_cache_is_used_again(cache):
    assert_whole(cache)


DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "overwritten": lambda data: b"\xff" * len(data),
    "another pickle": lambda data: b"\x80\x04}.",
}
MORE = {"empty", "overwritten"}


every_damage = pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage, id=name, marks=pytest.mark.exhaustive("two of them") if name in MORE else ())
        for name, damage in DAMAGES.items()
    ],
)
every_suffix = pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
one_suffix = pytest.mark.parametrize(
    "suffix",
    [".nbi", pytest.param(".nbc", marks=pytest.mark.exhaustive("test_a_damaged_file_is_written_anew has both"))],
)


def damaged(cache, damage, suffix):
    """A file of the cache that is so now."""
    (file,) = cache.rglob("commits.commit_running-*" + suffix)
    file.write_bytes(damage(file.read_bytes()))
    return file


@pytest.mark.each_value
@every_suffix
@every_damage
def test_a_damaged_file_is_written_anew_with_one_warning(own_cache, damage, suffix):
    file = damaged(own_cache, damage, suffix)
    before = contents(own_cache)
    found = outcome(start(own_cache))
    assert found["hits"] == [1, 0], "the other kernel's cache is as good as it was"
    if (damage, suffix) == (DAMAGES["another pickle"], ".nbi"):  # the index of another Numba, which Numba writes anew
        assert found["warnings"] == []
    else:
        assert str(file) in the_warning(found, "written anew")
    assert_whole(own_cache)
    changed = {path for path, now in contents(own_cache).items() if before[path] != now}
    assert file in changed
    assert {path.name.split("-")[0] for path in changed} == {"commits.commit_running"}


@one_suffix
def test_a_damaged_file_that_may_not_be_removed_costs_every_process_a_warning(own_cache, suffix):
    damaged(own_cache, DAMAGES["truncated"], suffix)
    before = contents(own_cache)
    for _ in range(2):
        the_warning(outcome(start(own_cache, before=READ_ONLY)))
    assert contents(own_cache) == before


def test_damage_on_a_full_disk_costs_a_warning_of_each(own_cache):
    pytest.importorskip("resource", reason="NO FULL DISK TEST: this system has no limit on the size of files")
    damaged(own_cache, DAMAGES["empty"], ".nbc")
    of_damage, of_disk = outcome(start(own_cache, 4096))["warnings"]
    the_warning({"warnings": [of_damage]}, "written anew")
    the_warning({"warnings": [of_disk]}, "kernels are compiled anew in every process: OSError")
    assert outcome(start(own_cache))["warnings"] == []  # which has room
    assert_whole(own_cache)


def test_many_damaged_files_are_still_one_warning(own_cache):
    for file in own_cache.rglob("*.nbi"):
        file.write_bytes(b"")
    the_warning(outcome(start(own_cache)), "written anew")
    assert_whole(own_cache)


@pytest.fixture
def number(pytestconfig):
    """How many processes make a crowd; each imports Numba, a second of work."""
    return 20 if os.environ.get("NBNORM_STRESS") else 6 if pytestconfig.getoption("exhaustive") else 3


@pytest.mark.longer
@one_suffix
def test_processes_that_share_a_damaged_cache_agree(own_cache, suffix, number):
    damaged(own_cache, DAMAGES["truncated"], suffix)
    for process in [start(own_cache) for _ in range(number)]:
        assert len(outcome(process)["warnings"]) <= 1
    assert outcome(start(own_cache))["warnings"] == []  # this one may have found an index that one of them removed
    assert_whole(own_cache)


def test_a_disk_that_is_full_costs_a_warning(tmp_path):
    pytest.importorskip("resource", reason="NO FULL DISK TEST: this system has no limit on the size of files")
    assert "File too large" in the_warning(outcome(start(tmp_path, 4096)))


def test_an_install_and_a_home_that_cannot_be_written_cost_a_warning(tmp_path):
    """A zip file has no room for a cache beside the sources; the other places lie below a file."""
    archive, file = tmp_path / "site.zip", tmp_path / "file"
    file.touch()
    with zipfile.ZipFile(archive, "w") as site:
        for path in PACKAGE.rglob("*.py"):
            site.write(path, path.relative_to(PACKAGE.parent))
    nowhere = str(file / "home")
    found = outcome(start(nowhere, package=archive / "nbnorm", HOME=nowhere, XDG_CACHE_HOME=nowhere))
    assert found["file"].startswith(str(archive))
    the_warning(found)


def test_no_place_for_a_cache_costs_one_warning_at_import(monkeypatch):
    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda body: body

    monkeypatch.setattr(launch.numba, "njit", njit)
    monkeypatch.setattr(launch, "_said", set())
    ran = []
    with pytest.warns(RuntimeWarning, match=r"no locator available.*NUMBA_CACHE_DIR"):
        first = launch.Compiled(ran.append)
    launch.Compiled(ran.append)(1)  # no second warning, which would be an error here
    first(2)
    assert ran == [1, 2]


@pytest.mark.parametrize("error", [MemoryError, TimeoutError, KeyboardInterrupt])
def test_what_the_cache_has_not_raised_is_not_blamed_on_it(error, monkeypatch):
    """A signal handler of the user may raise anything, and that is delivered when a kernel returns."""
    tries = []

    def body():
        tries.append(1)
        raise error

    monkeypatch.setattr(launch.numba, "njit", lambda **options: lambda body: body)
    with pytest.raises(error):
        launch.Compiled(body)()
    assert len(tries) == 1


CACHING = {"__name__": "numba.core.caching"}  # a module that looks like the one that reads and writes the cache
exec("""
def touch(then):
    then()
class File:
    def _load_index(self):
        then()
""", CACHING)  # fmt: skip


@pytest.fixture
def damaged_again(tmp_path, monkeypatch):
    """A body whose file in the cache is damaged at every call, as on a broken disk; and whether each call had a cache,
    with its arguments."""
    calls, file = [], CACHING["File"]()
    file._index_path = str(tmp_path / "index")

    def damage():
        Path(file._index_path).touch()
        raise EOFError

    def njit(cache=False, **options):
        return lambda body: lambda *args: body(cache, *args)

    def body(cache, *args):
        calls.append((cache, *args))
        if cache:
            file._load_index()

    monkeypatch.setitem(CACHING, "then", damage)
    monkeypatch.setattr(launch.numba, "njit", njit)
    monkeypatch.setattr(launch, "_said", set())
    return body, calls


def test_a_file_that_is_damaged_again_and_again_is_left(damaged_again):
    body, calls = damaged_again
    with (
        pytest.warns(RuntimeWarning, match="kernels are compiled anew in every process: EOFError"),
        pytest.warns(RuntimeWarning, match="written anew"),
    ):
        launch.Compiled(body)()
    assert calls == [(True,), (True,), (False,)]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_called_again_has_the_same_arguments(workers, damaged_again, monkeypatch):
    body, calls = damaged_again
    monkeypatch.setattr(launch.guard, "any_thread_may_run", True)
    monkeypatch.setattr(launch, "numbas_own", lambda: 2)
    monkeypatch.setattr(launch, "sharing_out", lambda: 77)
    with (
        pytest.warns(RuntimeWarning, match="compiled anew in every process"),
        pytest.warns(RuntimeWarning, match="written anew"),
    ):
        launch.Kernel(body)("array", workers)
    args = "array", workers, launch.ALONE if workers == 1 else 77
    assert calls == [(True, *args), (True, *args), (False, *args)]


def test_a_handlers_error_inside_the_cache_is_passed_on_once_the_cache_has_been_left(monkeypatch):
    """A dispatcher without cache goes through that module too."""
    tries = []

    def raises():
        raise error

    def body():
        tries.append(1)
        CACHING["touch"](raises)

    error = OSError("the cache is damaged")
    monkeypatch.setattr(launch.numba, "njit", lambda **options: lambda body: body)
    kernel = launch.Compiled(body)
    kernel._with_cache = None
    with pytest.raises(OSError, match="damaged"):
        kernel()
    assert len(tries) == 1


@pytest.mark.parametrize("kind", [launch.Compiled, launch.Kernel])
def test_an_error_keeps_no_array_alive(kind, monkeypatch):
    """Otherwise the arrays of a call that was interrupted would stay until the garbage collector runs."""

    class Array(np.ndarray):
        pass

    def body(array, workers, threads=None):
        raise KeyError

    monkeypatch.setattr(launch.numba, "njit", lambda **options: lambda body: body)
    kernel, array = kind(body), np.zeros(3).view(Array)
    alive = weakref.ref(array)
    gc.disable()
    try:
        with contextlib.suppress(KeyError):
            kernel(array, 1)
        del array
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.longer
def test_processes_that_share_one_empty_cache_agree(tmp_path, number):
    for process in [start(tmp_path) for _ in range(number)]:
        assert outcome(process)["warnings"] == []
    assert_whole(tmp_path)


def half(values, workers):
    values[0] = values[0] // 2


def test_code_of_another_signature_is_not_run(tmp_path, monkeypatch):
    """What two processes leave that compile for float16 (uint16) and bfloat16 (int16) in the same moment."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    values = [np.array([40_000, 0], np.uint16), np.array([-3, 0], np.int16)]
    for array in values:
        launch.Compiled(half)(array, 1)
    (_, first), (_, second) = sorted((path.stat().st_mtime_ns, path) for path in tmp_path.rglob("*.nbc"))
    shutil.copy(first, second)
    array = np.array([-4, 0], np.int16)
    kernel = launch.Compiled(half)
    kernel(array, 1)
    assert array[0] == -2
    launch.Compiled(half)(array, 1)
    assert array[0] == -1
    assert first.read_bytes() != second.read_bytes()  # written anew


def test_an_edited_helper_is_seen_in_a_cache_of_its_own_and_in_no_other(tmp_path):
    """The reason for NUMBA_CACHE_DIR in conftest.py: Numba looks at the file of the kernel only."""
    package = Path(shutil.copytree(PACKAGE, tmp_path / "nbnorm", ignore=shutil.ignore_patterns("__pycache__")))
    formulas, names = package / "_formulas.py", [hash_of_sources(package)]

    def first_value(name):
        process = start(tmp_path / name, package=package)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return json.loads(out)["running"][0][0][0]

    assert first_value(names[0]) == 0.25
    text = formulas.read_text()
    edited = text.replace("running + momentum * (new - running)\n", "running + momentum * (new - running) + 1\n")
    assert edited != text
    formulas.write_text(edited)
    names.append(hash_of_sources(package))
    assert first_value(names[0]) == 0.25, "Numba has learned to look at helpers: conftest.py need not any more"
    assert first_value(names[1]) == 1.25
