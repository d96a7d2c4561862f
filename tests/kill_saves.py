"""Kill processes that save states to one file; the file must always be one of these states, as a whole.

At least 50, and as many more as it takes on this machine until 10 have met a save and 10 states were seen.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from nbnorm import BatchNormState

FEATURES = 1_000  # few: then most of the time a file is being written, which waits for the disk


def state_of(number):
    state = BatchNormState(FEATURES)
    state.gamma = state.beta = state.running_mean = state.running_var = np.full(FEATURES, float(number))
    return state


def main(path):
    rng, number, seen, interrupted, kills = random.Random(0), 1, set(), 0, 0
    for _ in range(3):  # the last takes what another one takes on this machine, as busy as it is
        start = time.perf_counter()
        state_of(number).save(path)
    saving = time.perf_counter() - start
    while kills < 50 or (min(interrupted, len(seen)) < 10 and kills < 500):
        kills += 1
        has_begun, begun = os.pipe()
        child = os.fork()
        if not child:
            os.write(begun, b".")
            while True:
                number += 1
                state_of(number).save(path)
        os.read(has_begun, 1)  # however busy the machine is
        time.sleep(rng.uniform(0, 4 * saving))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(begun)
        os.close(has_begun)
        state, before = BatchNormState.load(path), number
        number = int(state.gamma[0])
        saving = min(1.0, saving * (1.2 if number == before else 0.9))  # as busy as the machine is now
        for array in (state.gamma, state.beta, state.running_mean, state.running_var):
            assert np.all(array == number)
        seen.add(number)
        for left in path.parent.glob(".nbnorm-*.tmp"):
            interrupted += 1
            left.unlink()
    print(f"{kills} kills, {interrupted} during a save, {len(seen)} different states")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
