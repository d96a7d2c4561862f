"""What has passed already, for `--without-passed`: pytest's cache has the names, and what the files were then."""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

READ = ("nbnorm", "tests", "asv_benchmarks", "docs", "README.md", "pyproject.toml")  # by the tests
KEY = "nbnorm/passed"
FILES, BEFORE = pytest.StashKey[str](), pytest.StashKey[set]()


def files_of(root: Path) -> str:
    """A name for them as they are, and for what runs them."""
    digest = hashlib.sha256(f"{sys.version} {version('numpy')} {version('numba')}".encode())
    for name in READ:
        there = root / name
        for path in sorted(there.rglob("*")) if there.is_dir() else [there]:
            if path.suffix in (".py", ".md", ".toml") and path.is_file():
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def begin(config, root):
    """Files that change during a run are those of its beginning."""
    config.stash[FILES] = files_of(root)
    found = config.cache.get(KEY, {}) if hasattr(config, "cache") else {}  # not with -p no:cacheprovider
    config.stash[BEFORE] = set(found["names"]) if found.get("files") == config.stash[FILES] else set()
    if config.getoption("without_passed") and not config.stash[BEFORE]:
        raise pytest.UsageError("--without-passed: nothing has passed with these files; run without it first")


def remember(config, stats):
    """Beside those of the runs before. An error may be that of tearing down what a test that passed was given."""
    passed, wrong = (
        {report.nodeid for kind in kinds for report in stats.get(kind, ())}
        for kinds in (["passed"], ["error", "failed"])
    )
    if hasattr(config, "cache") and not hasattr(config, "workerinput"):  # who starts the workers hears of all
        names = sorted((config.stash[BEFORE] | passed) - wrong)
        config.cache.set(KEY, {"files": config.stash[FILES], "names": names})
