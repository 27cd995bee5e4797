"""Subnets of a user's own model: the largest is the model, the others equal the masked model, and what stays fixed is said."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown.core.errors import SearchSpaceError
from paredown.core.steps import Widths
from paredown.graph.equality import masked
from paredown.graph.groups import Groups
from paredown.measure.cost import count_macs
from paredown.nas.elastic import Elastic, elastic
from paredown.task.task import Task
from tests.conftest import SmallResNet, make_small_resnet
from tests.graph.attention_nets import fused


def task_of(model: nn.Module, inputs: Tensor, **options: object) -> Task:
    with torch.no_grad():
        target = model(inputs).argmax(-1)
    batches = [(inputs, target)]
    return Task(model=model, example_inputs=(inputs,), train=batches, validation=batches, **options)  # type: ignore[arg-type]


def images() -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def ascending(groups: Groups) -> Sequence[np.ndarray]:
    """The last index is the most important."""
    return [np.arange(group.size, dtype=float) for group in groups.groups]


@pytest.fixture(scope="module")
def resnet() -> Elastic:
    return elastic(task_of(make_small_resnet(16), images()), scores=ascending, widths=Widths(floor=0.25, round_to=4))


def test_the_largest_subnet_is_the_model(resnet: Elastic) -> None:
    values = resnet.space.values(resnet.largest)
    assert resnet.manifest(values).to_dict() == {"kept": {}}
    subnet = resnet.subnet(values)
    assert type(subnet) is SmallResNet
    assert torch.equal(subnet(images()), resnet.model(images()))


def test_widths_depths_and_kernels_are_dimensions_whose_options_ascend_to_the_original(resnet: Elastic) -> None:
    values = resnet.space.values(resnet.largest)
    assert values["width:block1.conv1"] == 16
    assert values["width:block2.conv1"] == 32
    assert values["depth:block1"] == 1
    assert values["kernel:block1.conv1"] == 3
    assert {name.partition(":")[0] for name in values} == {"width", "depth", "kernel"}
    options = {dimension.name: dimension.options for dimension in resnet.space.dimensions}
    assert options["width:block1.conv1"] == (4, 8, 12, 16)
    assert options["kernel:stem.0"] == (1, 3)
    assert type(resnet.space).from_json(resnet.space.to_json()) == resnet.space


@pytest.mark.parametrize("seed", range(4))
def test_a_subnet_equals_the_masked_model_and_costs_less(resnet: Elastic, seed: int) -> None:
    values = resnet.space.values(resnet.space.sample(np.random.default_rng(seed)))
    subnet, manifest = resnet.subnet(values), resnet.manifest(values)
    readers = resnet.parts.groups.consumers | resnet.parts.kernels.readers
    expected = masked(resnet.model, manifest, readers)(images())
    assert torch.allclose(subnet(images()), expected, atol=1e-5)
    assert count_macs(subnet, images()) < count_macs(resnet.model, images())


def test_a_subnet_has_the_most_important_channels(resnet: Elastic) -> None:
    largest = resnet.space.values(resnet.largest)
    manifest = resnet.manifest({**largest, "width:block1.conv1": 4})
    assert manifest.kept["block1.conv1.weight"] == {0: (12, 13, 14, 15)}
    assert manifest.kept["block1.conv2.weight"] == {1: (12, 13, 14, 15)}
    assert resnet.subnet({**largest, "width:block1.conv1": 4}).block1.conv1.out_channels == 4


def test_what_lies_in_a_skipped_branch_does_not_matter(resnet: Elastic) -> None:
    space, largest = resnet.space, resnet.space.values(resnet.largest)
    skipped = space.architecture({**largest, "depth:block1": 0})
    narrower = space.architecture({**largest, "depth:block1": 0, "width:block1.conv1": 4, "kernel:block1.conv2": 1})
    assert space.canonicalize(skipped) == space.canonicalize(narrower)
    both = [resnet.subnet(space.values(a))(images()) for a in (skipped, narrower)]
    assert torch.equal(*both)
    assert space.canonicalize(resnet.largest) == resnet.largest


def test_what_stays_fixed_is_listed_with_its_reason() -> None:
    made = elastic(task_of(make_small_resnet(16), images(), protect=("block1",)), widths=Widths(floor=0.25, round_to=16))
    names = [dimension.name for dimension in made.space.dimensions]
    assert not any("block1" in name for name in names)
    reasons = {(barrier.operator, barrier.where): barrier.reason for barrier in made.fixed}
    assert reasons["kernel", "block1.conv1"] == "protected by the user"
    assert ("protect", "block1") in reasons


def test_depth_and_kernels_can_be_left_out_and_nothing_at_all_is_an_error() -> None:
    task = task_of(make_small_resnet(8), images())
    made = elastic(task, widths=Widths(floor=0.5, round_to=4), depth=False, kernel=False, levels=2)
    assert all(dimension.name.startswith("width:") for dimension in made.space.dimensions)
    assert all(len(dimension.options) == 2 for dimension in made.space.dimensions)
    with pytest.raises(SearchSpaceError, match="something that may vary"):
        elastic(task, widths=Widths(floor=1.0), depth=False, kernel=False)
    with pytest.raises(SearchSpaceError, match="at least 2 levels"):
        elastic(task, levels=1)


def test_heads_and_hidden_widths_of_a_transformer_vary() -> None:
    model, tokens = fused()
    made = elastic(task_of(model, tokens), widths=Widths(floor=0.3, round_to=1), levels=3)
    options = {dimension.name: dimension.options for dimension in made.space.dimensions}
    heads = [name for name, counts in options.items() if name.startswith("width:blocks.0.attention") and max(counts) == 3]
    hidden = [name for name, counts in options.items() if name.startswith("width:blocks.0.fc1") and max(counts) == 48]
    assert len(heads) >= 1 and len(hidden) == 1
    assert any(name.startswith("depth:blocks.1") for name in options)
    largest = made.space.values(made.largest)
    fewer = made.subnet({**largest, heads[0]: 1, hidden[0]: options[hidden[0]][0]})
    assert fewer.blocks[0].attention.num_heads == 1
    assert fewer.blocks[0].fc1.out_features == options[hidden[0]][0]
    assert bool(torch.isfinite(fewer(tokens)).all())


def test_a_subnet_goes_through_a_checkpoint_and_is_pruned_again(resnet: Elastic, tmp_path: Path) -> None:
    subnet = resnet.subnet(resnet.space.values(resnet.space.sample(np.random.default_rng(9))))
    paredown.save_checkpoint(subnet, tmp_path / "c")
    loaded = paredown.load_checkpoint(tmp_path / "c", SmallResNet(16))
    assert torch.equal(loaded.eval()(images()), subnet(images()))
    task = task_of(resnet.model, images())
    pruned = paredown.prune(task, paredown.Prune(ratio=0.3, widths=Widths(round_to=1)), model=subnet)
    assert count_macs(pruned, images()) < count_macs(subnet, images())


def test_an_elastic_space_goes_to_another_process(resnet: Elastic) -> None:
    again = pickle.loads(pickle.dumps(resnet))
    values = resnet.space.values(resnet.smallest)
    assert torch.equal(again.subnet(values)(images()), resnet.subnet(values)(images()))


def test_values_that_are_not_the_spaces_are_refused(resnet: Elastic) -> None:
    with pytest.raises(SearchSpaceError, match="must be one of its options"):
        resnet.subnet({**resnet.space.values(resnet.largest), "width:block1.conv1": 5})
