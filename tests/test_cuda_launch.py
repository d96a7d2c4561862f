"""What the CUDA host code does beside values: which kernels it starts, with which geometry and arguments."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fake_cupy
import numpy as np
import pytest
from launches import arguments, step
from tolerance import dtype_of

import nbnorm
from nbnorm import _cpu

pytest.importorskip("numba_cuda", reason="the extra `test` brings numba-cuda for Linux")


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """A stand-in that stays would serve tests which ask for CuPy."""
    before = {name: module for name, module in sys.modules.items() if name == "cupy" or name.startswith("nbnorm._cuda")}
    yield
    after = {name: module for name, module in sys.modules.items() if name == "cupy" or name.startswith("nbnorm._cuda")}
    assert after == before


SEGMENTS = (8, 16, 9, 13)  # not of whole packs, so that they take two launches


@pytest.mark.parametrize(("shape", "kind"), [(SEGMENTS, "segments"), ((500, 16), "columns")])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"track_running": False}], ids=str)
def test_two_launches_each_way_and_one_of_inference(cupy, started, shape, kind, options):
    """Also with running statistics: they are folded in on the way."""
    inference = options.get("track_running", True)
    step(cupy, shape, inference=inference, **options)
    expected = ["reduce", "normalize", "reduce", "gradient", *["running"] * inference]
    assert [one.kernel for one in started] == [f"{stage}_{kind}" for stage in expected]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [SEGMENTS, (500, 16), (4, 300, 8, 8)], ids=str)
def test_an_activation_takes_no_launch_of_its_own(cupy, started, shape, residual):
    """The map of x, which the backward pass asks for the sign of y, is kept by the kernel that has it."""
    x = cupy.asarray(np.ones(shape, np.float32))
    added = {"residual": cupy.asarray(np.ones(shape, np.float32))} if residual else {}
    launches = []
    for activation in (None, "relu"):
        started.clear()
        state = nbnorm.BatchNormState(shape[1], device="cuda")
        nbnorm.batch_norm_training(x, state, activation=activation, **added)
        launches.append([one.kernel for one in started])
    assert launches[0] == launches[1]
    assert len(launches[0]) == (1 if shape[1] == 300 else 2)


@pytest.mark.parametrize(("shape", "kind"), [(SEGMENTS, "segments"), ((500, 16), "columns")])
def test_two_launches_of_a_backward_pass_with_constant_statistics(cupy, started, shape, kind):
    """The second one reads dy alone."""
    x = cupy.asarray(np.ones(shape, np.float32))
    _, saved = nbnorm.batch_norm_training(
        x, nbnorm.BatchNormState(16, device="cuda"), use_running=True, update_running=False
    )
    started.clear()
    nbnorm.batch_norm_backward(x, saved)
    assert [one.kernel for one in started] == [f"reduce_{kind}", f"gradient_{kind}"]
    assert arguments(started[1])["x"] == 0


@pytest.mark.parametrize("shape", [SEGMENTS, (500, 16)], ids=str)
def test_a_launch_of_its_own_folds_in_what_the_others_cannot(cupy, started, shape):
    """A batch that may have to stay out of it, counts of each channel; and y is brought to where it belongs before."""
    x = cupy.asarray(np.ones(shape, np.float32))
    careful, uneven, usual = (nbnorm.BatchNormState(16, device="cuda") for _ in range(3))
    careful.skip_nonfinite = True
    uneven.num_samples = np.arange(16.0)
    strided = cupy.asarray(np.ones((*shape, 2), np.float32))[..., 0]
    for state, out in ((careful, None), (uneven, None), (usual, strided)):
        started.clear()
        nbnorm.batch_norm_training(x, state, out=out)
        assert [one.kernel.partition("_")[0] for one in started] == ["reduce", "normalize", "commit"]
        folded = arguments(started[1])
        assert (folded["mean"], folded["var"], folded["counters"]) == (0, 0, 0)


def pretend_gpu(cupy, monkeypatch, shared):
    """With so many KiB of shared memory for a block that asks."""
    monkeypatch.setattr(
        cupy.cuda.runtime, "deviceGetAttribute", lambda attribute, device: {97: shared << 10}[attribute]
    )


FUSED, SPLIT = ["fused_segments"], ["reduce_segments", "normalize_segments"]
FUSED_BACKWARD, SPLIT_BACKWARD = ["fused_gradient_segments"], ["reduce_segments", "gradient_segments"]


@pytest.mark.parametrize("options", [{}, {"track_running": False}], ids=str)
@pytest.mark.parametrize(
    ("values", "type_name", "shared", "forward", "backward"),
    [
        # 47 KiB with 4 KiB of sums: 11,008 float32 values of x, 5,504 of x and dy.
        (5_504, "float32", 99, FUSED, FUSED_BACKWARD),
        (5_508, "float32", 99, FUSED, SPLIT_BACKWARD),
        (11_008, "float32", 99, FUSED, SPLIT_BACKWARD),
        (11_012, "float32", 99, SPLIT, SPLIT_BACKWARD),
        (11_008, "float16", 99, FUSED, FUSED_BACKWARD),
        (5_504, "float64", 99, FUSED, SPLIT_BACKWARD),
        (9_001, "float32", 99, SPLIT, SPLIT_BACKWARD),  # not all of them are in packs
        # Half of 228 KiB with 4 KiB of sums and one of the GPU's.
        (11_012, "float32", 227, FUSED, FUSED_BACKWARD),
        (13_952, "float32", 227, FUSED, FUSED_BACKWARD),
        (27_904, "float32", 227, FUSED, SPLIT_BACKWARD),
        (27_908, "float32", 227, SPLIT, SPLIT_BACKWARD),
        (27_904, "float16", 227, FUSED, FUSED_BACKWARD),
    ],
)
def test_one_launch_has_room_for_a_channel_or_is_not_used(
    cupy, started, monkeypatch, values, type_name, shared, forward, backward, options
):
    from nbnorm._cuda import launch

    allowed = []
    monkeypatch.setattr(launch, "_allow_room", lambda compiled: allowed.append(compiled[0]))
    pretend_gpu(cupy, monkeypatch, shared)
    step(cupy, (1, 264, values), type_name, inference=False, **options)
    assert [one.kernel for one in started] == [*forward, *backward]
    size = values * np.dtype(type_name).itemsize
    rooms = {"fused_segments": size, "fused_gradient_segments": 2 * size}
    assert [one.room for one in started] == [rooms.get(one.kernel, 0) for one in started]
    assert allowed == [name for name in (*forward, *backward) if rooms.get(name, 0) > 44_032]


@pytest.mark.parametrize("shape", [(500, 16), (8, 3, 10_000)], ids=str)
def test_columns_and_channels_of_several_parts_take_two_launches(cupy, started, shape):
    step(cupy, shape)
    assert not any("fused" in one.kernel for one in started)


def test_pooled_statistics_take_two_launches(cupy, started):
    """What was seen before has to be read before a block counts on."""
    step(cupy, (8, 16, 10, 10), momentum=None)
    assert [one.kernel for one in started] == [*SPLIT, *FUSED_BACKWARD, "running_segments"]


def test_pointers_of_the_one_launch_are_those_of_the_arrays(cupy, started):
    x, dy, state, y, saved, gradients = step(cupy, (8, 16, 10, 10))
    forward, backward, _ = started
    assert [one.grid for one in (forward, backward)] == [(16, 1)] * 2
    at = {"x": x, "dy": dy, "y": y, "stats": saved._stats, "gamma": state.gamma, "beta": state.beta,
          "mean": state.running_mean, "var": state.running_var, "counters": state._running.counters,
          "dx": gradients.dx, "dgamma": gradients.dgamma, "dbeta": gradients.dbeta}  # fmt: skip
    for one, names in (
        (forward, "x y stats gamma beta mean var counters"),
        (backward, "x dy dx stats dgamma dbeta"),
    ):
        found = arguments(one)
        assert {name: found[name] for name in names.split()} == {name: at[name].data.ptr for name in names.split()}
        assert (found["count"], found["per"], found["P"]) == (800.0, 200, 1)
    found = arguments(forward)
    assert (found["eps"], found["momentum"], found["ddof"]) == (state.eps, 0.1, 1.0)


def test_pointers_are_those_of_the_arrays(cupy, started):
    x, dy, state, y, saved, gradients = step(cupy, SEGMENTS)
    forward, normalize, backward, gradient, inference = map(arguments, started)
    at = {"x": x, "dy": dy, "stats": saved._stats, "gamma": state.gamma, "beta": state.beta,
          "mean": state.running_mean, "var": state.running_var, "counters": state._running.counters,
          "dgamma": gradients.dgamma, "dbeta": gradients.dbeta, "dx": gradients.dx}  # fmt: skip
    for found, names, others in (
        (forward, "x stats", {"dy": 0}),
        (normalize, "x stats gamma beta mean var counters", {"y": y.data.ptr, "parts": forward["parts"]}),
        (backward, "x dy stats", {"centred": 1}),
        (gradient, "x dy dx stats dgamma dbeta", {"parts": backward["parts"]}),
        (inference, "x gamma beta mean var", {"stats": 0}),
    ):
        assert {name: found[name] for name in names.split()} == {name: at[name].data.ptr for name in names.split()}
        assert {name: found[name] for name in others} == others
    assert (normalize["count"], normalize["eps"]) == (936.0, state.eps)
    assert (normalize["momentum"], normalize["ddof"]) == (0.1, 1.0)


def test_numbers_have_the_width_that_the_signature_says(cupy, started):
    """cuda.core passes an int in 8 bytes and a float as a double; a parameter of another size would read garbage."""
    step(cupy, (8, 16, 10, 10))
    step(cupy, SEGMENTS)
    step(cupy, (500, 16), momentum=None)
    for one in started:
        for value, kind in zip(one.values, one.signature, strict=True):
            assert type(value) in (int, float)
            assert str(kind) in {int: ("int64", "none"), float: ("float64",)}[type(value)] or str(kind).endswith("*")


@pytest.mark.parametrize("shape", [(8, 16, 10, 10), (1, 1, 1_000_000), (64, 512, 7, 7), (500, 16), (100_003, 3),
                                   (3, 100_001), (2, 2)], ids=str)  # fmt: skip
def test_blocks_cover_the_array_once(cupy, started, shape, dtype):
    step(cupy, shape, dtype_of(dtype))
    itemsize = dtype_of(dtype).itemsize
    size = int(np.prod(shape))
    for one in started:
        a = arguments(one)
        assert one.block <= 256
        assert one.grid[1] <= 65_535
        if "SV" in a:
            lanes = 4 if itemsize == 2 and a["S"] % 8 == 4 else 16 // itemsize
            packs = a["N"] * a["SV"]
            assert a["S"] - a["SV"] * lanes in ({0} if a["S"] % lanes == 0 else range(lanes - 1, 2 * lanes - 1))
            assert (one.grid, a["N"] * a["C"] * a["S"]) == ((a["C"], a["P"]), size)
            assert a["per"] * (a["P"] - 1) < packs <= a["per"] * a["P"]
            assert one.block & (one.block - 1) == 0
        elif "K" in a:
            rows, width = a["N"] // a["tile"], one.grid[0] * a["across"]
            lanes = next(
                int(str(kind).rpartition(" x ")[2].rstrip(")*")) for kind in one.signature if "Pack" in str(kind)
            )
            assert a["K"] % lanes == 0
            assert a["K"] == a["C"] * a["S"] * a["tile"]
            assert (width - a["across"]) * lanes < a["K"] <= width * lanes
            assert a["across"] * a["down"] <= one.block
            assert rows <= a["per"] * a["P"]
            assert one.grid[1] == a["P"]
        else:
            assert one.grid == (1 if one.kernel == "commit_batch" else a["C"], 1)
            continue
        assert lanes * itemsize <= 16


@pytest.mark.parametrize("S", [64, 65, 66, 67, 196, 289, 1225])
def test_segments_of_any_length_move_16_bytes_at_a_time(cupy, started, S, dtype):
    """Of 16-bit types 8 where that leaves half a pack of every segment."""
    step(cupy, (4, 3, S), dtype_of(dtype))
    itemsize = dtype_of(dtype).itemsize
    lanes = 4 if itemsize == 2 and S % 8 == 4 else 16 // itemsize
    packs = [str(kind) for one in started for kind in one.signature if "Pack" in str(kind)]
    assert len(packs) == (2 + 3 + 2 if S % lanes == 0 else 1 + 2 + 2 + 3 + 2)
    assert all(f" x {lanes})" in kind for kind in packs)


def test_the_current_stream_is_used(cupy, started, monkeypatch):
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: types.SimpleNamespace(ptr=77, is_capturing=bool))
    step(cupy, (8, 16, 10, 10))
    assert {one.stream for one in started} == {77}


@pytest.mark.parametrize("shape", [(8, 16, 10, 10), (500, 16)], ids=str)
def test_kernels_of_a_device_run_there_and_on_its_stream(cupy, started, shape):
    """Whatever is current: kernels are loaded for each device, and launched on the current stream of theirs."""
    cupy.cuda.streams[:] = [types.SimpleNamespace(ptr=70 + number, is_capturing=bool) for number in range(2)]
    loaded = []
    for number in (0, 1, 0):
        started.clear()
        with cupy.cuda.Device(number):
            x, dy = (cupy.asarray(np.ones(shape, np.float32)) for _ in range(2))
        state = nbnorm.BatchNormState(16, device=f"cuda:{number}")
        _, saved = nbnorm.batch_norm_training(x, state)
        nbnorm.batch_norm_backward(dy, saved)
        nbnorm.batch_norm_inference(x, state)
        assert {(one.device, one.stream) for one in started} == {(number, 70 + number)}
        loaded.append([one.loaded_for for one in started])
        assert cupy.cuda.runtime.getDevice() == 0
    assert [set(numbers) for numbers in loaded] == [{0}, {1}, {0}]


@pytest.mark.parametrize("number", [0, 1])
def test_a_new_thread_gets_a_context_once(cupy, started, monkeypatch, number):
    """Asking for the device gives it none, and outputs that are given allocate nothing (`started` asserts it)."""
    with cupy.cuda.Device(number):
        x, out = (cupy.asarray(np.ones((8, 16, 10, 10), np.float32)) for _ in range(2))
    state = nbnorm.BatchNormState(16, device=f"cuda:{number}")
    chosen, choose = [], cupy.cuda.runtime.setDevice
    monkeypatch.setattr(cupy.cuda.runtime, "setDevice", lambda n: (chosen.append(n), choose(n)))

    def calls():
        for _ in range(2):
            nbnorm.batch_norm_inference(x, state, out=out)

    for _ in range(2):
        with ThreadPoolExecutor(1) as pool:  # a new thread
            pool.submit(calls).result()
    assert [one.device for one in started] == [number] * 4
    assert chosen == ([0, 0] if number == 0 else [])


@pytest.mark.parametrize("shape", [(8, 16, 10, 10), (500, 16)], ids=str)
@pytest.mark.parametrize("use_running", [False, True])
def test_memory_of_a_captured_call_is_kept(cupy, started, monkeypatch, shape, use_running):
    """Whatever a kernel gets belongs to the caller, was returned, or is kept for the life of the process."""
    from nbnorm._cuda import memory

    monkeypatch.setattr(memory, "_OF_GRAPHS", [])
    step(cupy, shape)
    assert memory._OF_GRAPHS == []
    capturing = types.SimpleNamespace(ptr=77, is_capturing=lambda: True)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: capturing)
    started.clear()
    x, dy, out = (cupy.asarray(np.ones((shape[0] * 2, *shape[1:]), np.float32))[::2] for _ in range(3))  # copied
    state = nbnorm.BatchNormState(shape[1], device="cuda")
    state.num_samples = np.arange(float(shape[1]))  # of each channel: an array, which reset_running lets go of
    y, saved = nbnorm.batch_norm_training(x, state, use_running=use_running, out=out)
    gradients = nbnorm.batch_norm_backward(dy, saved)
    nbnorm.batch_norm_inference(x, state, out=out)
    known = [x, dy, out, y, saved._flat, saved._stats, *gradients, state.gamma, state.beta, state.running_mean,
             state.running_var, state._running.counters, *memory._OF_GRAPHS]  # fmt: skip
    addresses = {0, *(array.data.ptr for array in known)}
    for one in started:
        pointers = [v for v, kind in zip(one.values, one.signature, strict=True) if str(kind).endswith("*")]
        assert set(pointers) <= addresses, one.kernel


def test_a_forked_child_says_how_to_start_it(cupy, started, monkeypatch):
    from nbnorm._cuda import launch

    def refused():
        raise RuntimeError("cudaErrorInitializationError")

    monkeypatch.setattr(launch, "_forked", True)
    x, state = cupy.asarray(np.ones((5, 3), np.float32)), nbnorm.BatchNormState(3, device="cuda")
    monkeypatch.setattr(cupy.cuda.runtime, "getDevice", refused)
    with pytest.raises(RuntimeError, match="spawn"):
        nbnorm.batch_norm_training(x, state)


def test_numbas_own_launch_is_given_what_it_takes(cupy, monkeypatch):
    """The fallback: cuda.core refuses a stream that is a number."""
    from nbnorm._cuda import launch

    log = []
    compiled = types.SimpleNamespace(launch=lambda *args, **kwargs: log.append((args, kwargs)))
    launch._starter(compiled, nested=False)(77, (3, 2), 64, 512, 1, 2.0)
    (((values, grid, block), options),) = log
    assert (values, grid, block, options["sharedmem"]) == ((1, 2.0), (3, 2, 1), (64, 1, 1), 512)
    launch._starter(compiled, nested=True)(77, (3, 2), 64, 512, (1, 0), 2.0)
    assert log[1][0][0] == ((1, 0), 2.0)  # it takes a mask with its strides as it is; cuda.core takes numbers alone
    assert int(options["stream"].handle) == 77
    with pytest.raises(RuntimeError, match="older numba-cuda"):  # which could not ask for more shared memory
        launch._allow_room(compiled)


def test_an_old_cuda_core_leaves_numbas_own_launch(cupy, monkeypatch):
    from nbnorm._cuda import launch

    launch._stream_of.cache_clear()
    log = []
    monkeypatch.setitem(sys.modules, "cuda.core", types.ModuleType("cuda.core"))  # without launch, Stream, LaunchConfig
    monkeypatch.setattr(launch.numba_cuda, "external_stream", lambda handle: ("of Numba", handle))
    library = types.SimpleNamespace(get_cufunc=lambda: types.SimpleNamespace(kernel="the kernel"))
    compiled = types.SimpleNamespace(_codelibrary=library, launch=lambda *args, **kwargs: log.append((args, kwargs)))
    launch._cuda_core_launches.cache_clear()
    launch._starter(compiled, nested=False)(78, (3, 2), 64, 0, 1, 2.0)
    assert log == [(((1, 2.0), (3, 2, 1), (64, 1, 1)), {"stream": ("of Numba", 78), "sharedmem": 0})]
    pretend_gpu(cupy, monkeypatch, shared=227)
    assert not launch.roomy()  # nor can it ask for more shared memory
    launch._cuda_core_launches.cache_clear()


def test_views_of_other_libraries_memory_that_overlap_are_found(cupy, started):
    """CuPy's own test compares only what one allocation of its has."""
    memory = np.zeros(3 * 800, np.float32)
    x, out, apart = (
        fake_cupy.from_elsewhere(memory[start : start + 800]).reshape(8, 1, 10, 10) for start in (0, 200, 800)
    )
    state = nbnorm.BatchNormState(1, device="cuda")
    assert not cupy.may_share_memory(x, out)
    for call in (nbnorm.batch_norm_training, nbnorm.batch_norm_inference):
        with pytest.raises(ValueError, match="out overlaps x in memory"):
            call(x, state, out=out)
    _, saved = nbnorm.batch_norm_training(x, state, out=apart)
    with pytest.raises(ValueError, match="out overlaps dy in memory"):
        nbnorm.batch_norm_backward(apart, saved, out=out[::-1])


@pytest.mark.parametrize(
    ("shape", "type_name", "offset", "copied"),
    [
        ((8, 16, 10, 10), "float32", 4, False),
        ((8, 16, 10, 10), "float32", 2, True),
        ((8, 16, 10, 10), "float32", 1, True),
        ((3, 5), "float32", 1, False),  # 15 values in rows of 3: single values
        ((3, 6), "float32", 2, False),  # pairs
        ((3, 6), "float32", 1, True),
        ((3, 6), "float16", 2, False),
        ((3, 6), "float64", 1, True),
        ((500, 16), "float16", 4, True),
    ],
)
def test_what_is_aligned_for_its_packs_is_not_copied(cupy, started, shape, type_name, offset, copied):
    size = int(np.prod(shape))
    room = cupy.asarray(np.ones(2 * size + 64, type_name))
    x, out = (room[start : start + size].reshape(shape) for start in (offset, 32 + size // 8 * 8 + offset))
    nbnorm.batch_norm_inference(x, nbnorm.BatchNormState(shape[1], device="cuda"), out=out)
    (one,) = started
    found = arguments(one)
    assert (found["x"] != x.data.ptr, found["y"] != out.data.ptr) == (copied, copied)


def test_both_backends_have_the_same_functions(cupy):
    from nbnorm import _cuda

    assert _cuda.__all__ == _cpu.__all__
    stages = [name for name in _cpu.__all__ if inspect.isfunction(getattr(_cpu, name))]
    assert len(stages) > 20
    for name in stages:
        of_both = (inspect.signature(getattr(backend, name)).parameters.values() for backend in (_cpu, _cuda))
        ours, theirs = ([(one.name, one.default) for one in parameters] for parameters in of_both)
        assert ours == theirs, name


COMPILE = """
import sys, types
sys.path[:0] = {paths!r}
import fake_cupy; fake_cupy.install()
from numba.cuda.codegen import CUDACodeLibrary
from nbnorm._cuda import launch, reduce
device = types.SimpleNamespace(compute_capability=(9, 0), id=0)
context = types.SimpleNamespace(device=device)
for module in [m for name, m in sys.modules.items() if name.startswith(("numba.cuda", "numba_cuda"))]:
    for name, result in (("get_context", context), ("current_context", context), ("get_current_device", device)):
        if hasattr(module, name):
            setattr(module, name, lambda *_, result=result: result)
loaded = types.SimpleNamespace(kernel="the kernel", module=types.SimpleNamespace(initialized=True))
CUDACodeLibrary.get_cufunc = lambda library: loaded
kernel = reduce.reduce_segments
signature = kernel.signature((("float32", 4), None, None, None, "float64", "float64", None), (0,) * 7 + (1,) * 7)
print(launch._loaded(kernel.dispatcher.compile(signature)), sum(kernel.dispatcher.stats.cache_hits.values()))
"""


def test_a_kernel_is_compiled_once_for_all_processes_and_found_by_the_fast_launch(tmp_path):
    """With a pretended device: Numba's compiler and cache, and the private attribute that the fast launch needs."""
    code = COMPILE.format(paths=[str(Path(fake_cupy.__file__).parent)])
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs == ["the kernel 0\n", "the kernel 1\n"]


def test_only_one_module_imports_numba_cuda():
    """And before it is imported, `_device.py` asks whether that will go well."""
    package = Path(nbnorm.__file__).parent
    found = [
        p.relative_to(package).as_posix()
        for p in package.rglob("*.py")
        if "numba.cuda" in p.read_text().replace("`numba.cuda`", "")
    ]
    assert sorted(found) == ["_cuda/launch.py", "_device.py"]
