"""Loads a file and runs it a few times on random inputs, for a parent that watches this process's memory. No torch here.

python -m paredown.deploy.child PATH --runtime onnxruntime --batch 1 --threads 2
"""

import argparse
from collections.abc import Sequence

from paredown.core.target import Target
from paredown.deploy.session import inputs_for, load


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 once the runs are done; an error of paredown passes through."""
    parser = argparse.ArgumentParser(prog="paredown.deploy.child", description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args(argv)
    session = load(arguments.path, Target(arguments.runtime, arguments.batch, arguments.threads))
    inputs = inputs_for(session, arguments.batch)
    for _ in range(arguments.runs):
        session(**inputs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
