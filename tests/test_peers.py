"""asv_benchmarks/peers/peers.py: what it times is batch normalization, and its table is arithmetic on what it
measured.
"""

import json
import math
import re
import subprocess
import sys
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import peers
import peers_report
import peers_worker
import pytest
import reference
from peers_process import Process
from peers_rows import DTYPES, GROUPS, data, row
from peers_systems import EPS, MOMENTUM, SYSTEMS, WrongResult, make, numpy_dtype

SCRIPT = Path(__file__).resolve().parent.parent / "asv_benchmarks" / "peers" / "peers.py"
NEEDS = {"PyTorch": "torch", "torch.compile": "torch", "oneDNN": "torch", "JAX": "jax"}
ROWS = [*GROUPS["tiny"], "4x3x5x6:sliced", "4x3x5x2:transposed"]


def system_of(name, text, dtype="float32"):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{name} is not installed")
    given = data(row(text))
    try:
        return make(name)(given, dtype), given
    except NotImplementedError as reason:  # a peer may lack a layout; nbnorm and NumPy have them all
        if name not in NEEDS:
            raise
        pytest.skip(str(reason))


@pytest.mark.parametrize("text", ROWS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_computes_what_the_oracle_does(name, text, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    system, given = system_of(name, text)
    x, dy = given.row.view(given.x), given.row.view(given.dy)
    exact = reference.training(x, given.gamma, given.beta, EPS)
    gradients = reference.backward(dy, x, given.gamma, EPS)
    m2 = exact.var * exact.count
    mean, var = reference.moving_average(0, 1, exact.mean, m2, exact.count, MOMENTUM)
    expected = {
        "training": [exact.y],
        "inference": [reference.inference(x, given.mean, given.var, given.gamma, given.beta, EPS)],
        "backward": gradients,
    }
    # A float32 sum of at most 40 terms, and a dozen operations on the way to a result.
    tolerance = (math.sqrt(exact.count) + 12) * 2.0**-24
    for kind, call in system.calls.items():
        if kind.startswith("copy"):
            continue
        result = call()
        if kind == "training":
            running = [system.numpy(one).copy() for one in system.running(result)]
        found = result if isinstance(result, tuple | list) else (result,)
        for array, right in zip(found, expected[kind.removesuffix(" out")]):
            difference = np.abs(system.numpy(array).astype(np.float64) - right).max()
            assert difference <= tolerance * np.abs(right).max(), kind
    np.testing.assert_allclose(running, np.array([mean, var], np.float64), rtol=1e-5, atol=tolerance)


@pytest.mark.float32_by_default("the same check of other arrays")
@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_right_passes_the_check_before_it_is_timed(name, dtype, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    system, given = system_of(name, "40x3x5x2:last", dtype)
    peers_worker.check(system, given, dtype)


WRONG = {
    "no gamma": ("training", lambda result, given: (result[0] / given.gamma.reshape(1, -1, 1, 1),)),
    "a thousandth too large": ("inference", lambda result, given: result * 1.001),
    "one value of an output": ("training out", lambda result, given: (_changed(result[0]),)),
    "dgamma": ("backward", lambda result, given: (result[0], -result[1], result[2])),
    "dbeta": ("backward out", lambda result, given: (result[0], result[1], _changed(result[2]))),
    "NaN": ("inference out", lambda result, given: result * np.nan),
}


def _changed(array):
    changed = array.copy()
    changed.flat[-1] += np.abs(array).max() / 100
    return changed


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_not_timed(wrong):
    kind, change = WRONG[wrong]
    system, given = system_of("nbnorm", "40x3x5x2")
    right = system.calls[kind]
    system.calls[kind] = lambda: change(right(), given)
    with pytest.raises(WrongResult, match=r"40x3x5x2: error"):
        peers_worker.check(system, given, "float32")


def test_running_statistics_that_stay_as_they_are_are_noticed():
    system, given = system_of("nbnorm", "40x3x5x2")
    frozen = system._replace(running=lambda result: (np.zeros(3), np.ones(3)))
    with pytest.raises(WrongResult, match="running mean of 40x3x5x2"):
        peers_worker.check(frozen, given, "float32")


def test_numbers_are_the_same_in_every_dtype():
    given = data(row("40x3x5x2"))
    assert np.unique(given.x).size > 50
    for name in DTYPES:
        np.testing.assert_array_equal(given.x.astype(numpy_dtype(name)).astype(np.float32), given.x)


def test_the_table():
    one = {"name": "2x3", "shape": (2, 3), "order": ""}
    ours = {"copy, NumPy": [1.0, 4.0], "copy, plain": [2.0, 2.0]}
    for kind in ("training", "backward", "inference"):
        ours |= {kind: [4.0, 8.0], f"{kind} out": [2.0, 4.0]}
    results = {
        "date": "2026-11-21", "cpu": "CPU", "threads": 2, "dtype": "float32", "rounds": 2, "seconds": 0.1,
        "versions": {"nbnorm": "0", "A": "1", "B": "2"}, "left_out": {"C": "reason"}, "rows": [one],
        "systems": {
            "nbnorm": {"2x3": ours}, "A": {"2x3": {"training": [9.0, 9.0]}}, "B": {"2x3": {"training": [2.0, 6.0]}},
            "oneDNN": {"2x3": {"training": [1.0, 2.0]}},
        },
    }  # fmt: skip
    text = peers_report.markdown(results)
    # 48 bytes. We take 4 and 8, the best peer 2 and 6 in the same rounds, the better copy 1 and 2.
    assert "| (2, 3) | 4.8e-05 | 6 | 9 | 4 | 1.5 | 0.62 | 0.25 |" in text
    assert "Best peer / nbnorm: geometric mean 0.62, worst row 0.62, (2, 3)." in text
    assert "oneDNN, with its own order in memory, / nbnorm: geometric mean 0.25, worst row 0.25, (2, 3)." in text
    assert "| (2, 3) | 7.2e-05 | 6 |  | 0.38 |" in text  # backward: three tensors, and no peer
    assert "Left out: C: reason" in text


def test_the_machine_is_named_with_its_caches():
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    levels = [(cache / "level").read_text().strip() for cache in caches]
    kinds = [(cache / "type").read_text().strip() for cache in caches]
    shown = [f"L{level}" for level, kind in zip(levels, kinds, strict=True) if kind != "Instruction"]
    assert re.findall(r", (L\d) \d+ KiB", peers.machine()) == shown
    assert peers.machine().startswith(peers.cpu())


@pytest.mark.exhaustive("its parts in the other tests here, all but the processes of peers")
def test_the_command(tmp_path):
    saved, chart = tmp_path / "peers.json", tmp_path / "peers.png"
    command = [sys.executable, str(SCRIPT), "--quick", "--shapes", "tiny", "32x64x7x7", "--threads", "1"]
    command += ["--picture", str(chart)] * (has_matplotlib := find_spec("matplotlib") is not None)
    command += ["--python", "JAX=no/such/python", "--systems", "nbnorm", "NumPy", "JAX", "--json", str(saved)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "JAX is left out: " in done.stderr
    results = json.loads(saved.read_text())
    assert set(results["left_out"]) == {"JAX"}
    names = [*GROUPS["tiny"], "32x64x7x7"]
    kinds = {"training", "backward", "inference"}
    kinds |= {f"{kind} out" for kind in kinds}
    assert [one["name"] for one in results["rows"]] == names
    for name, more in (("nbnorm", {"copy, NumPy", "copy, plain", "copy, streaming"}), ("NumPy", set())):
        assert set(results["systems"][name]) == set(names)
        for figures in results["systems"][name].values():
            assert set(figures) == kinds | more
            assert min(min(ms) for ms in figures.values()) > 0
    assert done.stdout == peers_report.markdown(results) + "\n"
    assert (chart.exists() and chart.read_bytes().startswith(b"\x89PNG")) == has_matplotlib


def test_a_row_that_a_system_gets_wrong_is_left_out_and_the_others_are_not(monkeypatch):
    def check(system, given, dtype):
        if given.row.name == "6x5":
            raise WrongResult("wrong")

    monkeypatch.setattr(peers_worker, "check", check)
    monkeypatch.delattr("os.sched_setaffinity", raising=False)  # it would hold for the tests that follow, too
    ready, wrong, right = peers_worker.work("NumPy", ["6x5\n", "4x3x5x2\n"], "float32", None, 1)
    assert json.loads(ready) == "ready"
    assert json.loads(wrong) == {"left out": "wrong"}
    assert json.loads(right)["ms"] == {}  # checked, not timed


def test_a_first_call_that_compiles_does_not_use_up_the_time():
    calls = []

    def call():
        calls.append(1)
        time.sleep(0.05 if len(calls) == 1 else 0)

    assert peers_worker.best(call, 0.02) < 50
    assert len(calls) > 20


KINDS = ["copy, plain", *peers_report.TENSORS, *(f"{kind} out" for kind in peers_report.TENSORS)]


class Pretended:
    """In the place of a process: notes what is asked, gets 6x5 of the system `wrong` wrong, ends at a 2x2 of NumPy."""

    def __init__(self, asked, wrong):
        self.asked, self.wrong = asked, wrong

    def __call__(self, name, python, threads, options):
        one = Pretended(self.asked, self.wrong)
        one.name, one.check = name, "--check" in options
        return one

    def close(self):
        pass

    def answer(self, row):
        self.asked.append((self.name, self.check, row))
        if (self.name, row) == ("NumPy", "2x2"):
            raise RuntimeError("ended")
        if self.check and (self.name, row) == (self.wrong, "6x5"):
            return {"left out": "wrong"}
        return {"version": "1", "ms": {} if self.check else dict.fromkeys(KINDS, 1.0)}


def peers_run(monkeypatch, wrong, *rows):
    asked = []
    monkeypatch.setattr(peers, "Process", Pretended(asked, wrong))
    monkeypatch.setattr(sys, "argv", ["peers.py", "--quick", "--systems", "nbnorm", "NumPy", "--shapes", *rows])
    return peers.main(), asked


@pytest.mark.parametrize(("name", "code"), [("nbnorm", 1), ("NumPy", 0)])
def test_a_row_left_out_is_not_asked_for_again_and_fails_the_run_if_it_is_ours(name, code, monkeypatch, capsys):
    exit_code, asked = peers_run(monkeypatch, name, "6x5", "4x3x5x2")
    assert exit_code == code
    # The largest row first, and all systems on a row before the next one.
    rows = [(system, row) for row in ("4x3x5x2", "6x5") for system in ("nbnorm", "NumPy")]
    assert asked == [(s, True, row) for s, row in rows] + [
        (s, False, row) for s, row in rows if (s, row) != (name, "6x5")
    ]
    assert f"Left out: {name}, 6x5: wrong" in capsys.readouterr().out


def test_a_system_whose_process_ends_is_left_out(monkeypatch, capsys):
    exit_code, asked = peers_run(monkeypatch, "", "2x2", "2x1x2")
    assert exit_code == 0
    assert [one for one in asked if one[0] == "NumPy"] == [("NumPy", True, "2x2")]
    printed = capsys.readouterr()
    assert "Left out: NumPy: ended" in printed.out
    assert "| (2, 2) | 3.2e-05 | 1 |" in printed.out
    assert "NumPy is left out: ended" in printed.err


def test_a_process_that_cannot_work_says_why():
    options = ["--dtype", "float32", "--seconds", "0"]
    with pytest.raises(RuntimeError, match="no/such/python"):
        Process("NumPy", "no/such/python", 1, options)
    with pytest.raises(RuntimeError, match="no-such-option"):
        Process("NumPy", sys.executable, 1, [*options, "--no-such-option"])
    with closing(Process("NumPy", sys.executable, 1, options)) as process:
        assert process.answer("6x5")["ms"]["training"] > 0
        for _ in range(2):
            with pytest.raises(RuntimeError, match="ValueError: 6"):
                process.answer("6")


def test_a_process_ends_when_it_is_closed():
    with closing(Process("NumPy", sys.executable, 1, ["--dtype", "float32", "--check"])) as process:
        assert process.answer("6x5")["ms"] == {}
    assert process._process.returncode == 0
