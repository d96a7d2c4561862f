"""What asv's benchmarks have too: a cache for the kernels of these sources, and errors in long double."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import benchmarks  # noqa: F401  names the cache, before Numba is imported
from benchmarks.long_double import error, reference  # noqa: F401
