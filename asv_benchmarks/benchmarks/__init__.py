"""The benchmarks that airspeed velocity runs; docs/benchmarks.md says how. Importing them launches no kernel.

Numba's disk cache does not see an edited helper of a kernel: it would time yesterday's code. So the kernels of each
state of the sources have a directory of their own, named before Numba is imported.
"""

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path


def _hash_of_sources() -> str:
    spec = find_spec("nbnorm")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("error: nbnorm is not installed for this Python; from its clone: pip install -e .")
    package, digest = Path(spec.origin).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / "kernels" / _hash_of_sources()))
