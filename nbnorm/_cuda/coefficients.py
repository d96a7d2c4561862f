"""Coefficients: what maps need to know of a channel, seven numbers k, scale, shift, a, h, b and o.

In float64 dx = a*(dy - h) + b*(ddx - o) + scale*(x - k) + shift; y and what has no ddx have less of it. In float32, for
maps of x alone and of x and dy, all of whose values count (Eq. 19, 42), they are other numbers in the same places:
y = scale*w + (k*w + shift) and dx = a*(k*dy + h) + (scale*w + shift), with w = b*x + o. So b and k are powers of two
there, o and h what they leave of the roots; without dy k is what scale has lost. Kernels turn the one into the other
where they know a channel's float64 numbers.
"""

from __future__ import annotations

ORIGIN_OF_X, SCALE, SHIFT, A, H, B, ORIGIN_OF_DDX = range(7)  # rows of coef, which is float64, and of tables
VARIES = B  # in coef of a map of x alone: 0 where the channel is known to be constant
ROWS, ROWS_OF_THREE = 6, 7
# Where the results of single_map and of single_map_of_two belong.
OF_ONE = B, ORIGIN_OF_DDX, SCALE, ORIGIN_OF_X, SHIFT
OF_TWO = ORIGIN_OF_X, H, A, B, ORIGIN_OF_DDX, SCALE, SHIFT
