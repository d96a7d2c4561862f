"""Block: sums over its threads."""

from __future__ import annotations

from nbnorm._cuda import plan
from nbnorm._cuda.launch import cuda
from nbnorm._cuda.vector import from_further, routine


@routine
def block_sums(s, q, shared, t, threads):
    """Sums over the threads of a block, known to all of them: in a tree over each warp, then from warp to warp."""
    delta = plan.WARP // 2
    while delta > 0:
        s += from_further(s, delta)
        q += from_further(q, delta)
        delta //= 2
    if t % plan.WARP == 0:
        shared[2 * (t // plan.WARP)], shared[2 * (t // plan.WARP) + 1] = s, q
    cuda.syncthreads()
    total_s, total_q = shared[0], shared[1]
    for warp in range(1, threads // plan.WARP):
        total_s += shared[2 * warp]
        total_q += shared[2 * warp + 1]
    return total_s, total_q
