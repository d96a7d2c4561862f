"""The CUDA kernels without a GPU: they compile and link for five architectures, within the bounds of a table."""

from __future__ import annotations

import os
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from offline import compiled

from nbnorm._counted import Both, Tangent

pytest.importorskip("numba_cuda", reason="the extra `test` brings numba-cuda for Linux")
pytest.importorskip("cuda.core", reason="the linker of numba-cuda[cu13]")

TURING, HOPPER = (7, 5), (9, 0)
ARCHITECTURES = (TURING, (8, 0), HOPPER, (10, 0), (12, 0))
# Hundreds of combinations, seconds each: for who changes a kernel, NBNORM_EVERY_COMBINATION=1 and --exhaustive.
EVERY_COMBINATION = os.environ.get("NBNORM_EVERY_COMBINATION") == "1"
some_combinations = pytest.mark.each_value if EVERY_COMBINATION else pytest.mark.values_at_most
another = pytest.mark.exhaustive("one of each kind")
HALF = ", half packs"
DTYPES = {"float32": 4, "uint16": 8, "int16": 8, "float64": 2}  # values of a 16-byte pack
F64 = "float64"

# name: (arrays, numbers) of the signature with every array present, for packs X; and the bounds by dtype:
# registers (128 is what launch_bounds grants), wide loads at least.
PARAMETERS = ("float32", "float32")
RUNNING = (F64, F64, "int64")
MASK, BOTH = ("uint8", None, "counted"), ("uint8", "float32", "counted")  # which values count: a mask; and weights
KERNELS = {
    "reduce.reduce_segments": (("X", None, None, None, F64, F64, None), [1] * 7),
    "reduce.reduce_segments of two": (("X", "X", None, None, F64, F64, None), [1] * 7),
    "reduce.reduce_columns": (("X", None, None, None, F64, F64, None), [1] * 10),
    "reduce.reduce_columns of two": (("X", "X", None, None, F64, F64, None), [1] * 10),
    "reduce.reduce_segments counted": (("X", None, None, MASK, F64, F64, None), [1] * 7),
    "reduce.reduce_segments of two counted": (("X", "X", None, BOTH, F64, F64, None), [1] * 7),
    "reduce.reduce_columns counted": (("X", None, None, MASK, F64, F64, None), [1] * 10),
    "reduce.reduce_columns of two counted": (("X", "X", None, BOTH, F64, F64, None), [1] * 10),
    "apply.apply_segments of two counted": (("X", "X", None, None, BOTH, "X", F64, None), [1] * 6),
    "apply.apply_columns of two counted": (("X", "X", None, None, BOTH, "X", F64, None), [1] * 9),
    "counted.first_short counted": (("X", BOTH, F64), [1] * 3 + [1.0]),
    "reduce.reduce_segments of a tangent counted": (("X", "tangent", None, BOTH, F64, F64, None), [1] * 7),
    "reduce.reduce_columns of a tangent counted": (("X", "tangent", None, BOTH, F64, F64, None), [1] * 10),
    "reduce.reduce_segments of three counted": (("X", "both", None, BOTH, F64, F64, None), [1] * 7),
    "reduce.reduce_columns of three counted": (("X", "both", None, BOTH, F64, F64, None), [1] * 10),
    "apply.apply_segments of a tangent counted": (("X", "tangent", None, None, BOTH, "X", F64, None), [1] * 6),
    "apply.apply_columns of a tangent counted": (("X", "tangent", None, None, BOTH, "X", F64, None), [1] * 9),
    "apply.apply_segments of three counted": (("X", "X", "X", None, BOTH, "X", F64, None), [1] * 6),
    "apply.apply_columns of three counted": (("X", "X", "X", None, BOTH, "X", F64, None), [1] * 9),
    "reduce.reduce_segments pooled": (("X", None, None, None, F64, F64, "int64"), [1] * 7),
    "apply.normalize_segments": (("X", None, None, "X", F64, F64, *PARAMETERS, *RUNNING), [1] * 9 + [1.0] * 4),
    "apply.normalize_segments untracked": (
        ("X", None, None, "X", F64, F64, *PARAMETERS, None, None, None),
        [1] * 9 + [1.0] * 4,
    ),
    "apply.normalize_columns": (("X", None, None, "X", F64, F64, *PARAMETERS, *RUNNING), [1] * 12 + [1.0] * 4),
    "apply.gradient_columns": (("X", "X", None, "X", F64, F64, *PARAMETERS), [1] * 12 + [1.0]),
    "apply.gradient_segments frozen": ((None, "X", None, "X", F64, F64, *PARAMETERS), [1] * 9 + [1.0]),
    "apply.gradient_columns frozen": ((None, "X", None, "X", F64, F64, *PARAMETERS), [1] * 12 + [1.0]),
    "apply.gradient_segments": (("X", "X", None, "X", F64, F64, *PARAMETERS), [1] * 9 + [1.0]),
    "apply.running_segments": (("X", None, None, "X", None, *PARAMETERS, F64, F64), [1] * 6 + [1.0]),
    "apply.apply_segments": (("X", None, None, None, None, "X", F64, None), [1] * 6),
    "apply.apply_segments of two": (("X", "X", None, None, None, "X", F64, None), [1] * 6),
    "apply.apply_segments of three": (("X", "X", "X", None, None, "X", F64, None), [1] * 6),
    "apply.apply_columns": (("X", None, None, None, None, "X", F64, None), [1] * 9),
    "apply.apply_columns of two": (("X", "X", None, None, None, "X", F64, None), [1] * 9),
    "apply.apply_columns of three": (("X", "X", "X", None, None, "X", F64, None), [1] * 9),
    "fused.fused_segments": (("X", None, None, "X", F64, *PARAMETERS, *RUNNING), [1] * 6 + [1.0] * 4),
    "fused.fused_segments beside": (("X", "X", "number", "X", F64, *PARAMETERS, *RUNNING), [1] * 6 + [1.0] * 4),
    "fused.fused_gradient_segments": (("X", "X", None, "X", F64, *PARAMETERS), [1] * 6 + [1.0]),
    "apply.running_columns": (("X", None, None, "X", F64, *PARAMETERS, F64, F64), [1] * 9 + [1.0]),
    "reduce.reduce_segments of two gated": (("X", "X", "number", None, F64, F64, None), [1] * 7),
    "reduce.reduce_columns of two gated": (("X", "X", "number", None, F64, F64, None), [1] * 10),
    "reduce.reduce_columns of two gated and counted": (("X", "X", "number", BOTH, F64, F64, None), [1] * 10),
    "reduce.reduce_segments of two gated and counted": (("X", "X", "number", BOTH, F64, F64, None), [1] * 7),
    "apply.apply_segments of two gated and counted": (("X", "X", None, "number", BOTH, "X", F64, F64), [1] * 6),
    "apply.apply_segments of two gated": (("X", "X", None, "number", None, "X", F64, F64), [1] * 6),
    "apply.apply_columns of two gated": (("X", "X", None, "number", None, "X", F64, F64), [1] * 9),
    "apply.apply_columns of two gated and counted": (("X", "X", None, "number", BOTH, "X", F64, F64), [1] * 9),
    "apply.apply_columns beside": (("X", None, "X", "number", None, "X", F64, None), [1] * 9),
    "apply.normalize_segments activated": (
        ("X", None, "number", "X", F64, F64, *PARAMETERS, *RUNNING),
        [1] * 9 + [1.0] * 4,
    ),
    "apply.normalize_columns activated": (
        ("X", None, "number", "X", F64, F64, *PARAMETERS, *RUNNING),
        [1] * 12 + [1.0] * 4,
    ),
    "fused.fused_segments activated": (
        ("X", None, "number", "X", F64, *PARAMETERS, *RUNNING),
        [1] * 6 + [1.0] * 4,
    ),
    "apply.normalize_segments beside": (
        ("X", "X", "number", "X", F64, F64, *PARAMETERS, *RUNNING),
        [1] * 9 + [1.0] * 4,
    ),
    "apply.normalize_columns beside": (
        ("X", "X", "number", "X", F64, F64, *PARAMETERS, *RUNNING),
        [1] * 12 + [1.0] * 4,
    ),
    "apply.running_columns beside": (("X", "X", "number", "X", F64, *PARAMETERS, F64, F64), [1] * 9 + [1.0]),
    "apply.gradient_segments gated": (("X", "X", "number", "X", F64, F64, *PARAMETERS), [1] * 9 + [1.0]),
    "apply.gradient_columns gated": (("X", "X", "number", "X", F64, F64, *PARAMETERS), [1] * 12 + [1.0]),
    "fused.fused_gradient_segments gated": (("X", "X", "number", "X", F64, *PARAMETERS), [1] * 6 + [1.0]),
}
# What else may count: weights alone, of either dtype, and a mask with them.
COUNTED = {
    f"{name} {where}, {weights}, counted": (
        tuple(kind if type(kind) is not tuple else counting for kind in arrays),
        rest,
    )
    for name, (arrays, rest) in KERNELS.items()
    if name.endswith("counted")
    for where in ("uint8", None)
    for weights in ("float32", F64, None)
    if (counting := (where, weights, "counted")) not in (*arrays, (None, None, "counted"))
}
# By default one form of each kernel, seconds a piece, for one dtype and the oldest architecture or Hopper: where other
# tests here ask for one, that (test_what_once_spilled has fused_gradient_segments). And a few of those without packs.
BY_DEFAULT = {
    "reduce.reduce_segments": ("float32", HOPPER),
    "reduce.reduce_segments of two": ("float32", HOPPER),
    "reduce.reduce_columns of two": ("float64", TURING),
    "apply.apply_segments of two": ("float32", TURING),
    "apply.apply_columns of two gated and counted": ("float32", TURING),
    "apply.normalize_segments": ("float32", HOPPER),
    "apply.normalize_columns": ("uint16", TURING),
    "apply.normalize_columns activated": ("float32", HOPPER),
    "apply.gradient_segments": ("uint16", HOPPER),
    "apply.gradient_columns": ("float32", HOPPER),
    "apply.running_segments": ("float32", HOPPER),
    "apply.running_columns": ("int16", TURING),
    "counted.first_short counted": ("float32", TURING),
    "fused.fused_segments": ("int16", HOPPER),
    "finalize.finalize": ("float32", TURING),
    "finalize.finalize_gradient": ("float32", HOPPER),
    "finalize_derivatives.finalize_second": ("float32", TURING),
    "combine.merge_shards": ("float32", HOPPER),
    "combine.shard_sums": ("float32", TURING),
    "renorm.correct": ("float32", HOPPER),
    "commits.commit_batch": ("float32", TURING),
}
OTHERS = {
    "finalize.finalize": ((F64, F64, *PARAMETERS, F64), [1] * 3 + [1.0] * 2),
    "finalize.finalize_gradient": ((F64, F64, *PARAMETERS, F64), [1] * 5 + [1.0]),
    "finalize_derivatives.shard_double_sums": ((F64,) * 6, [1] * 4 + [1.0]),
    "finalize_derivatives.finalize_tangent": ((F64,) * 4, [1, 1.0]),
    "finalize_derivatives.finalize_second": ((F64, F64, F64, "float32", F64), [1, 1.0]),
    "finalize_derivatives.finalize_frozen_second": ((F64, F64, F64, "float32", F64), [1, 1]),
    "finalize_derivatives.add_double_shards": ((F64,) * 3, [1] * 3),
    "finalize_derivatives.shard_dgamma": ((F64, F64, F64, F64, "float32"), [1] + [1.0] * 2),
    "finalize.count_channels": ((F64, F64), [1] * 4),
    "combine.merge_shards": ((F64, F64, F64), [1] * 5),
    "finalize.finalize_given": ((F64, *PARAMETERS, F64), [1] + [1.0] * 2),
    "finalize.move_origins": ((F64, F64), [1] * 2),
    "combine.shard_sums": ((F64, F64, F64, F64), [1] * 4 + [1.0]),
    "combine.add_shards": ((F64, F64, F64), [1] * 3),
    "combine.whole_gradients": ((F64, F64, F64, *PARAMETERS), [1, 1.0]),
    "combine.finalize_sums": ((F64, F64, F64), [1, 1, 1.0]),
    "renorm.correct": ((F64, *PARAMETERS, F64, F64, F64), [1] + [1.0] * 4),
    "renorm.correct_gradients": ((F64, F64, *PARAMETERS), [1]),
    "commits.commit_batch": ((F64, F64, F64, "int64", F64), [1] * 2 + [1.0] * 3),
}


def of_each(names, dtypes=DTYPES):
    """Every name, dtype and architecture, of which those of BY_DEFAULT run by default."""
    return [
        pytest.param(
            name,
            memory,
            cc,
            marks=() if BY_DEFAULT.get(name) == (memory, cc) else another,
            id="-".join((name, *[memory] * (len(dtypes) > 1), "sm_{}{}".format(*cc))),
        )
        for name in names
        for memory in dtypes
        for cc in ARCHITECTURES
    ]


# Bytes that go to memory and back, where narrower packs would cost all cards more (docs/kernels.md).
SPILLED = {("apply.normalize_columns activated", "uint16", (12, 0)): 48}
REGISTERS = 128  # of a thread: two blocks of 256 on every multiprocessor
STATIC_SHARED = 48 << 10  # bytes; more would need a driver call


@pytest.fixture(scope="module")
def compile_for(request):
    """PTX and what the linker says of a kernel, for an architecture; cores compile for the tests to come.

    As many as there are for each worker of pytest-xdist: the others have work of their own.
    """
    params = [item.callspec.params for item in request.session.items if item.path == request.path]
    wanted = {}
    for p in params:
        wanted.setdefault((p["name"], p.get("memory", "float32")), {})[p.get("cc", HOPPER)] = None
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    with ProcessPoolExecutor(max(1, min(8, os.cpu_count() or 1) // workers), get_context("forkserver")) as pool:
        found = {one: pool.submit(compiled, *signature(*one), list(of)) for one, of in wanted.items()}
        yield lambda name, memory, cc: dict(zip(wanted[name, memory], found[name, memory].result()))[cc]
        pool.shutdown(cancel_futures=True)


def signature(name, memory):
    """Module, function, kinds and numbers of a kernel for values of this dtype in memory."""
    arrays, numbers = {**KERNELS, **COUNTED, **OTHERS}[name.removesuffix(HALF)]
    pack = memory, lanes_of(name, memory)
    packs = {"X": pack, "tangent": Tangent(pack), "both": Both(pack, pack)}
    kinds = tuple(packs.get(kind, kind) if isinstance(kind, str) else kind for kind in arrays)
    return (*name.removesuffix(HALF).split()[0].split("."), kinds, tuple(numbers))


def lanes_of(name, memory):
    """Values of a pack: of 16 bytes, but for columns of two arrays or three (plan.cut_of_two, cut_of_three), for masks
    (plan.cut_counted) and for both (plan.cut_gated); one where counts are added up one by one."""
    if name.startswith("counted"):
        return 1
    if name.endswith(HALF):
        return DTYPES[memory] // 2
    if "columns" in name and "gated and counted uint8, float64" in name:
        return 1
    if "gated and counted" in name or "of three counted" in name or ("columns" in name and has_mask_and_weights(name)):
        return min(DTYPES[memory], 2)
    if name.endswith("columns of three") or (name.startswith("reduce") and "of a tangent" in name):
        return min(DTYPES[memory], 2)
    few = name.endswith("counted") or ("columns" in name and name.endswith("gated"))
    few = few or name.startswith(("apply.gradient_columns", "apply.apply_columns of two"))
    few = few or name.endswith("columns beside")
    return min(DTYPES[memory], 4) if few else DTYPES[memory]


def has_mask_and_weights(name):
    arrays, _ = {**KERNELS, **COUNTED, **OTHERS}[name]
    return any(isinstance(kind, tuple) and None not in kind for kind in arrays)


def bytes_of(what, log):
    return sum(int(n) for n in re.findall(rf"(\d+) bytes {what}", log))


def wide(ptx, access):
    """How many instructions move 16 bytes."""
    return len(re.findall(rf"{re.escape(access)}\S*\.(?:v4\.[fbu]32|v2\.[fbu]64)", ptx))


def check_resources(compile_for, name, memory, cc):
    ptx, log = compile_for(name, memory, cc)
    assert int(re.search(r"Used (\d+) registers", log)[1]) <= REGISTERS
    spilled = SPILLED.get((name, memory, cc), 0)
    assert (bytes_of("spill", log), ptx.count(".local")) == (spilled, 0)
    assert spilled or bytes_of("stack frame", log) == 0
    assert bytes_of("smem", log) <= STATIC_SHARED
    assert "atom." not in ptx
    return ptx


@pytest.mark.parametrize(("name", "memory", "cc"), of_each(OTHERS, ["float32"]))
def test_a_kernel_without_packs_links_within_its_resources(compile_for, name, memory, cc):
    check_resources(compile_for, name, memory, cc)


@some_combinations
@pytest.mark.parametrize(("name", "memory", "cc"), of_each(KERNELS))
def test_a_kernel_links_within_its_resources(compile_for, name, memory, cc):
    check_packs(check_resources(compile_for, name, memory, cc), name, memory)


@pytest.mark.exhaustive("test_a_kernel_links_within_its_resources has masks of one kind")
@some_combinations
@pytest.mark.parametrize(
    ("name", "memory", "cc"),
    of_each(list(COUNTED)[:: 1 if EVERY_COMBINATION else 5]),  # each kind with some kernels
)
def test_masks_of_every_kind_link_within_their_resources(compile_for, name, memory, cc):
    check_packs(check_resources(compile_for, name, memory, cc), name, memory)


@pytest.mark.parametrize(
    ("name", "memory", "cc"),
    [
        pytest.param("reduce.reduce_columns counted uint8, float64, counted", "float32", HOPPER, marks=another),
        pytest.param(
            "reduce.reduce_columns of two gated and counted uint8, float64, counted", "float32", (7, 5), marks=another
        ),
        pytest.param("apply.normalize_columns beside", "int16", (12, 0), marks=another),
        # Packs of 8 bytes, four of each of two arrays at once, as 14x14 images have them.
        ("fused.fused_gradient_segments, half packs", "uint16", HOPPER),
        pytest.param("fused.fused_gradient_segments gated, half packs", "uint16", (10, 0), marks=another),
        pytest.param("apply.gradient_segments, half packs", "int16", (7, 5), marks=another),
        pytest.param("reduce.reduce_segments of two, half packs", "uint16", (8, 0), marks=another),
    ],
)
def test_what_once_spilled(compile_for, name, memory, cc):
    check_packs(check_resources(compile_for, name, memory, cc), name, memory)


def check_packs(ptx, name, memory):
    """16 bytes at a time, as many as there are registers for."""
    arrays = {**KERNELS, **COUNTED}[name.removesuffix(HALF)][0]
    packs = arrays.count("X") + arrays.count("tangent") + 2 * arrays.count("both")
    written = 0 if name.startswith("reduce") else min(packs, 1)
    loads, stores = wide(ptx, "ld.global"), wide(ptx, "st.global")
    # Four packs are asked for, and four come next; or two, and two, of each of two or three arrays. Stored are four and
    # what is left of four, or two and one.
    wanted, of_stores = {0: (0, 0), 1: (8, 7), 2: (8, 3), 3: (12, 3)}[packs - written]
    if lanes_of(name, memory) < DTYPES[memory]:
        wanted = of_stores = 0
    assert loads >= wanted
    assert stores >= of_stores * written
    # What fused reads, but for a residual, is kept on the chip, and the map reads it there.
    if name.startswith("fused") and not name.endswith(HALF):
        kept = wide(ptx, "st.shared")
        assert (6 if "gradient" in name else 7) <= kept
        assert wide(ptx, "ld.shared") >= 4
        if memory == "uint16":  # and not rounded for it
            assert ptx.count("cvt.rn.f16.f32") + 2 * ptx.count("cvt.rn.f16x2.f32") == 8 * stores


@pytest.mark.parametrize(
    "name",
    [
        "reduce.reduce_segments of two",
        pytest.param("reduce.reduce_columns", marks=another),
        "apply.normalize_segments",
        pytest.param("apply.gradient_segments", marks=another),
        pytest.param("apply.normalize_columns", marks=another),
        "apply.gradient_columns",
    ],
)
def test_the_first_packs_are_asked_for_before_origins_or_coefficients_are_found(compile_for, name):
    """Before the first sample, or the first sum of a part, is loaded, and before the threads of a block meet."""
    ptx, _ = compile_for(name, "float32", HOPPER)
    before = ptx[: re.search(r"ld\.global\.(?:nc\.)?f(?:32|64)|bar\.sync|shfl", ptx).start()]
    of_cache = "columns" in name and name.startswith("apply")  # whose registers are full meanwhile
    assert (wide(before, "ld.global"), before.count("prefetch.L2")) == ((0, 4) if of_cache else (4, 0))


@pytest.mark.parametrize(
    "memory", ["float32", pytest.param("uint16", marks=another), pytest.param("int16", marks=another)]
)
@pytest.mark.parametrize("name", ["reduce.reduce_segments"])
def test_float64_work_for_a_narrow_value_is_what_was_counted(compile_for, name, memory):
    """docs/kernels.md counts conversions and operations; a stray one would cost cards with slow float64 dearly."""
    loop, values = loop_of(compile_for(name, memory, HOPPER)[0], "fma.rn.f64"), 4 * DTYPES[memory]
    per_value = {op: len(re.findall(rf"{op}\S*f64", loop)) / values for op in ("sub", "add", "fma", "mul", "div")}
    assert (per_value["fma"], per_value["sub"] + per_value["add"]) == (1, 2)
    assert (per_value["mul"], per_value["div"]) == (0, 0)


def loop_of(ptx, instruction):
    return max(re.split(r"\n\$L__\w+:", ptx), key=lambda block: block.count(instruction))


ARRAYS = {
    "apply.running_segments": 1,
    "apply.running_columns": 1,
    "apply.normalize_segments": 1,
    "apply.normalize_columns": 1,
    "apply.apply_segments": 1,
    "apply.gradient_segments frozen": 1,
    "fused.fused_segments": 1,
    "apply.gradient_segments": 2,
    "apply.gradient_columns": 2,
    "apply.apply_segments of two": 2,
    "fused.fused_gradient_segments": 2,
}


@some_combinations("the map is the kernel's, loads and stores are the dtype's, which other tests here look at")
@pytest.mark.parametrize(
    ("name", "arrays", "memory"),
    [
        pytest.param(name, arrays, memory, marks=() if BY_DEFAULT.get(name) == (memory, HOPPER) else another)
        for name, arrays in ARRAYS.items()
        for memory in ("float32", "uint16", "int16")
    ],
)
def test_the_map_of_narrow_values_has_no_float64(compile_for, name, arrays, memory):
    """Eq. 19 has three multiply-adds a value, Eq. 42 four."""
    loop = loop_of(compile_for(name, memory, HOPPER)[0], "fma.rn.f32")
    assert ".f64" not in loop
    packs = 4 if arrays == 1 or lanes_of(name, memory) < DTYPES[memory] else 2
    assert loop.count("fma.rn.f32") == {1: 3, 2: 4}[arrays] * packs * lanes_of(name, memory)
