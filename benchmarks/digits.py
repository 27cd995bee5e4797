"""The demo's figures, as `make demo` gives them: the result against the baseline on the test split, bytes and latency.

python -m benchmarks.digits            about half a minute on two cores
"""

import tempfile

from benchmarks.record import row, write
from paredown.core.measurement import Measurement
from paredown.pipeline.demo import run_demo


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = run_demo(folder)
    best, name = report.best, f"digits, {report.best.recipe}"
    measured = [best.test_quality, best.test_drop, best.drop, best.latency_ratio, Measurement("size_ratio", best.size_ratio, "x")]
    rows = [row(name, each, met=report.met) for each in measured if each is not None]
    print(write("digits.csv", rows, report.target, other_machines=True))


if __name__ == "__main__":
    main()
