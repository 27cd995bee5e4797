"""Search NAS-Bench-201 with PPO, then with evolution, and train each winner as a torch network.

    python examples/nas201_ppo.py [STEPS]

The search reads the published table (../shared/data): its accuracies were measured by the benchmark's authors, and the seconds
are theirs. What is trained here, for a few steps only, is the winner's own network on CIFAR-10.
"""

import pathlib
import sys

import numpy as np
import torch
from cifar10_resnet20 import data  # the example beside this one

import paredown
from paredown.core.effort import Effort
from paredown.core.steps import Training
from paredown.measure.cost import count_macs, count_parameters
from paredown.nas import cell201
from paredown.nas.cell201_network import build
from paredown.nas.evaluators.table import Table, cell201_table
from paredown.nas.evaluators.training import Data, TrainingEvaluator, mean_metric
from paredown.nas.outcome import Found, SearchResult
from paredown.nas.strategies.genetic import Genetic
from paredown.nas.strategies.ppo import PPO
from paredown.nas.strategies.strategy import StrategyFactory

PAGES = pathlib.Path("runs")
STRATEGIES: dict[str, StrategyFactory] = {"PPO": PPO, "evolution (evaluate, cross over, mutate)": Genetic}


def table() -> Table:
    """CIFAR-10 after 12 epochs, with the seconds that these took; test accuracy after 200 epochs, for the report alone."""
    core = data().nasbench201()
    operators = np.stack([core[name] for name in cell201.NAMES], axis=1)
    metrics = {"accuracy": core["c10_valid_e12"], "params": core["c10_params"]}
    tests = {"test_accuracy": core["c10_test_e200"]}
    return cell201_table(operators, {1.0: metrics}, {1.0: 12 * core["c10_sec_per_epoch"]}, tests, "NAS-Bench-201, CIFAR-10")


def cifar(train: int = 2_000, validation: int = 500) -> Data:
    """The first images of the training and validation splits, in batches of 100."""
    load = data()

    def batches(split: str, limit: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        images, labels, _ = load.cifar10(split, limit)
        return list(zip(load.normalize(images).split(100), torch.as_tensor(labels).split(100), strict=True))

    return Data(batches("train", train), batches("validation", validation))


def show(name: str, found: SearchResult) -> None:
    print(f"{name}: {len(found.history)} cells from a {found.source}, {found.curve[-1].seconds:.0f} simulated seconds")
    for point in found.curve[9::20]:
        print(f"  {point.evaluations:4d} evaluations  {point.seconds:7.0f} s  best 12-epoch validation accuracy {point.best:.2f}")
    print(f"  winner {cell201.to_string(found.best.values)}")
    print(f"  published test accuracy after 200 epochs {found.best.test['test_accuracy']:.2f}")


def train(winner: Found, steps: int) -> float:
    """Validation accuracy of the winner's network after a few steps of real training."""
    training = Training(effort=Effort(steps, "steps"), learning_rate=0.05)
    evaluator = TrainingEvaluator(build, cifar, training)
    images = cifar()
    network = evaluator.trained(winner.values, images)
    parameters, macs = count_parameters(network), count_macs(network, torch.zeros(2, 3, 32, 32))
    accuracy = mean_metric(network, images.validation)
    print(f"  its network: {parameters:,} parameters, {macs / 1e6:.1f} M MACs; {steps} steps here: accuracy {accuracy:.3f}")
    return accuracy


def main(steps: int = 20) -> None:
    PAGES.mkdir(exist_ok=True)
    cells = table()
    for name, strategy in STRATEGIES.items():
        found = paredown.search(cells.space, cells, strategy=strategy, effort="20000 s", seed=0)
        show(name, found)
        print(f"  page: {found.save_html(PAGES / f'nas201-{found.strategy.lower()}.html')}")
        train(found.best, steps)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
