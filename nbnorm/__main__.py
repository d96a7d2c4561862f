"""python -m nbnorm info | demo | warmup"""

from __future__ import annotations

import argparse
import sys

from nbnorm import __version__, demo, info, warmup

VERBS = {
    "info": (info, "versions, threads, cache, and a short self-test"),
    "demo": (demo, "train small networks on handwritten digits with and without batch normalization"),
    "warmup": (warmup, "compile the usual kernels into the cache, so that no first call has to"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit code is its result."""
    parser = argparse.ArgumentParser(
        prog="python -m nbnorm", description="Batch normalization for NumPy and CuPy arrays."
    )
    parser.add_argument("--version", action="version", version=f"nbnorm {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, (module, summary) in VERBS.items():
        module.add_arguments(verbs.add_parser(name, help=summary, description=module.__doc__))
    args = parser.parse_args(argv)
    if args.verb is None:
        parser.print_help()
        return 0
    return VERBS[args.verb][0].run(args)


if __name__ == "__main__":
    sys.exit(main())
