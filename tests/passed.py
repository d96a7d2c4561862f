"""What has passed already, for `--without-passed`: pytest's cache has the names, and what the files were then."""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

READ = ("nbnorm", "tests", "asv_benchmarks", "docs", "README.md", "pyproject.toml")  # by the tests
KEY, FILES = "nbnorm/passed", pytest.StashKey[str]()


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
    if config.getoption("without_passed") and not names(config):
        raise pytest.UsageError("--without-passed: nothing has passed with these files; run without it first")


def names(config):
    found = config.cache.get(KEY, {}) if hasattr(config, "cache") else {}  # not with -p no:cacheprovider
    return set(found["names"]) if found.get("files") == config.stash[FILES] else set()


def remember(config, stats):
    """Beside those of the runs before. An error may be that of tearing down what a test that passed was given."""
    passed, wrong = (
        {report.nodeid for kind in kinds for report in stats.get(kind, ())}
        for kinds in (["passed"], ["error", "failed"])
    )
    if hasattr(config, "cache"):
        config.cache.set(KEY, {"files": config.stash[FILES], "names": sorted((names(config) | passed) - wrong)})
