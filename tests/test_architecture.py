"""The shape of the library: imports point downward, and `import nbnorm` stays light."""

import ast
import importlib.util
import operator
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nbnorm

PACKAGE = Path(nbnorm.__file__).parent
REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"
DESIGN = Path(__file__).parents[1] / "docs" / "design.md"
FILES = {"nbnorm.files", "nbnorm._npz", "nbnorm._safetensors"}
PIECES_OF_STATE = {
    *("nbnorm._running", "nbnorm._attributes", "nbnorm._names", "nbnorm._foreign"),
    *("nbnorm._snapshot", "nbnorm._content", "nbnorm._state_dict"),
}
PARTS_OF_DASK = {"nbnorm.parallel._anew", "nbnorm.parallel._graph", "nbnorm.parallel._training"}
DASK = {"nbnorm.parallel.dask", *PARTS_OF_DASK}
SKLEARN = {"nbnorm.sklearn", "nbnorm._sklearn_arguments"}
XARRAY = {"nbnorm.xarray", "nbnorm._data_arrays"}
NEED_A_PACKAGE = {*DASK, *SKLEARN, *XARRAY}  # whatever imports them needs it too
LAYERS = [  # a module may import the layers before its own, and modules of its own layer
    {
        "nbnorm._formulas",
        "nbnorm._channel_rows",
        "nbnorm._needed",
        "nbnorm._single_map",
        "nbnorm._traced",
        "nbnorm._floats",
        "nbnorm._cpu.plan",
        "nbnorm._cuda.plan",
        "nbnorm.parallel",
        "nbnorm._conventions",
        "nbnorm._kernel_cache",
    },
    {
        "nbnorm._layout",
        "nbnorm._device",
        "nbnorm._arguments",
        "nbnorm._options",
        "nbnorm._enough",
        "nbnorm._outputs",
        "nbnorm._shards",
        "nbnorm._counted",
        "nbnorm._emitted",
        "nbnorm._emitted_python",
        "nbnorm._batch_stats",
        *FILES,
        *PIECES_OF_STATE,
    },
    {"nbnorm._cpu", "nbnorm._cuda"},
    {"nbnorm._dispatch"},
    {"nbnorm.state", "nbnorm._update", "nbnorm._which"},
    {
        "nbnorm.training",
        "nbnorm.inference",
        "nbnorm._inputs",
        "nbnorm._ghost",
        "nbnorm.gradients",
        "nbnorm.double_backward",
        "nbnorm.jvp",
        "nbnorm._directions",
        "nbnorm.folding",
        "nbnorm.exchange",
        "nbnorm.saved",
        "nbnorm.renorm",
        "nbnorm.stats",
        "nbnorm._moments",
        "nbnorm._standardize",
    },
    {"nbnorm.parallel.mpi", "nbnorm.parallel.nccl", "nbnorm.parallel._chunks", *NEED_A_PACKAGE},
    {"nbnorm.layer", "nbnorm._reuse", "nbnorm.demo", "nbnorm.info", "nbnorm.warmup", "nbnorm.__main__", "nbnorm"},
]


def layer_of(module):
    """That of the module, or of a package it is in; but `nbnorm` stands for itself only."""
    while True:
        for number, names in enumerate(LAYERS):
            if module in names:
                return number
        module = module.rpartition(".")[0]
        assert module not in ("", "nbnorm"), "a module outside every layer"


def module_name(path):
    parts = ("nbnorm", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name):
    place = PACKAGE.parent / name.replace(".", "/")
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [name for name in submodules if is_module(name)] or [node.module]


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_downward(path):
    own = layer_of(module_name(path))
    inside = [name for name in imports(path) if name.split(".")[0] == "nbnorm"]
    upward = [name for name in inside if name != "nbnorm" and layer_of(name) > own]
    assert upward == []


def test_a_module_outside_every_layer_is_noticed():
    with pytest.raises(AssertionError, match="outside every layer"):
        layer_of("nbnorm._new")


def test_the_page_on_the_design_has_the_same_layers():
    written, number = [set() for _ in LAYERS], None
    for line in DESIGN.read_text().partition("## Layers")[2].partition("Imports point")[0].splitlines():
        for word in line.split():
            if word.isdigit():
                number = int(word)
            else:
                written[number].add("nbnorm." + word.replace("/", "."))
    assert written == [names - {"nbnorm"} for names in LAYERS]


def test_nothing_imports_what_needs_a_package():
    importing = {module_name(path) for path in SOURCES if NEED_A_PACKAGE & set(imports(path))}
    assert importing <= {"nbnorm.sklearn", *XARRAY, *DASK}  # themselves among them; xarray for Dask's arrays
    inside = [n for p in SOURCES if module_name(p) in XARRAY for n in ast.parse(p.read_text()).body]
    assert not any("nbnorm.parallel" in ast.unparse(n) for n in inside if isinstance(n, ast.Import | ast.ImportFrom))


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.parent.name in ("_cpu", "_cuda") and p.stem != "memory"], ids=module_name
)
def test_kernels_know_nothing_of_the_state(path):
    assert not {"nbnorm.state", "nbnorm.training", "nbnorm.inference", "nbnorm._layout"} & set(imports(path))


def test_no_lock_is_taken_by_with():
    """A signal between its lock and its block would leave it taken (Python 3.14); `_running.undisturbed` does not."""

    def taken(source):
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.With)]
        items = [ast.unparse(item) for node in nodes for item in node.items]
        return [item for item in items if re.search(r"(?<![a-z])lock\b|R?Lock\(|enter_context", item)]

    assert len(taken("with a.lock, b:\n with block, threading.Lock() as c: pass")) == 2
    assert [item for path in SOURCES for item in taken(path.read_text())] == []


@pytest.mark.parametrize("backend", ["_cpu", "_cuda"])
def test_no_module_of_a_backend_takes_the_place_of_a_stage(backend):
    """`nbnorm._cpu.commit` is the stage only if no module has that name: importing one would set the attribute."""
    tree = ast.parse((PACKAGE / backend / "__init__.py").read_text())
    stages = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert "commit" in stages
    assert stages.isdisjoint(path.stem for path in (PACKAGE / backend).glob("*.py"))


def test_every_public_name_can_be_reached_and_is_listed():
    assert sorted(nbnorm.__all__) == dir(nbnorm)
    assert [name for name in nbnorm.__all__ if getattr(nbnorm, name) is None] == []
    with pytest.raises(AttributeError, match="no attribute 'batch_norm'"):
        nbnorm.batch_norm  # noqa: B018


WITH_A_PACKAGE = {
    "sklearn": ("sklearn.StandardScaler", "scikit-learn"),
    "xarray": ("xarray.standardize", "xarray"),
    "dask": ("parallel.dask.batch_stats", "dask"),
    "distributed": ("parallel.dask.batch_stats", "distributed"),
    "cupy": ("parallel.nccl.sync", "cupy"),
}


@pytest.mark.parametrize("name", ["exchange.to_keras", "parallel.Sync", "parallel.mpi.sync"])
def test_modules_need_no_import_of_their_own(name):
    code = f"import sys, nbnorm; print('nbnorm.exchange' in sys.modules, nbnorm.{name}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"False {name.rpartition('.')[2]}\n"


@pytest.mark.parametrize("package", WITH_A_PACKAGE)
def test_what_needs_a_package_needs_no_import_of_its_own_and_says_what_to_install(package):
    name, distribution = WITH_A_PACKAGE[package]
    code = f"import sys, nbnorm; sys.modules.update(ABSENT); print(nbnorm.{name}.__name__)"
    absent = subprocess.run(
        [sys.executable, "-c", code.replace("ABSENT", f"{{{package!r}: None}}")], capture_output=True, text=True
    )
    *_, error, advice = absent.stderr.splitlines()
    assert "ModuleNotFoundError" in error
    assert "pip install" in advice
    assert distribution in advice
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    there = subprocess.run([sys.executable, "-c", code.replace("ABSENT", "{}")], capture_output=True, text=True)
    assert there.stdout == name.rpartition(".")[2] + "\n", there.stderr


def test_the_reference_has_every_public_name_and_import_nbnorm_has_all_of_them():
    names = re.findall(r"^   ([\w.]+)$", REFERENCE.read_text(), re.MULTILINE)
    assert set(nbnorm.__all__) - set(names) == {"__version__", "exchange", "parallel"}
    for name in names:
        if not name.startswith(tuple(where.rpartition(".")[0] for where, _ in WITH_A_PACKAGE.values())):
            assert operator.attrgetter(name)(nbnorm).__doc__, name


def test_import_and_state_load_neither_numba_nor_a_framework():
    code = "import sys, nbnorm; nbnorm.BatchNormState(3); print(sorted({'numba', 'cupy', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_tests_oracle_imports_nothing_of_ours():
    assert set(imports(Path(__file__).parent / "reference.py")) <= {"numpy", "__future__", "typing"}
