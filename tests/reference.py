"""The oracle: batch normalization as plainly as it can be written, in long double, from exact input values.

Imports nothing of nbnorm. Means are taken twice (what is left of the mean after centring is subtracted too),
so every result is good to about 2**-60 of the channel's spread, at any mean. x comes with its channel axis,
an int or a tuple, anywhere; per-channel results are long double arrays, shape of the channel axes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Wide = np.longdouble
# float64 results need an oracle that is wider than float64; for narrower types float64 itself is wide enough.
WIDER_THAN_FLOAT64 = np.finfo(Wide).nmant > np.finfo(np.float64).nmant


class Forward(NamedTuple):
    y: Any
    mean: Any
    var: Any  # biased
    count: int


class Backward(NamedTuple):
    dx: Any
    dgamma: Any
    dbeta: Any
    terms: Any = None  # the magnitudes of those that dx is a sum of


def channel_axes(x, axis):
    return tuple(i % x.ndim for i in (axis if isinstance(axis, tuple) else (axis,)))


def by_channel(x, axis):
    """x as long double, shape (channels..., n): the values of a channel side by side, in memory too, where NumPy adds
    them up pairwise. Elsewhere it adds one after the other, and loses up to n units of 2**-64.
    """
    axes = channel_axes(x, axis)
    front = np.moveaxis(np.asarray(x), axes, range(len(axes)))
    channels = front.shape[: len(axes)]
    n = x.size // max(1, int(np.prod(channels)))
    exact = front.astype(np.float64) if x.dtype.itemsize < 8 else front
    return exact.astype(Wide, order="C").reshape(*channels, n)


def like(values, x, axis):
    """The inverse of `by_channel`: values in the shape of x."""
    axes = channel_axes(x, axis)
    rest = [n for i, n in enumerate(x.shape) if i not in axes]
    front = values.reshape(*(x.shape[i] for i in axes), *rest)
    return np.moveaxis(front, range(len(axes)), axes)


def wide(value):
    return np.asarray(value).astype(Wide)


def exact(array):
    """The values of an array of any dtype."""
    array = np.asarray(array)
    return wide(array.astype(np.float64) if array.dtype.itemsize < 8 else array)


def parameter(value, default, channels):
    """gamma or beta, or what stands for None, with a place for the values."""
    return (np.full(channels, default, Wide) if value is None else wide(value))[..., None]


def centred(v):
    """v - mean, and the mean, each channel."""
    mean = v.mean(-1, keepdims=True)
    c = v - mean
    rest = c.mean(-1, keepdims=True)
    return c - rest, (mean + rest)[..., 0]


def stats(x, axis=1):
    """Count, mean and m2 = sum((x - mean)**2)."""
    c, mean = centred(by_channel(x, axis))
    return c.shape[-1], mean, (c * c).sum(-1)


def training(x, gamma=None, beta=None, eps=1e-5, axis=1):
    c, mean = centred(by_channel(x, axis))
    var = (c * c).mean(-1)
    x_hat = c / np.sqrt(var + Wide(eps))[..., None]
    y = parameter(gamma, 1, mean.shape) * x_hat + parameter(beta, 0, mean.shape)
    return Forward(like(y, x, axis), mean, var, c.shape[-1])


def inference(x, running_mean, running_var, gamma=None, beta=None, eps=1e-5, axis=1):
    v = by_channel(x, axis)
    mean, var = wide(running_mean)[..., None], wide(running_var)[..., None]
    x_hat = (v - mean) / np.sqrt(var + Wide(eps))
    return like(parameter(gamma, 1, v.shape[:-1]) * x_hat + parameter(beta, 0, v.shape[:-1]), x, axis)


def moving_average(running_mean, running_var, mean, m2, count, momentum):
    """The running statistics after a batch: momentum is the weight of the new, whose variance is unbiased."""
    old, m = Wide(1) - Wide(momentum), Wide(momentum)
    return old * wide(running_mean) + m * mean, old * wide(running_var) + m * (m2 / (count - 1))


def middle(dy, x, axis=1):
    """The value of dy that sums of each channel start from (docs/math.md, Eq. 2): of nine from all over the channel, in
    the order of memory, the median of three medians. None where the indices of a channel lie apart in memory.
    """
    axes, long = channel_axes(x, axis), [i for i in range(x.ndim) if x.shape[i] != 1]
    order, channels = sorted(long, key=lambda i: -abs(x.strides[i])), [i for i in axes if i in long]
    first = order.index(channels[0]) if channels else 0
    before, behind = order[:first], order[first + len(channels) :]
    if not x.size or order != before + channels + behind:
        return None
    short = [i for i in range(x.ndim) if i not in (*axes, *long)]
    N, S = (int(np.prod([x.shape[i] for i in part])) for part in (before, behind))
    g = exact(dy).transpose(*axes, *before, *behind, *short).reshape(*(x.shape[i] for i in axes), N, S)
    nine = np.stack([g[..., (N - 1) * part // 8, (S - 1) * part // 8] for part in range(9)])
    return np.median([np.median(nine[first::3], 0) for first in range(3)], 0)


def backward(dy, x, gamma=None, eps=1e-5, axis=1, h=None):
    """Gradients of `training`; the sum that dx is starts from h, or where that is None from any value of dy."""
    g, (c, _) = by_channel(dy, axis), centred(by_channel(x, axis))
    inv_std = 1 / np.sqrt((c * c).mean(-1, keepdims=True) + Wide(eps))
    x_hat = c * inv_std
    g_centred = g - g.mean(-1, keepdims=True)
    of_x = x_hat * (g * x_hat).mean(-1, keepdims=True)
    a = parameter(gamma, 1, g.shape[:-1]) * inv_std
    # dx = a*(g - h) - a*(mean(g) - h) - a*of_x. As h is a value of dy, mean(g) - h is at most the largest g_centred.
    if h is None:
        from_h = np.abs(g_centred).max(-1, keepdims=True, initial=0)
        of_y = np.abs(g_centred) + from_h
    else:
        from_h, of_y = np.abs(g.mean(-1, keepdims=True) - h[..., None]), np.abs(g - h[..., None])
    terms = np.abs(a) * (of_y + from_h + np.abs(of_x))
    dx = a * (g_centred - of_x)
    return Backward(like(dx, x, axis), (g * x_hat).sum(-1), g.sum(-1), like(terms, x, axis))


def frozen_backward(dy, x, mean, var, gamma=None, eps=1e-5, axis=1):
    """Gradients of `inference`: the statistics are constants."""
    g = by_channel(dy, axis)
    inv_std = 1 / np.sqrt(wide(var)[..., None] + Wide(eps))
    x_hat = (by_channel(x, axis) - wide(mean)[..., None]) * inv_std
    dx = parameter(gamma, 1, g.shape[:-1]) * inv_std * g
    return Backward(like(dx, x, axis), (g * x_hat).sum(-1), g.sum(-1))


def counts(x, where=None, weights=None, omit=False):
    """How often each value of x counts, long double in the shape of x."""
    x = np.asarray(x)
    w = np.ones(x.shape, Wide)
    if where is not None:
        w = w * np.broadcast_to(where, x.shape)
    if weights is not None:
        w = w * np.broadcast_to(weights, x.shape).astype(Wide)
    return np.where(np.isnan(x.astype(np.float64)), 0, w) if omit else w


def absent(x, w):
    """Where x has no value: not a number that could be moved, and one that does not count."""
    return (w == 0) & ~np.isfinite(x.astype(Wide))


def weighted_centred(x, w, axis):
    """x - mean of all, and mean, sum(w*(x - mean)**2) and sum(w) of each channel; mean and m2 are 0 where that is."""
    v, w = by_channel(x, axis), by_channel(w, axis)
    count = w.sum(-1, keepdims=True)
    share = w / np.where(count == 0, 1, count)

    def average(values):
        return (share * np.where(w > 0, values, 0)).sum(-1, keepdims=True)

    mean = average(v)
    rest = average(v - mean)
    c = (v - mean) - rest
    return c, (mean + rest)[..., 0], (w * np.where(w > 0, c, 0) ** 2).sum(-1), count[..., 0]


def weighted_stats(x, w, axis=1):
    """Count, mean and m2."""
    _, mean, m2, count = weighted_centred(x, w, axis)
    return count, mean, m2


def weighted_training(x, w, gamma=None, beta=None, eps=1e-5, axis=1):
    """`training` with values that count w times."""
    c, mean, m2, count = weighted_centred(x, w, axis)
    x_hat = c / np.sqrt(m2 / count + Wide(eps))[..., None]
    y = parameter(gamma, 1, mean.shape) * x_hat + parameter(beta, 0, mean.shape)
    return Forward(like(y, x, axis), mean, m2 / count, count)


def weighted_backward(dy, x, w, gamma=None, eps=1e-5, axis=1):
    """Gradients of `weighted_training`, by the chain rule through variance and mean."""
    c, _, m2, count = weighted_centred(x, w, axis)
    gone = by_channel(absent(x, w).astype(Wide), axis) > 0
    c, g, share = np.where(gone, 0, c), np.where(gone, 0, by_channel(dy, axis)), by_channel(w, axis) / count[..., None]
    inv_std = 1 / np.sqrt((m2 / count)[..., None] + Wide(eps))
    of_y = g * parameter(gamma, 1, m2.shape)
    of_var = -(of_y * c).sum(-1, keepdims=True) * inv_std**3 / 2
    of_mean = -of_y.sum(-1, keepdims=True) * inv_std
    dx = np.where(gone, 0, of_y * inv_std + share * (of_mean + 2 * c * of_var))
    return Backward(like(dx, x, axis), (g * c * inv_std).sum(-1), g.sum(-1))


def slope_of(activation):
    """f is the identity for positive numbers and this times the identity for others."""
    return {None: 1, "relu": 0}[activation] if not isinstance(activation, tuple) else activation[1]


def activated(z, activation):
    """f(z); complex numbers by their real part."""
    if activation is None:
        return z
    negative = np.zeros_like(z) if activation == "relu" else z * np.real(z).dtype.type(activation[1])
    return np.where(np.isnan(z), z, np.where(np.real(z) > 0, z, negative))


def gated(dy, z, activation):
    """dy*f'(z), 0 and not NaN where f' is 0."""
    dy = exact(dy)
    if activation is None:
        return dy
    return np.where(z > 0, dy, np.zeros_like(dy) if activation == "relu" else dy * wide(activation[1]))


def beside(y, residual=None, activation=None):
    """What a forward pass gives where `y` is the batch normalization alone."""
    return activated(y if residual is None else y + exact(residual), activation)


def groups(x, axis, n):
    """Ghost batches: n indices each of the first axis that is no channel axis, as indices of x."""
    first = min(i for i in range(x.ndim) if i not in channel_axes(x, axis))
    return [(slice(None),) * first + (slice(i, i + n),) for i in range(0, x.shape[first], n)]


def renorm(batch, running_mean, running_var, eps, rmax, dmax):
    """r and d of batch renormalization for what `training` gave."""
    sigma_batch, sigma = np.sqrt(batch.var + Wide(eps)), np.sqrt(wide(running_var) + Wide(eps))
    r = np.clip(sigma_batch / sigma, 1 / Wide(rmax), Wide(rmax))
    return r, np.clip((batch.mean - wide(running_mean)) / sigma, -Wide(dmax), Wide(dmax))


def renormalized(x, r, d, gamma=None, beta=None, eps=1e-5, axis=1):
    """y of batch renormalization, step by step as in the paper."""
    c, mean = centred(by_channel(x, axis))
    sigma = np.sqrt((c * c).mean(-1, keepdims=True) + Wide(eps))
    x_hat = c / sigma * r[..., None] + d[..., None]
    return like(parameter(gamma, 1, mean.shape) * x_hat + parameter(beta, 0, mean.shape), x, axis)


def renormalized_backward(dy, x, r, d, gamma=None, eps=1e-5, axis=1):
    """Gradients of `renormalized`, as the paper lists them: r and d are constants."""
    g, (c, _) = by_channel(dy, axis), centred(by_channel(x, axis))
    n, r, d = g.shape[-1], r[..., None], d[..., None]
    sigma = np.sqrt((c * c).mean(-1, keepdims=True) + Wide(eps))
    of_x_hat = g * parameter(gamma, 1, r.shape[:-1])
    of_sigma = (of_x_hat * c * (-r / sigma**2)).sum(-1, keepdims=True)
    of_mean = (of_x_hat * (-r / sigma)).sum(-1, keepdims=True)
    dx = of_x_hat * r / sigma + of_sigma * c / (n * sigma) + of_mean / n
    return Backward(like(dx, x, axis), (g * (c / sigma * r + d)).sum(-1), g.sum(-1))


def formula(x, gamma, beta, eps, statistics=None, w=None, residual=0, activation=None, r=None, d=None):
    """The textbook formula for x (N, C, S) in the arithmetic of its arguments; works for complex ones too."""
    if statistics is None:
        w = np.ones(x.shape) if w is None else w
        total = w.sum((0, 2), keepdims=True)
        mean = (w * x).sum((0, 2), keepdims=True) / total
        statistics = mean, (w * (x - mean) ** 2).sum((0, 2), keepdims=True) / total
    mean, var = statistics
    x_hat = (x - mean) / np.sqrt(var + eps)
    if r is not None:
        x_hat = x_hat * r[None, :, None] + d[None, :, None]
    return activated(gamma[None, :, None] * x_hat + beta[None, :, None] + residual, activation)


def complex_step(x, dy, gamma, beta, eps, statistics=None, w=None, **beside):
    """Gradients of sum(dy * formula(x, gamma, beta)) for x (N, C, S), float64; what stands beside is constant.

    The imaginary part of f(a + ih)/h is f'(a) without a difference, so a tiny h truncates nothing.
    """
    h = 1e-100

    def derivative(which):
        arguments = [x.astype(complex), gamma.astype(complex), beta.astype(complex)]
        result = np.empty(arguments[which].shape)
        for i in np.ndindex(result.shape):
            arguments[which][i] += 1j * h
            result[i] = (dy * formula(*arguments, eps, statistics, w, **beside)).sum().imag / h
            arguments[which][i] = arguments[which][i].real
        return result

    return Backward(derivative(0), derivative(1), derivative(2))


def derivatives(dx, dgamma, dbeta, x, gamma=None, eps=1e-5, axis=1, statistics=None):
    """The tangent of y (`training`, or with `statistics` = mean, var `inference`), by the chain rule forwards.

    A tangent that is None is 0.
    """
    v, tangent = by_channel(x, axis), 0 if dx is None else by_channel(dx, axis)
    if statistics is None:
        c, c_tangent = centred(v)[0], 0 if dx is None else centred(tangent)[0]
        inv_std = 1 / np.sqrt((c * c).mean(-1, keepdims=True) + Wide(eps))
        inv_std_tangent = -(inv_std**3) * (c * c_tangent).mean(-1, keepdims=True)
    else:
        c, c_tangent = v - wide(statistics[0])[..., None], tangent
        inv_std, inv_std_tangent = 1 / np.sqrt(wide(statistics[1])[..., None] + Wide(eps)), 0
    channels = v.shape[:-1]
    x_hat_tangent = c_tangent * inv_std + c * inv_std_tangent
    dy = parameter(gamma, 1, channels) * x_hat_tangent + parameter(dgamma, 0, channels) * (c * inv_std)
    return like(dy + parameter(dbeta, 0, channels), x, axis)


class DoubleBackward(NamedTuple):
    ddy: Any
    dx: Any
    dgamma: Any


def double_backward(ddx, ddgamma, ddbeta, dy, x, gamma=None, eps=1e-5, axis=1, statistics=None):
    """Gradients of sum(ddx*dx) + sum(ddgamma*dgamma) + sum(ddbeta*dbeta), dx, dgamma and dbeta being what `backward`
    (or with `statistics` = mean, var `frozen_backward`) gives: its steps, walked backwards one by one.

    `of_` means the gradient with respect to.
    """
    g, v = by_channel(dy, axis), by_channel(x, axis)
    n, channels = v.shape[-1], v.shape[:-1]
    z = np.zeros_like(g) if ddx is None else by_channel(ddx, axis)
    gamma, of_dgamma, of_dbeta = (
        parameter(gamma, 1, channels),
        parameter(ddgamma, 0, channels),
        parameter(ddbeta, 0, channels),
    )

    def total(values):
        return values.sum(-1, keepdims=True)

    if statistics is not None:
        inv_std = 1 / np.sqrt(wide(statistics[1])[..., None] + Wide(eps))
        x_hat = (v - wide(statistics[0])[..., None]) * inv_std
        of_g = gamma * inv_std * z + of_dgamma * x_hat + of_dbeta
        return DoubleBackward(
            like(of_g, x, axis), like(of_dgamma * inv_std * g, x, axis), total(inv_std * z * g)[..., 0]
        )

    # Forwards: dx = gamma*inv_std*(g - mean(g) - x_hat*m), m = mean(g*x_hat), dgamma = sum(g*x_hat), dbeta = sum(g).
    c, g_centred = centred(v)[0], centred(g)[0]
    inv_std = 1 / np.sqrt((c * c).mean(-1, keepdims=True) + Wide(eps))
    x_hat = c * inv_std
    m = (g_centred * x_hat).mean(-1, keepdims=True)
    dx_hat = g_centred - x_hat * m
    # Backwards. z and g may lose their means: what they are multiplied with has the mean 0.
    z = centred(z)[0]
    of_gamma, of_inv_std, of_dx_hat = total(z * inv_std * dx_hat), total(z * gamma * dx_hat), z * gamma * inv_std
    of_m = -total(of_dx_hat * x_hat)
    of_g = of_dx_hat + of_m * x_hat / n + of_dgamma * x_hat + of_dbeta
    of_x_hat = -of_dx_hat * m + of_m * g_centred / n + of_dgamma * g_centred
    of_inv_std = of_inv_std + total(of_x_hat * c)
    of_var = -of_inv_std * inv_std**3 / 2
    of_c = of_x_hat * inv_std + of_var * 2 * c / n
    return DoubleBackward(like(of_g, x, axis), like(centred(of_c)[0], x, axis), of_gamma[..., 0])


def weighted_derivatives(dx, dgamma, dbeta, x, w, gamma=None, eps=1e-5, axis=1):
    """`derivatives` of `weighted_training`; 0 where there is no value."""
    gone, (c, _, m2, count) = by_channel(absent(x, w).astype(Wide), axis) > 0, weighted_centred(x, w, axis)
    share, channels = by_channel(w, axis) / count[..., None], m2.shape
    c, tangent = np.where(gone, 0, c), np.where(gone, 0, 0 if dx is None else by_channel(dx, axis))

    def average(values):
        return (share * np.where(share > 0, values, 0)).sum(-1, keepdims=True)

    c_tangent = tangent - average(tangent)
    inv_std = 1 / np.sqrt((m2 / count)[..., None] + Wide(eps))
    x_hat_tangent = c_tangent * inv_std - c * inv_std**3 * average(c * c_tangent)
    dy = parameter(gamma, 1, channels) * x_hat_tangent + parameter(dgamma, 0, channels) * (c * inv_std)
    return like(np.where(gone, 0, dy + parameter(dbeta, 0, channels)), x, axis)


def weighted_double_backward(ddx, ddgamma, ddbeta, dy, x, w, gamma=None, eps=1e-5, axis=1):
    """`double_backward` of `weighted_backward`, whose steps are walked backwards one by one."""
    gone, (c, _, m2, count) = by_channel(absent(x, w).astype(Wide), axis) > 0, weighted_centred(x, w, axis)
    share, count, channels = by_channel(w, axis) / count[..., None], count[..., None], m2.shape
    c, g = (np.where(gone, 0, values) for values in (c, by_channel(dy, axis)))
    z = np.zeros_like(g) if ddx is None else np.where(gone, 0, by_channel(ddx, axis))
    gamma, of_dgamma, of_dbeta = (
        parameter(values, default, channels) for values, default in ((gamma, 1), (ddgamma, 0), (ddbeta, 0))
    )  # fmt: skip

    def total(values):
        return values.sum(-1, keepdims=True)

    # Forwards: dx = gamma*inv_std*(g - w*mean - w*x_hat*m), mean = sum(g)/W, m = sum(g*x_hat)/W.
    inv_std = 1 / np.sqrt((m2 / count[..., 0])[..., None] + Wide(eps))
    x_hat = c * inv_std
    g_left = g - share * total(g)  # sum(w*x_hat) is 0
    m = total(g_left * x_hat) / count
    dx_hat = g_left - count * share * x_hat * m
    # Backwards. z may lose its mean: the sum of dx_hat is 0.
    z = z - total(share * np.where(share > 0, z, 0))
    of_gamma, of_inv_std, of_dx_hat = total(z * inv_std * dx_hat), total(z * gamma * dx_hat), z * gamma * inv_std
    of_m = -total(count * share * of_dx_hat * x_hat)
    of_g = of_dx_hat + of_m * x_hat / count + of_dgamma * x_hat + of_dbeta
    of_x_hat = -count * share * of_dx_hat * m + of_m * g_left / count + of_dgamma * g_left
    of_var = -(of_inv_std + total(of_x_hat * c)) * inv_std**3 / 2
    # What g has lost comes back here: x_hat has it in the sums, which do not see it.
    of_x_hat = of_x_hat + (of_m / count + of_dgamma) * (g - g_left)
    of_c = of_x_hat * inv_std + of_var * 2 * share * c
    dx = of_c - share * total(of_c)
    return DoubleBackward(
        like(np.where(gone, 0, of_g), x, axis), like(np.where(gone, 0, dx), x, axis), of_gamma[..., 0]
    )


def backward_formula(dy, x, gamma, eps, statistics=None, w=None):
    """The textbook gradients for x (N, C, S) in the arithmetic of their arguments; works for complex ones too."""
    w = np.ones(x.shape) if w is None else w
    count = w.sum((0, 2), keepdims=True)
    mean = (w * x).sum((0, 2), keepdims=True) / count if statistics is None else statistics[0]
    var = (w * (x - mean) ** 2).sum((0, 2), keepdims=True) / count if statistics is None else statistics[1]
    inv_std = 1 / np.sqrt(var + eps)
    x_hat = (x - mean) * inv_std
    dx = dy
    if statistics is None:
        dx = dy - w / count * (dy.sum((0, 2), keepdims=True) + x_hat * (dy * x_hat).sum((0, 2), keepdims=True))
    return Backward(gamma[None, :, None] * inv_std * dx, (dy * x_hat).sum((0, 2)), dy.sum((0, 2)))


def complex_double_step(ddx, ddgamma, ddbeta, dy, x, gamma, eps, statistics=None, w=None):
    """`double_backward` for x (N, C, S), float64, from `backward_formula`, differentiated as in `complex_step`."""
    h = 1e-100

    def derivative(which):
        arguments = [dy.astype(complex), x.astype(complex), gamma.astype(complex)]
        result = np.empty(arguments[which].shape)
        for i in np.ndindex(result.shape):
            arguments[which][i] += 1j * h
            dx, dgamma, dbeta, _ = backward_formula(*arguments, eps, statistics, w)
            phi = (ddx * dx).sum() + (ddgamma * dgamma).sum() + (ddbeta * dbeta).sum()
            result[i] = phi.imag / h
            arguments[which][i] = arguments[which][i].real
        return result

    return DoubleBackward(derivative(0), derivative(1), derivative(2))
