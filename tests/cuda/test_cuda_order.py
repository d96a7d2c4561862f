"""Which block reads what, and when: only the simulator can show it."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from common import sample
from conftest import SIMULATED

import nbnorm

pytestmark = pytest.mark.skipif(not SIMULATED, reason="ONLY THE SIMULATOR shows which block reads what")


@pytest.fixture
def read(monkeypatch):
    """By kernel: the packs that each thread of each block fetched, blocks in the order in which a GPU starts them."""
    from nbnorm._cuda import launch, walk

    found, fetch, start = defaultdict(lambda: defaultdict(list)), walk.fetch, launch.Kernel.__call__

    def started(kernel, *args, **options):
        found["now"] = found[kernel.__name__.partition("_")[0]]
        start(kernel, *args, **options)

    def recorded(packs, i, here):
        cuda = launch.cuda
        if packs is not None and here:
            block = cuda.blockIdx.x + cuda.blockIdx.y * cuda.gridDim.x
            found["now"][block, cuda.threadIdx.x].append(int(i))
        return fetch(packs, i, here)

    monkeypatch.setattr(launch.Kernel, "__call__", started)
    monkeypatch.setattr(walk, "fetch", recorded)
    return found


@pytest.mark.parametrize("shape", [(4, 3, 64), (120, 12)], ids=str)
def test_what_is_read_last_is_read_again_first(cupy, rng, read, shape):
    """It is still in the second-level cache. By blocks, and within a block."""
    from nbnorm._cuda import plan

    x = cupy.asarray(sample(rng, shape))
    cut = plan.cut((*shape, 1)[:3], 4)
    blocks = cut.grid[0] * cut.grid[1]
    assert min(cut.grid) > 1
    nbnorm.batch_norm_training(x, nbnorm.BatchNormState(shape[1], device="cuda"))

    def by_block(kernel):
        threads = [read[kernel].get((block, t), []) for block in range(blocks) for t in range(cut.threads)]
        of_block = [threads[i : i + cut.threads] for i in range(0, len(threads), cut.threads)]
        return [{pack for packs in one for pack in packs} for one in of_block], of_block

    (forward, walked), (back, walked_back) = by_block("reduce"), by_block("normalize")
    assert back == forward[::-1]
    assert max(len(packs) for one in walked for packs in one) > 1
    for ascending, descending in ((walked, walked_back),):
        assert all(packs == sorted(packs) for one in ascending for packs in one)
        assert all(packs == sorted(packs)[::-1] for one in descending for packs in one)


@pytest.mark.each_value
@pytest.mark.parametrize("shape", [(4, 3, 64), (2, 3, 67), (120, 12), (37, 3), (9, 3, 5)], ids=str)
@pytest.mark.parametrize("momentum", [0.3, None])
def test_statistics_folded_in_on_the_way_are_those_of_a_launch_of_its_own(cupy, rng, shape, momentum):
    """A state that leaves out what is not finite takes it."""
    states = [nbnorm.BatchNormState(shape[1], momentum=momentum, device="cuda") for _ in range(2)]
    states[1].skip_nonfinite = True
    for _ in range(2):
        x = cupy.asarray(sample(rng, shape))
        for state in states:
            nbnorm.batch_norm_training(x, state)
    on_the_way, apart = (
        [np.asarray(a).tobytes() for a in (s.running_mean.get(), s.running_var.get(), s.num_batches, s.num_samples)]
        for s in states
    )
    assert on_the_way == apart
