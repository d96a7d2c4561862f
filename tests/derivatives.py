"""What derivatives may differ from the oracle, by the sizes of the terms that they are sums of; and a check of both."""

from __future__ import annotations

import numpy as np
import reference
from tolerance import assert_close, assert_gradient_close, assert_stat_close

import nbnorm


def sizes(ddx, ddgamma, ddbeta, dy, x, gamma, eps, axis, statistics=None, w=None):
    """Largest terms of ddy and dx in each channel, and the sum of those of dgamma: (channels...) each.

    docs/math.md, the equations of double backward, with the magnitude of every product in the place of the product.
    Where values count w times, g_left is dy - w*sum(dy)/sum(w), and ddx loses its weighted mean.
    """
    if w is not None:
        gone = reference.absent(x, w)
        dy, ddx = (None if values is None else np.where(gone, 0, values) for values in (dy, ddx))
        if statistics is not None:
            x, w = np.where(gone, 0, x), None
    v, g = reference.by_channel(x, axis), reference.by_channel(dy, axis)
    z = np.zeros_like(g) if ddx is None else reference.by_channel(ddx, axis)
    n, channels = v.shape[-1], v.shape[:-1]
    often = 1
    if w is not None:
        c, _, m2, total = reference.weighted_centred(x, w, axis)
        c, often, n = np.where(reference.by_channel(gone, axis) > 0, 0, c), reference.by_channel(w, axis), total
        n, var = n[..., None], (m2 / n)[..., None]
        g_left = g - often * g.sum(-1, keepdims=True) / n
        z_left = z - (often * np.where(often > 0, z, 0)).sum(-1, keepdims=True) / n
    elif statistics is None:
        c, g_left, z_left = (reference.centred(values)[0] for values in (v, g, z))
        var = (c * c).mean(-1, keepdims=True)
    else:
        c, g_left, z_left = v - reference.wide(statistics[0])[..., None], g, z
        var = reference.wide(statistics[1])[..., None]
    inv_std = 1 / np.sqrt(var + reference.Wide(eps))
    a = np.abs(reference.parameter(gamma, 1, channels)) * inv_std
    G, b = np.abs(reference.parameter(ddgamma, 0, channels)), np.abs(reference.parameter(ddbeta, 0, channels))
    x_hat, g_left, z_left = np.abs(c) * inv_std, np.abs(g_left), np.abs(z_left)
    sigma, alpha, delta = (
        (one * other).sum(-1, keepdims=True) / n
        for one, other in ((g_left, z_left), (often * z_left, x_hat), (g_left, x_hat))
    )
    if statistics is not None:
        alpha = delta = 0
    f = inv_std * (G + a * alpha)
    of_ddy = a * z_left + f / inv_std * x_hat + b
    of_dx = f * g_left + often * a * inv_std * delta * z_left
    if statistics is None:
        of_dx += often * inv_std * (a * (sigma + 3 * alpha * delta) + G * delta) * x_hat
    of_dgamma = np.broadcast_to(n * inv_std * (sigma + alpha * delta), (*channels, 1))
    return of_ddy.max(-1), of_dx.max(-1), of_dgamma[..., 0]


def assert_array_close(found, exact, terms, axis, in_single=False):
    """An array like x: 1e-12 of its terms for float64 data, the contract of docs/numerics.md for all else.

    `in_single`: computed in float32, as dx is. The first of its terms begins at a value of ddx, which is no further
    from the mean than the largest: three times the largest terms.
    """
    if found.dtype == np.float64:
        found, exact = (reference.by_channel(values, axis) for values in (found, exact))
        assert_gradient_close(found, exact, terms[..., None])
    else:
        sizes = np.broadcast_to(3 * terms[..., None], reference.by_channel(found, axis).shape)
        assert_close(found, exact, axis, reference.like(sizes, found, axis) if in_single else None)


def exact_derivatives(ddx, ddgamma, ddbeta, dy, x, state, axis, running=None, w=None):
    """Both from the oracle; `w` is how often values count."""
    rest = state.gamma, state.eps, axis
    if w is None:
        exact = reference.double_backward(ddx, ddgamma, ddbeta, dy, x, *rest, running)
        return exact, reference.derivatives(ddx, ddgamma, ddbeta, x, *rest, running)
    if running is None:
        exact = reference.weighted_double_backward(ddx, ddgamma, ddbeta, dy, x, w, *rest)
        return exact, reference.weighted_derivatives(ddx, ddgamma, ddbeta, x, w, *rest)
    gone = reference.absent(x, w)
    x, dy, ddx = (None if values is None else np.where(gone, 0, values) for values in (x, dy, ddx))
    exact = reference.double_backward(ddx, ddgamma, ddbeta, dy, x, *rest, running)
    exact = exact._replace(ddy=np.where(gone, 0, exact.ddy))
    return exact, np.where(gone, 0, reference.derivatives(ddx, ddgamma, ddbeta, x, *rest, running))


def assert_derivatives(
    found, tangent, ddx, ddgamma, ddbeta, dy, x, state, axis, running=None, w=None, in_single=None, on_gpu=False
):  # fmt: skip
    """What `batch_norm_double_backward` and `batch_norm_jvp` gave, as arrays of the CPU.

    `in_single`: ddy and the tangent are computed in float32: where every value counts, what None stands for.
    On a GPU also dx, where there is no ddx.
    """
    terms = sizes(ddx, ddgamma, ddbeta, dy, x, state.gamma, state.eps, axis, running, w)
    exact, exact_tangent = exact_derivatives(ddx, ddgamma, ddbeta, dy, x, state, axis, running, w)
    in_single = w is None if in_single is None else in_single
    of_two = in_single and ddx is not None  # what is a map of x alone is as good as y
    assert_array_close(found[0], exact.ddy, terms[0], axis, of_two)
    assert_array_close(found[1], exact.dx, terms[1], axis, on_gpu and in_single and ddx is None)
    assert_array_close(tangent, exact_tangent, terms[0], axis, of_two)
    dgamma = found[2]
    assert (dgamma is None) == (state.gamma is None)
    if dgamma is not None:
        assert (dgamma.dtype, dgamma.shape) == (state.gamma.dtype, state.gamma.shape)
        if x.dtype == np.float64 and dgamma.dtype == np.float64:
            assert_gradient_close(dgamma, exact.dgamma, terms[2])
        else:
            assert_stat_close(dgamma, exact.dgamma)


def check_derivatives(ddx, ddgamma, ddbeta, dy, saved, state, running=None, w=None):
    """Run `batch_norm_double_backward` and `batch_norm_jvp` and compare. Returns what the first one gave."""
    x = saved.x
    given = [a for a in (x, dy, ddx, ddgamma, ddbeta) if a is not None]
    before = [a.tobytes() for a in given]
    found = nbnorm.batch_norm_double_backward(ddx, ddgamma, ddbeta, dy, saved)
    tangent = nbnorm.batch_norm_jvp(ddx, ddgamma, ddbeta, saved)
    assert [a.tobytes() for a in given] == before
    for array in (found.ddy, found.dx, tangent):
        assert (array.strides, array.dtype) == (np.empty_like(x).strides, x.dtype)
    assert_derivatives(found, tangent, ddx, ddgamma, ddbeta, dy, x, state, saved.axis, running, w)
    return found
