"""Finalize: from the sums of a channel to its statistics and to the coefficients of its map. O(C), in float64.

`stats` (5 to 8, C) is what a forward pass knows of each channel, `sums` (3, C) what reduce found;
_channel_rows.py names their rows. `coef` is what apply needs (coefficients.py).
"""

from __future__ import annotations

import numpy as np
from numba import float64

from nbnorm._channel_rows import COUNT, DEVIATION, DY_ORIGIN, GAMMA, INV_STD, M2, ORIGIN, PRODUCT, SUM
from nbnorm._cpu.arrays import double, set_double
from nbnorm._cpu.coefficients import set_gradient_map, set_map
from nbnorm._cpu.launch import Compiled
from nbnorm._cpu.vector import function, once, routine
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

BETA = DY_ORIGIN  # a row of sums, in a forward pass, which has no dy
DGAMMA, DBETA = PRODUCT, SUM  # what the sums have become behind `finalize_channel`


@routine
def parameter(values, c, C, default):
    """Gamma or beta of channel c: `values` are float32 numbers, or the halves of float64 ones, or there are none."""
    if values.size == C:
        result = float64(values[c])
    elif values.size == 0:
        result = default
    else:
        result = double(values, c)
    return result


@routine
def set_parameter(values, c, C, number):
    """The same to be written, where there is a place for it."""
    if values.size == C:
        values[c] = number
    elif values.size > 0:
        set_double(values, c, number)


@routine
def set_parameter_gradients(dgamma, dbeta, c, C, sum_dy, sum_dy_xmu, inv_std):
    """Those of channel c, of a state that has the parameters."""
    set_parameter(dgamma, c, C, gamma_gradient(sum_dy_xmu, inv_std))
    set_parameter(dbeta, c, C, sum_dy)


@once
def count_of(count, c, stats):
    """W of channel c: `count`, or where that is None what reduce found."""
    result = count
    if count is None:
        result = stats[COUNT, c]
    return result


@once
def divisor_of(count, c, stats):
    """The same, and 1 for 0: every sum is 0 then."""
    result = count
    if count is None:
        result = stats[COUNT, c] + (stats[COUNT, c] == 0.0)
    return result


@function
def read_parameter(values, default, first, last, C, row):
    """row[first:last] = gamma or beta, as float64: in the loop of `finalize_channels` its forms would be branches, for
    each of which LLVM makes a loop of its own."""
    for c in range(np.uintp(first), np.uintp(last)):
        row[c] = parameter(values, c, C, default)


@function
def write_parameter(values, first, last, C, row):
    """The way back, for gradients."""
    for c in range(np.uintp(first), np.uintp(last)):
        set_parameter(values, c, C, row[c])


@once
def read_parameters(gamma, beta, first, last, stats, sums):
    """gamma into stats and beta into sums; nothing in a backward pass, where they are None."""
    if gamma is not None:
        read_parameter(gamma, 1.0, first, last, stats.shape[1], stats[GAMMA])
        read_parameter(beta, 0.0, first, last, stats.shape[1], sums[BETA])


@once
def write_gradients(dgamma, dbeta, first, last, sums):
    """From sums, behind `finalize_channel`; nothing in a forward pass, where they are None."""
    if dgamma is not None:
        write_parameter(dgamma, first, last, sums.shape[1], sums[DGAMMA])
        write_parameter(dbeta, first, last, sums.shape[1], sums[DBETA])


@once
def finalize_channel(dy, gamma, c, stats, sums, eps, count, coef):
    """Eq. 4 to 6 when dy is None, Eq. 11 and 12 when gamma is: Numba drops what stands under a test that None fails."""
    n = divisor_of(count, c, stats)
    if gamma is not None:
        d, m2 = moments(sums[SUM, c], sums[PRODUCT, c], n)
        inv_std, g = inverse_std(m2 / n, eps), stats[GAMMA, c]
        stats[DEVIATION, c], stats[M2, c], stats[INV_STD, c] = d, m2, inv_std
        scale, shift = normalizing_map(d, inv_std, g, sums[BETA, c])
        set_map(coef, c, stats[ORIGIN, c], scale, shift, m2 > 0.0)
    if dy is not None:
        s, d, h = sums[SUM, c], stats[DEVIATION, c], sums[DY_ORIGIN, c]
        sum_dy_xmu, inv_std = centred_product(s, sums[PRODUCT, c], d), stats[INV_STD, c]
        a, scale, shift = gradient_map(s, sum_dy_xmu, d, n, stats[GAMMA, c], inv_std)
        set_gradient_map(coef, c, h, a, stats[ORIGIN, c], scale, shift)
        sums[DGAMMA, c], sums[DBETA, c] = gamma_gradient(sum_dy_xmu, inv_std), whole_sum(s, h, n)


@once
def finalize_channels(dy, gamma, first, last, stats, sums, eps, count, coef):
    """Channels first:last. Unsigned, so that no index may be negative: then LLVM divides eight at a time."""
    for c in range(np.uintp(first), np.uintp(last)):
        finalize_channel(dy, gamma, c, stats, sums, eps, count, coef)


@Compiled
def finalize(dy, stats, sums, gamma, beta, dgamma, dbeta, eps, count, coef):
    first, C = np.intp(0), stats.shape[1]
    read_parameters(gamma, beta, first, C, stats, sums)
    finalize_channels(dy, gamma, first, C, stats, sums, eps, count, coef)
    write_gradients(dgamma, dbeta, first, C, sums)


@Compiled
def move_origins(stats, single, some):
    """Origins that are far from the mean, to the mean, Eq. 43, as float32 where x has no more digits. `some` (1,) gets
    whether there were any: their sums are to be taken again.
    """
    some[0] = False
    for c in range(stats.shape[1]):
        if is_far(stats[DEVIATION, c], stats[M2, c], stats[COUNT, c]):
            k = stats[ORIGIN, c] + stats[DEVIATION, c]
            if single:
                k = float64(np.float32(k))
            some[0] |= k != stats[ORIGIN, c]
            stats[ORIGIN, c] = k


@Compiled
def finalize_given(stats, gamma, beta, eps, count, coef):
    """For stats whose d and m2 are known."""
    C = stats.shape[1]
    for c in range(C):
        inv_std, g = inverse_std(stats[M2, c] / divisor_of(count, c, stats), eps), parameter(gamma, c, C, 1.0)
        stats[INV_STD, c], stats[GAMMA, c] = inv_std, g
        scale, shift = normalizing_map(stats[DEVIATION, c], inv_std, g, parameter(beta, c, C, 0.0))
        set_map(coef, c, stats[ORIGIN, c], scale, shift, stats[M2, c] > 0.0)


@Compiled
def finalize_scale(scale, coef):
    """y = scale*x."""
    for c in range(coef.shape[1]):
        set_map(coef, c, 0.0, scale[c], 0.0, True)


@once
def finalize_running(scratch, gamma, beta, eps, stats, coef):
    """The running statistics in the place of a batch's: k is the mean, d is 0; stats, unless None, get var for m2.

    scratch (4 * C): means and variances, and room for gamma and beta.
    """
    first, C = np.intp(0), coef.shape[1]
    mean, var, g, b = scratch, scratch[C:], scratch[2 * C :], scratch[3 * C :]
    read_parameter(gamma, 1.0, first, C, C, g)
    read_parameter(beta, 0.0, first, C, C, b)
    for c in range(np.uintp(C)):
        inv_std = inverse_std(var[c], eps)
        if stats is not None:
            stats[ORIGIN, c], stats[DEVIATION, c], stats[M2, c] = mean[c], 0.0, var[c]
            stats[INV_STD, c], stats[GAMMA, c] = inv_std, g[c]
        scale, shift = normalizing_map(0.0, inv_std, g[c], b[c])
        set_map(coef, c, mean[c], scale, shift, True)
