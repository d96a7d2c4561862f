"""Finalize: from the parts of a channel to its statistics and to the coefficients of its map. O(C), float64.

`stats` (5 to 8, C) is what a forward pass knows of each channel; _channel_rows.py names its rows. The routines
return the coefficients of y = scale*(x - k) + shift, with whether the channel varies, or
dx = scale*(x - k) + shift + a*(dy - h); `coef` (6, C) has them as rows, (7, C) those of a map with b*(ddx - o) too
(coefficients.py).

Every block of apply.py does this for the channels that it needs anyway, and the one that is `first` writes down what is
found and folds it into the running statistics (commits.py). The kernels here are for what lies between reduce and apply
elsewhere: masks, shards, statistics alone, derivatives. A block works on one channel, or a thread where there are no
parts to add.
"""

from __future__ import annotations

from numba import float32, float64

from nbnorm._channel_rows import COUNT, DEVIATION, GAMMA, INV_STD, M2, ORIGIN, SIGN_SCALE, SIGN_SHIFT
from nbnorm._cuda import plan
from nbnorm._cuda.block import block_sums
from nbnorm._cuda.coefficients import ORIGIN_OF_X, SCALE, SHIFT, VARIES, A, H
from nbnorm._cuda.launch import Kernel, cuda
from nbnorm._cuda.plan import PAIRS
from nbnorm._cuda.vector import from_further, routine
from nbnorm._formulas import (
    centred_product,
    gamma_gradient,
    gradient_map,
    inverse_std,
    is_far,
    moments,
    normalizing_map,
    whole_sum,
)

HALF = PAIRS // 2
UNKNOWN = -1.0  # the count of a batch that has one for each channel


@routine
def channel_sums(parts, shared, c, C, run, copies, t, T):
    """s and q of channel c: in each of `copies` rows side by side, `run` pairs of its columns and their parts."""
    s, q = own_sums(parts, c, C, run, copies, t, T)
    return block_sums(s, q, shared, t, T)


@routine
def own_sums(parts, c, C, run, copies, t, T):
    """What one of T threads that share channel c adds up of it. Four pairs are on their way at once."""
    s, q = 0.0, 0.0
    for copy in range(copies):
        at, end = 2 * ((copy * C + c) * run + t), 2 * (copy * C + c + 1) * run
        while at + 6 * T < end:
            s0, q0, s1, q1 = parts[at], parts[at + 1], parts[at + 2 * T], parts[at + 2 * T + 1]
            s2, q2, s3, q3 = parts[at + 4 * T], parts[at + 4 * T + 1], parts[at + 6 * T], parts[at + 6 * T + 1]
            s, q = s + s0 + s1 + s2 + s3, q + q0 + q1 + q2 + q3
            at += 8 * T
        while at < end:
            s, q = s + parts[at], q + parts[at + 1]
            at += 2 * T
    return s, q


@routine
def sums_of_channels(parts, shared, first, D, C, run, copies, t, T):
    """s and q of D channels of a block, the first of them `first`, around: at shared[i] and HALF behind that.

    As many threads of a warp share a channel as there are for each.
    """
    shares = 1
    while 2 * shares * D <= T and shares < plan.WARP:
        shares *= 2
    i, share, begun = t // shares, t % shares, 0
    while begun < D:  # all threads together, as from_further needs it
        s, q = 0.0, 0.0
        if i < D:
            s, q = own_sums(parts, (first + i) % C, C, run, copies, share, shares)
        delta = shares // 2
        while delta > 0:
            s += from_further(s, delta)
            q += from_further(q, delta)
            delta //= 2
        if share == 0 and i < D:
            shared[i], shared[HALF + i] = s, q
        i += T // shares
        begun += T // shares
    cuda.syncthreads()


@routine
def parameter(values, c, default):
    """Gamma or beta of channel c."""
    result = default
    if values is not None:
        result = float64(values[c])
    return result


@routine
def known_forward(c, C, stats, gamma, beta):
    """What finalize_forward has to know of channel c. A kernel asks for it before it adds up the sums, which takes as
    long as memory does."""
    return stats[ORIGIN * C + c], parameter(gamma, c, 1.0), parameter(beta, c, 0.0)


@routine
def finalize_forward(s, q, c, C, first, known, stats, eps, count):
    """Eq. 4 to 6: the map, and mean and m2."""
    k, gamma, beta = known
    d, m2 = moments(s, q, count)
    inv_std = inverse_std(m2 / count, eps)
    scale, shift = normalizing_map(d, inv_std, gamma, beta)
    if first:
        stats[DEVIATION * C + c], stats[M2 * C + c], stats[INV_STD * C + c] = d, m2, inv_std
        stats[GAMMA * C + c] = gamma
    return k, scale, shift, k + d, m2


@routine
def keep_sign_map(c, C, first, slope, residual, scale, shift, stats):
    """The map of x, for a backward pass that asks for the sign of y; beside a residual it has y."""
    if slope is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if residual is None:  # noqa: SIM102
            if first:
                stats[SIGN_SCALE * C + c], stats[SIGN_SHIFT * C + c] = scale, shift


@routine
def known_backward(c, C, stats):
    """The same for finalize_backward."""
    return stats[ORIGIN * C + c], stats[DEVIATION * C + c], stats[INV_STD * C + c], stats[GAMMA * C + c]


@routine
def finalize_backward(s, q, c, first, h, known, dgamma, dbeta, count):
    """Eq. 11 and 12, and the gradients of the parameters."""
    k, d, inv_std, gamma = known
    sum_dy_xmu = centred_product(s, q, d)
    a, scale, shift = gradient_map(s, sum_dy_xmu, d, count, gamma, inv_std)
    if first:
        if dgamma is not None:
            dgamma[c] = gamma_gradient(sum_dy_xmu, inv_std)
        if dbeta is not None:
            dbeta[c] = whole_sum(s, h, count)
    return k, scale, shift, a, h


@routine
def running_coefficients(c, C, first, stats, gamma, beta, mean, var, eps):
    """The running statistics in the place of a batch's: k is the mean itself, d is 0.

    Kept if there are stats, in the place of m2 the variance.
    """
    k, inv_std = mean[c], inverse_std(var[c], eps)
    scale, shift = normalizing_map(0.0, inv_std, parameter(gamma, c, 1.0), parameter(beta, c, 0.0))
    if stats is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if first:
            stats[ORIGIN * C + c], stats[DEVIATION * C + c], stats[M2 * C + c] = k, 0.0, var[c]
            stats[INV_STD * C + c], stats[GAMMA * C + c] = inv_std, parameter(gamma, c, 1.0)
    return k, scale, shift


@routine
def count_of(count, c, C, stats):
    """W of channel c: `count`, or where that is UNKNOWN what reduce found."""
    return stats[COUNT * C + c] if count == UNKNOWN else count


@routine
def divisor_of(count, c, C, stats):
    """The same, and 1 for 0: every sum is 0 then."""
    n = count_of(count, c, C, stats)
    return 1.0 if n == 0.0 else n


@Kernel
def count_channels(parts, stats, C, run, copies, at):
    """Block c: stats[COUNT] of channel c from the parts at parts[at:]."""
    c, t, T = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(PAIRS, float64)
    count = 0.0
    j = t
    while j < copies * run:  # a range would divide by its step
        count += parts[at + (j // run * C + c) * run + j % run]
        j += T
    count, _ = block_sums(count, 0.0, shared, t, T)
    if t == 0:
        stats[COUNT * C + c] = count


@Kernel
def finalize(parts, stats, gamma, beta, coef, C, run, copies, count, eps):
    """Block c: channel c of a forward pass."""
    c, t, T = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(PAIRS, float64)
    s, q = channel_sums(parts, shared, c, C, run, copies, t, T)
    if t == 0:
        n = divisor_of(count, c, C, stats)
        known = known_forward(c, C, stats, gamma, beta)
        k, scale, shift, _, m2 = finalize_forward(s, q, c, C, True, known, stats, eps, n)
        if coef is not None:
            coef[ORIGIN_OF_X * C + c], coef[SCALE * C + c], coef[SHIFT * C + c] = k, scale, shift
            coef[VARIES * C + c] = 1.0 if m2 > 0.0 else 0.0


@Kernel
def finalize_gradient(parts, stats, dgamma, dbeta, coef, C, run, copies, at_h, frozen, count):
    """Block c: channel c of a backward pass. With frozen statistics dx is gamma*inv_std*dy, as a map of dy and x, which
    may have no value.
    """
    c, t, T = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(PAIRS, float64)
    s, q = channel_sums(parts, shared, c, C, run, copies, t, T)
    if t == 0:
        n = divisor_of(count, c, C, stats)
        known = known_backward(c, C, stats)
        k, scale, shift, a, h = finalize_backward(s, q, c, True, parts[at_h + c], known, dgamma, dbeta, n)
        if frozen:
            scale, shift = 0.0, 0.0
        coef[ORIGIN_OF_X * C + c], coef[SCALE * C + c], coef[SHIFT * C + c] = k, scale, shift
        coef[A * C + c], coef[H * C + c] = a, h


@Kernel
def finalize_given(stats, gamma, beta, coef, C, count, eps):
    """Eq. 5 and 6, for stats whose d and m2 are known."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        inv_std, scale = inverse_std(stats[M2 * C + c] / divisor_of(count, c, C, stats), eps), parameter(gamma, c, 1.0)
        stats[INV_STD * C + c], stats[GAMMA * C + c] = inv_std, scale
        scale, shift = normalizing_map(stats[DEVIATION * C + c], inv_std, scale, parameter(beta, c, 0.0))
        coef[ORIGIN_OF_X * C + c], coef[SCALE * C + c], coef[SHIFT * C + c] = stats[ORIGIN * C + c], scale, shift
        coef[VARIES * C + c] = 1.0 if stats[M2 * C + c] > 0.0 else 0.0


@Kernel
def move_origins(stats, some, C, single):
    """Origins that are far from the mean, to the mean, Eq. 43, as float32 where x has no more digits. `some` (1,) is
    not 0 then: their sums are to be taken again.
    """
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C and is_far(stats[DEVIATION * C + c], stats[M2 * C + c], stats[COUNT * C + c]):
        k = stats[ORIGIN * C + c] + stats[DEVIATION * C + c]
        if single:
            k = float64(float32(k))
        if k != stats[ORIGIN * C + c]:
            some[0] = 1.0
        stats[ORIGIN * C + c] = k
