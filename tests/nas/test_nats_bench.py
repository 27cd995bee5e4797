"""The official NATS-Bench class, filled with made-up results, becomes a table: its own averages, its own times."""

from typing import Any

import pytest

from paredown.nas import cell201
from paredown.nas.evaluators.evaluator import Job
from paredown.nas.evaluators.table import from_nats_bench

_SETS = {"cifar10-valid": ("x-valid", "ori-test"), "cifar10": ("ori-test",)}
_SEEDS = {"cifar10-valid": (777, 888), "cifar10": (777,)}
_EPOCHS = 2  # recorded of each training, whatever its length: only the last one is read


def _trial(set_name: str, cell: str, seed: int, shift: float) -> Any:
    """10 points a convolution, one more for seed 888, half a point more on test images."""
    from nats_bench.api_utils import ResultsCount

    convolutions, steps = cell.count("nor_conv"), range(_EPOCHS)
    result = ResultsCount(
        set_name, None, dict.fromkeys(steps, 1.0), dict.fromkeys(steps, 0.1), 0.1 * convolutions, 5.0, {}, seed, _EPOCHS, None
    )
    result.reset_pseudo_train_times(2.0)
    accuracies = {
        f"{split}@{epoch}": 10.0 * convolutions + (seed == 888) + 0.5 * (split == "ori-test") + shift * epoch
        for split in _SETS[set_name]
        for epoch in steps
    }
    result.update_eval(accuracies, dict.fromkeys(accuracies, 0.1), dict.fromkeys(accuracies, 1.0))
    return result


def _architecture(index: int, cell: str, shift: float) -> Any:
    from nats_bench.api_utils import ArchResults

    found = ArchResults(index, cell)
    for set_name, seeds in _SEEDS.items():
        for seed in seeds:
            found.update(set_name, seed, _trial(set_name, cell, seed, shift))
    return found.state_dict()


@pytest.mark.slow
def test_the_official_class_becomes_a_table() -> None:
    nats = pytest.importorskip("nats_bench.api_topology", reason="needs nats-bench, which the extra `dev` installs")
    space = cell201.space()
    cells = [cell201.to_string(space.values(each)) for each in reversed(list(space.enumerate()))]
    infos = {i: {hp: _architecture(i, cell, int(hp) / 100) for hp in ("12", "200")} for i, cell in enumerate(cells)}
    given = {"meta_archs": cells, "arch2infos": infos, "evaluated_indexes": set(infos)}
    table = from_nats_bench(nats.NATStopology(given, verbose=False), "cifar10")
    assert table.fidelities == (0.06, 1.0)
    values = cell201.from_string("|nor_conv_1x1~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|")
    short, full = (table.evaluate(Job((), values, fidelity)) for fidelity in table.fidelities)
    assert short.metrics == {"accuracy": 20 + 0.5 + 0.12, "params": 2e5, "macs": 5e6}  # the mean of two seeds
    assert full.metrics["accuracy"] == 20 + 0.5 + 2.0
    assert (short.seconds, full.seconds) == (2 * 2.0 + 1.0, 2 * 2.0 + 1.0)
    assert table.test(values) == {"test_accuracy": 20 + 0.5 + 2.0}  # one seed, on test images
