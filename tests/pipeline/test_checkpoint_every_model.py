"""A pruned model of each kind: kept, loaded in a clean process, trained and cut again, kept again, loaded.

And what works without paredown: a model made from widths.json and the weights.
"""

import copy
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import paredown
from paredown import Prune, Widths
from paredown.graph.manifest import manifest_of
from paredown.measure.cost import count_macs
from tests.pipeline.kept_models import MODELS, WITHOUT_PAREDOWN, forbid_paredown, output_of, rebuilt_output, stepped
from tests.pruning.test_prune_attention import task_of

CONFIG = Prune(ratio=0.3, widths=Widths(round_to=1))
pytestmark = pytest.mark.usefixtures("one_thread")
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def clean_process() -> Iterator[ProcessPoolExecutor]:
    """Another process, the same for all models: it imports what it needs anew, and never saw a model that was pruned."""
    with ProcessPoolExecutor(1, SPAWN, torch.set_num_threads, (1,)) as process:
        yield process


@pytest.fixture(scope="module")
def process_without_paredown() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, SPAWN, forbid_paredown) as process:
        yield process


@dataclass(frozen=True)
class Kept:
    """folder: holds the inputs, and the checkpoint "once" of the model `name`, of which 0.3 of the MACs were cut."""

    name: str
    folder: Path
    pruned: nn.Module
    inputs: Any


@pytest.fixture(scope="module", params=MODELS)
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder: Path = tmp_path_factory.mktemp(request.param)
    model, inputs = MODELS[request.param]()
    torch.save(inputs, folder / "inputs.pt")
    model = stepped(model, inputs)  # none of its weights is what a fresh one has
    pruned = paredown.prune(task_of(model, inputs), CONFIG)
    assert count_macs(pruned, inputs) <= 0.7 * count_macs(model, inputs)
    paredown.save_checkpoint(pruned, folder / "once")
    return Kept(request.param, folder, pruned, inputs)


def load_train_and_cut_again(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the checkpoint "once" gives in a fresh model, and what is then kept as "twice"."""
    fresh, _ = MODELS[name]()
    inputs = torch.load(folder / "inputs.pt")
    loaded = paredown.load_checkpoint(folder / "once", fresh)
    output = output_of(loaded, inputs)
    copied = copy.deepcopy(loaded)
    assert np.array_equal(output_of(copied, inputs), output)
    trained = stepped(copied, inputs)
    assert np.array_equal(output_of(loaded, inputs), output) and not np.allclose(output_of(trained, inputs), output)
    again = paredown.prune(task_of(trained, inputs), CONFIG)
    paredown.save_checkpoint(again, folder / "twice")
    return output, output_of(again, inputs)


def test_a_pruned_model_lives_on_in_another_process_and_comes_back(kept: Kept, clean_process: ProcessPoolExecutor) -> None:
    once, twice = clean_process.submit(load_train_and_cut_again, kept.name, kept.folder).result()
    assert np.array_equal(once, output_of(kept.pruned, kept.inputs))
    fresh, _ = MODELS[kept.name]()
    back = paredown.load_checkpoint(kept.folder / "twice", fresh)  # one cut of a fresh model stands for both
    assert np.array_equal(twice, output_of(back, kept.inputs)) and type(back) is type(kept.pruned)
    assert count_macs(back, kept.inputs) <= 0.7 * count_macs(kept.pruned, kept.inputs)
    assert len([*back.parameters()]) == len([*fresh.parameters()])  # what is tied stays tied
    first, both = manifest_of(kept.pruned), manifest_of(back)
    assert first is not None and both is not None
    pairs = [(both.kept[name][d], indices) for name, dims in first.kept.items() for d, indices in dims.items()]
    assert all(set(after) <= set(before) for after, before in pairs)  # both are indices of the original


@pytest.mark.parametrize("kept", WITHOUT_PAREDOWN, indirect=True, scope="module")
def test_widths_and_weights_are_enough_where_paredown_is_absent(
    kept: Kept, process_without_paredown: ProcessPoolExecutor
) -> None:
    found = process_without_paredown.submit(rebuilt_output, kept.name, kept.folder / "once").result()
    assert np.array_equal(found, output_of(kept.pruned, kept.inputs))


def test_the_process_without_paredown_cannot_import_it(process_without_paredown: ProcessPoolExecutor) -> None:
    with pytest.raises(ImportError, match="paredown"):
        process_without_paredown.submit(rebuilt_output, "tied", Path()).result()
