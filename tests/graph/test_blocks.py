"""Modules that everything passes through, from the graph, and what a cut leaves of the tensors between them."""

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Prune, Task
from paredown.core.errors import TaskError
from paredown.graph.blocks import blocks_of, shared
from paredown.graph.manifest import manifest_of
from tests.conftest import SmallResNet


def test_residual_blocks_are_blocks_and_what_lies_inside_is_none(small_resnet: SmallResNet) -> None:
    found = [block.name for block in blocks_of(small_resnet, torch.randn(2, 1, 8, 8))]
    assert found == ["stem", "block1", "block2", "head"]


def test_long_chains_fall_into_layers_and_short_ones_stay_whole() -> None:
    long = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    short = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    found = [block.name for block in blocks_of(nn.Sequential(long, short), torch.randn(2, 4))]
    assert found == [*(f"0.{i}" for i in range(6)), "1"]


def test_transformer_layers_are_blocks_whatever_mask_goes_beside_them() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    inputs = {"input_ids": torch.randint(0, 50, (2, 5)), "attention_mask": torch.tensor([[1] * 5, [1] * 3 + [0] * 2])}
    names = [block.name for block in blocks_of(transformers.BertModel(config).eval(), inputs)]
    assert [name for name in names if "layer" in name] == ["encoder.layer.0", "encoder.layer.1"]


def test_kept_indices_of_the_tensors_between_blocks_are_those_of_the_cut(pattern_task: Task) -> None:
    student = paredown.prune(pattern_task, Prune(ratio=0.6, scope="uniform", widths=paredown.Widths(round_to=4)))
    manifest = manifest_of(student)
    assert manifest is not None
    readers = {"block1": "block1.conv1.weight", "block2": "block2.conv1.weight", "head": "head.weight"}
    for block in blocks_of(pattern_task.model, pattern_task.inputs, manifest):
        read = manifest.kept.get(readers.get(block.name, ""), {})
        assert block.entering.get(1) == read.get(1)
    widths = {b.name: len(b.leaving.get(1, range(32))) for b in blocks_of(pattern_task.model, pattern_task.inputs, manifest)}
    with torch.no_grad():
        x = student.stem(pattern_task.inputs[0])
        assert widths["stem"] == x.shape[1] < 16 and widths["block2"] == student.block2(student.block1(x)).shape[1]


class Ladder(nn.Module):
    """Nothing but the end of it is passed by everything."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


def test_branches_side_by_side_are_no_blocks() -> None:
    names = [block.name for block in blocks_of(nn.Sequential(nn.Linear(3, 3), Ladder()), torch.randn(2, 3))]
    assert names == ["0"]


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_a_model_without_parts_is_an_error_with_its_remedy() -> None:
    with pytest.raises(TaskError, match="leave reconstruct out"):
        blocks_of(Bare(), torch.randn(2, 3))


def test_modules_that_share_a_weight_are_told() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert shared(["0", "1", "2"], model) == {"0", "2"}
