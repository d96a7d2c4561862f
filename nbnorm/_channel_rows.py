"""Rows of the small arrays that stages pass on, a column for each channel."""

# `stats`, what a forward pass knows of each channel: k, d = mean - k, m2, inv_std and gamma.
STATS = 5
# A sixth row where not every value counts once: W, which is otherwise the same number for all.
COUNTED_STATS = 6
ORIGIN, DEVIATION, M2, INV_STD, GAMMA, COUNT = range(6)
# And two more, after that, where the backward pass asks for the sign of y: scale and shift of Eq. 7.
STATS_WITH_SIGNS = 8
SIGN_SCALE, SIGN_SHIFT = 6, 7

# `sums`: s and q, which become sum_dy and sum_dy_xmu, and h, the origin of dy.
SUMS = 3
SUM, PRODUCT, DY_ORIGIN = range(3)
# A fourth row in the sums of a shard: e, the sum of x - mean over the shard. PRODUCT is then sum(v*(x - mean)).
SHARD_SUMS = 4
OFFSET = 3
# Those of a double backward pass: behind the four of dy three of ddx, t, sum(w*(x - mean)) and o, and the sum of v*w.
DOUBLE_SUMS = 8
DDX, CROSS = 4, 7

# `directions` (2, C): tangents of gamma and beta, or cotangents of their gradients; 0 where there is none.
OF_GAMMA, OF_BETA = range(2)

# What batch renormalization keeps: r, d, gamma, and what takes the places of gamma and beta.
RENORM = 5
R, D, PLAIN_GAMMA, CORRECTED_GAMMA, CORRECTED_BETA = range(5)
