"""What README, docs and messages tell people to install and to run: it must be this project, and it must work.

A package index has another project under the name `nbnorm`. Installing that succeeds, and then nothing works.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import fake_cupy
import numpy as np
import pytest

import nbnorm
from nbnorm import _device, info
from nbnorm.__main__ import VERBS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = sorted((ROOT / "nbnorm").rglob("*.py"))
PROGRAMS = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "asv_benchmarks").rglob("*.py")]
PROGRAMS = [path for path in PROGRAMS if ROOT / "asv_benchmarks" / "env" not in path.parents]  # clones that asv makes
PROGRAMS.remove(Path(__file__).resolve())
EXTRAS = PROJECT["optional-dependencies"]
PACKAGES = [re.split(r"[^\w-]", requirement)[0] for extra in EXTRAS.values() for requirement in extra]


def requirements(text):
    """What each `pip install` in a text would install, without options."""
    for command in re.findall(r"\bpip3? install ([^\n`&;|()#]*)", text.replace("\\\n", "")):
        words = (word.strip("\"'}],:") for word in command.split())
        yield from (word for word in words if word and not word.startswith("-"))


def is_the_other_project(requirement):
    return re.match(r"nbnorm($|[^\w./-])", requirement) is not None


@pytest.mark.parametrize(
    "command", ['pip install "nbnorm[cuda13]"', "`pip3 install -U nbnorm`", "pip install numpy \\\n    nbnorm==0.6"]
)
def test_a_command_that_installs_the_other_project_is_found(command):
    assert any(map(is_the_other_project, requirements(f"Try {command}\n\nand so on")))


@pytest.mark.parametrize(
    "command",
    ['pip install ".[cuda13]"', 'pip install -e ".[test]" && python -m nbnorm info', "`pip install x`, nbnorm"],
)
def test_a_command_that_does_not_is_left_in_peace(command):
    assert not any(map(is_the_other_project, requirements(command)))


def test_no_command_installs_the_other_project():
    found = [
        (path, requirement) for path in PAGES + SOURCES + PROGRAMS for requirement in requirements(path.read_text())
    ]
    assert [(path, requirement) for path, requirement in found if is_the_other_project(requirement)] == []
    extras = [match[1] for _, requirement in found if (match := re.fullmatch(r"\.\[([^]]*)", requirement))]
    assert {"demo", "test", "cuda13"} <= {name for names in extras for name in names.split(",")} <= set(EXTRAS)


def test_messages_name_the_packages_themselves():
    """Who reads one may have no clone to install an extra from."""
    found = [requirement for path in SOURCES for requirement in requirements(path.read_text())]
    assert {"cupy-cuda13x", "safetensors", "tqdm"} <= {re.split(r"[^\w-]", r)[0] for r in found} <= set(PACKAGES)


def test_the_name_to_install_is_the_same_everywhere():
    assert PROJECT["name"] == info.DISTRIBUTION
    assert f"`{info.DISTRIBUTION}`" in README.split("##")[0]
    assert "another project" in README.split("##")[0]


def test_the_description_on_a_package_index_needs_no_repository():
    """Pictures and links with relative paths lead nowhere there."""
    hook = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"][
        "fancy-pypi-readme"
    ]
    text = README
    for substitution in hook["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)
    assert "![" not in text
    assert "<!--" not in text
    assert all(link.startswith("https:") for link in re.findall(r"\]\(([^)]*)\)", text))
    assert "docs/parallel.md" in text


def test_the_citation_is_of_this_version():
    citation = (ROOT / "nbnorm" / "CITATION.cff").read_text()
    assert f"\nversion: {nbnorm.__version__}\n" in citation
    assert f"version = {{{nbnorm.__version__}}}" in (ROOT / "docs" / "cite.md").read_text()


def test_what_brings_numba_cuda_keeps_numpy_below_what_it_cannot_work_with():
    brings = {name for name, needed in EXTRAS.items() if any(r.startswith("numba-cuda") for r in needed)}
    assert brings == {"test", "cuda12", "cuda13"}
    assert all("numpy<2.5" in EXTRAS[name] for name in brings)
    assert not any("<" in requirement for requirement in PROJECT["dependencies"])


OF_NUMBA_CUDA = "ignore:The 'generic' unit:DeprecationWarning"  # its own, with NumPy 2.5, when it is imported
WITHOUT_ROW_STACK = """
import numpy as np
vars(np).pop("row_stack", None)  # as in NumPy 2.5
import fake_cupy
cupy = fake_cupy.install()
import nbnorm
from nbnorm import info
for attempt in range(2):
    try:
        nbnorm.batch_stats(cupy.ones((8, 3)))
    except ImportError as error:
        print(error)
print(dict(info.report())["CUDA"])
"""


def test_cuda_with_a_numpy_that_numba_cuda_cannot_work_with_is_an_import_error_with_a_way_out():
    pytest.importorskip("numba_cuda", reason="NO NUMBA-CUDA: the extra `test` brings it for Linux")
    path = os.pathsep.join([str(ROOT), str(Path(fake_cupy.__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-W", "error", "-W", OF_NUMBA_CUDA, "-c", WITHOUT_ROW_STACK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, again, reported = done.stdout.splitlines()
    assert first == again
    assert re.match(r"numba-cuda [\d.]+ does not work with NumPy [\d.]+ \(.*row_stack", first)
    assert first.endswith(': pip install "numpy<2.5"')
    assert len(first) < 200
    assert reported == f"NOT USABLE: {first}"


def test_only_a_numpy_without_row_stack_is_a_problem():
    """When this fails with NumPy 2.5 or newer, numba-cuda has learnt it, and the limits in pyproject.toml can go."""
    pytest.importorskip("numba_cuda", reason="NO NUMBA-CUDA: the extra `test` brings it for Linux")
    assert (_device.compiler_problem() is None) == hasattr(np, "row_stack")


SCRIPTS = sorted(set(re.findall(r"asv_benchmarks/([\w/]+\.py)", README)))
QUICK = {"peers/accuracy.py": [], "peers/peers.py": ["--quick", "--shapes", "tiny"]}
NOT_SET_UP = ("asv_runner", "asv", "torch", "jax", "cupy", "ml_dtypes", "safetensors", "matplotlib", "sklearn")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(one, marks=pytest.mark.exhaustive("accuracy.py; CI runs both")) if "peers.py" in one else one
        for one in SCRIPTS
    ],
)
def test_the_readmes_instruments_run_with_what_the_package_itself_needs(script, tmp_path):
    """Both of the README's set-ups bring that; whatever else is here must not be found."""
    for name in NOT_SET_UP:
        (tmp_path / f"{name}.py").write_text("raise ImportError('a package that was not set up')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, str(ROOT / "asv_benchmarks" / script), *QUICK[script]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n|") > 5
    assert "nbnorm" in done.stdout
    assert "PyTorch is left out" in done.stderr or "torch is not installed" in done.stderr


def test_the_readmes_verbs_are_verbs():
    found = re.findall(r"-m nbnorm (\w+)", "".join(page.read_text() for page in PAGES))
    assert {"demo", "info", "warmup"} <= set(found) <= set(VERBS)
