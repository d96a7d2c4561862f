"""python -m nbnorm: what each verb prints and returns."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import nbnorm
from nbnorm import info
from nbnorm.__main__ import VERBS, main


def test_info_reports_the_installation_and_passes_its_self_test(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out.splitlines()
    lines = {line[:16].rstrip(): line[16:] for line in out}
    assert lines["nbnorm"].split(" in ") == [nbnorm.__version__, str(Path(nbnorm.__file__).parent)]
    assert lines["numpy"] == np.__version__
    assert [line[:16].rstrip() for line in out[-2:]] == ["self-test"] * 2
    assert "float32 (16, 3, 8, 9)" in out[-2]  # said before it begins
    assert lines["self-test"].startswith("PASS")


def test_info_says_that_another_project_of_the_same_name_is_installed(monkeypatch):
    monkeypatch.setattr(info, "_version", {"nbnorm": "0.6.2"}.get)
    assert "nbnorm 0.6.2 is installed too, another project" in dict(info.report())["CONFUSION"]


def test_info_names_the_packages_that_parts_of_nbnorm_need(monkeypatch):
    monkeypatch.setattr(info, "_version", {"onnx": "1.20", "xarray": "2025.1", "cupy": "14.0"}.get)
    lines = dict(info.report())
    assert (lines["integrations"], lines["GPU packages"]) == ("xarray 2025.1, onnx 1.20", "cupy 14.0")
    monkeypatch.setattr(info, "_version", {}.get)
    lines = dict(info.report())
    assert (lines["integrations"], lines["GPU packages"]) == ("none", "none")


@pytest.mark.parametrize("editable", [True, False])
def test_info_says_that_it_is_not_the_installed_one_that_runs(monkeypatch, tmp_path, editable):
    """Where a clone is first on sys.path, it has a version and a kernel cache of its own."""
    here = Path(nbnorm.__file__).parents[1]
    for place in (tmp_path / "a b", here):
        about = json.dumps({"dir_info": {"editable": True}, "url": place.as_uri()}) if editable else None
        installed = SimpleNamespace(read_text={"direct_url.json": about}.get, locate_file=place.joinpath)
        monkeypatch.setattr(info, "metadata", SimpleNamespace(distribution=lambda name, found=installed: found))
        monkeypatch.setattr(info, "_version", {}.get)
        note = dict(info.report())["installed as"]
        assert (f" in {place / 'nbnorm'}: NOT THIS ONE" in note, "NOT" in note) == (place != here, place != here)


def test_info_of_a_folder_that_is_not_installed(monkeypatch):
    def missing(name, error=info.metadata.PackageNotFoundError):
        raise error(name)

    without = SimpleNamespace(distribution=missing, PackageNotFoundError=info.metadata.PackageNotFoundError)
    monkeypatch.setattr(info, "metadata", without)
    monkeypatch.setattr(info, "_version", {}.get)
    assert dict(info.report())["installed as"] == "numba-batchnorm (not installed: runs from its folder)"


def test_info_loads_the_threading_layers_before_it_calls_them_ready(monkeypatch):
    """A slim container has no OpenMP library, and a Numba that was built with it."""
    load = importlib.import_module

    def without_openmp(name):
        if name == "numba.np.ufunc.omppool":
            raise ImportError("libgomp.so.1: cannot open shared object file")
        return load(name)

    monkeypatch.setattr(info.importlib, "import_module", without_openmp)
    monkeypatch.setattr(info, "find_spec", lambda name: None if name.endswith("tbbpool") else object())
    layers = dict(info.report())["threading layer"].split("; ")
    assert layers[1:] == ["tbb: not built", "omp: built, cannot be loaded", "workqueue: ready"]


def test_info_fails_when_the_kernels_are_wrong(capsys, monkeypatch):
    right = nbnorm.batch_norm_training

    def wrong(x, state):
        y, saved = right(x, state)
        return y * 1.001, saved

    monkeypatch.setattr(nbnorm, "batch_norm_training", wrong)
    assert main(["info"]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_the_self_tests_formula_is_the_definition():
    x, dy = np.array([[1.0, 7.0], [3.0, 7.0]]), np.array([[1.0, 0.0], [0.0, 0.0]])
    y, dx = info._formula(x, dy, 1e-30)
    np.testing.assert_allclose(y, [[-1, 0], [1, 0]], atol=1e-15)
    np.testing.assert_allclose(dx, [[0, 0], [0, 0]], atol=1e-15)


def test_warmup_names_an_unknown_dtype(capsys):
    assert main(["warmup", "float8"]) == 2
    said = capsys.readouterr()
    assert (said.out, "unknown dtype float8" in said.err) == ("", True)


def test_warmup_compiles_and_says_what_each_kernel_took(capsys):
    assert main(["warmup", "float32"]) == 0
    out = capsys.readouterr().out
    assert out.count("float32") == 4
    assert out.count("training") == 4


def test_warmup_knows_bfloat16_or_what_it_needs(capsys, monkeypatch):
    monkeypatch.setattr("nbnorm.warmup.SHAPES", {"tables": (64, 32)})
    assert main(["warmup", "bfloat16"]) == 0
    assert "bfloat16 tables" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert main(["warmup", "bfloat16"]) == 2
    said = capsys.readouterr()
    assert (said.out, "pip install ml_dtypes" in said.err) == ("", True)


def test_without_a_verb_there_is_help(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m nbnorm")
    assert all(verb in out for verb in VERBS)


def test_an_unknown_verb_is_an_error_of_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["dance"])
    assert "invalid choice: 'dance'" in capsys.readouterr().err


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "nbnorm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"nbnorm {nbnorm.__version__}\n"


def test_the_demo_says_which_extra_it_needs(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["demo", "--quick"]) == 2
    assert "pip install scikit-learn matplotlib tqdm" in capsys.readouterr().err


@pytest.mark.parametrize(("out", "reason"), [("no/such/folder/f.png", "No such file"), ("f.docx", "expected one of")])
def test_the_demo_checks_where_the_figure_goes_before_it_trains(out, reason, capsys, tmp_path):
    for package in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(package, reason='NO DEMO TESTS: pip install -e ".[demo]"')
    assert main(["demo", "--out", str(tmp_path / out)]) == 2
    assert reason in capsys.readouterr().err


def test_info_says_where_there_is_no_cache(monkeypatch):
    from nbnorm._cpu.reduce import reduce_segments

    monkeypatch.setattr(type(reduce_segments.compiled), "cache_path", None)
    assert dict(info.report())["kernel cache"].startswith("NONE: ")
