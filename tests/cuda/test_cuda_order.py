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
    """By kernel: the packs that each block loaded, blocks in the order in which a GPU starts them."""
    from nbnorm._cuda import apply, launch, reduce

    found = {}

    def recording(module):
        loads, load = found.setdefault(module.__name__.rpartition(".")[2], defaultdict(set)), module.load

        def recorded(packs, i):
            if packs is not None:
                loads[launch.cuda.blockIdx.x + launch.cuda.blockIdx.y * launch.cuda.gridDim.x].add(int(i))
            return load(packs, i)

        monkeypatch.setattr(module, "load", recorded)

    for module in (reduce, apply):
        recording(module)
    return found


@pytest.mark.parametrize("shape", [(4, 3, 64), (120, 12)], ids=str)
def test_what_is_read_last_is_read_again_first(cupy, rng, read, shape):
    """It is still in the second-level cache."""
    from nbnorm._cuda import plan

    x, dy = (cupy.asarray(sample(rng, shape)) for _ in range(2))
    across, down = plan.cut((*shape, 1)[:3], 4).grid
    assert min(across, down) > 1
    state = nbnorm.BatchNormState(shape[1], device="cuda")
    _, saved = nbnorm.batch_norm_training(x, state)
    forward = {name: [blocks[i] for i in range(across * down)] for name, blocks in read.items()}
    assert forward["apply"] == forward["reduce"][::-1]
    for blocks in read.values():
        blocks.clear()
    nbnorm.batch_norm_backward(dy, saved)
    backward = {name: [blocks[i] for i in range(across * down)] for name, blocks in read.items()}
    assert backward["apply"] == backward["reduce"][::-1] == forward["apply"]


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
