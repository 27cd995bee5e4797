"""Where channels lie, told by the layers around."""

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Distill, Hint, Task, Training
from paredown.core.effort import Effort
from paredown.distillation.axes import channel_axes
from paredown.distillation.compared import compare, propose_pairs
from paredown.distillation.pairing import see
from paredown.distillation.teacher import Teacher

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class LastBlock(nn.Module):
    """As in Swin: (batch, height, width, channels) in and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.act, self.down = nn.LayerNorm(width), nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


class FirstBlock(LastBlock):
    """As in ConvNeXt: linear layers inside, (batch, channels, height, width) in and out."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Last(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(1, width, 2, 2), nn.Sequential(LastBlock(width), LastBlock(width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).permute(0, 2, 3, 1)).mean((1, 2)))


class First(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(1, width, 2, 2), nn.Sequential(FirstBlock(width), FirstBlock(width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x)).mean((2, 3)))


def test_axes_are_those_of_the_layers_whatever_the_shapes() -> None:
    last, first = channel_axes(Last(), X), channel_axes(First(), X)
    assert last["patches"] == first["patches"] == 1
    assert {last[n] for n in ("blocks", "blocks.0", "blocks.1", "blocks.0.act", "blocks.0.down")} == {-1}
    assert {first[n] for n in ("blocks", "blocks.0", "blocks.1")} == {1} and first["blocks.0.act"] == -1


def test_resolution_and_channels_of_features_are_told_apart() -> None:
    found = {each.name: (each.space, each.channels, each.axis) for each in see(Last(), X)}
    assert found["blocks"] == ((4, 4), 8, -1) and found["patches"] == ((4, 4), 8, 1)


@pytest.mark.parametrize("name", ["swin_t", "convnext_tiny"])
def test_published_blocks(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("cpu"):
        model = getattr(models, name)().eval()
    axes = channel_axes(model, torch.randn(2, 3, 64, 64))
    stages = [f"features.{i}.{j}" for i in (1, 3, 5, 7) for j in (0, 1)]
    assert {axes[stage] for stage in stages} == {-1 if name == "swin_t" else 1}


def test_a_student_learns_from_a_teacher_that_lays_its_channels_elsewhere() -> None:
    torch.manual_seed(0)
    teacher, student = Last(), First()
    config = Distill(hard_weight=0, soft=None, features=(Hint(),), pairs=(("blocks", "blocks"),))
    (found,) = compare(config, Teacher(teacher), student, X)
    assert (found.pair.axis, found.teacher_axis) == (1, -1)
    assert isinstance(found.adapter, nn.Conv2d) and found.adapter.weight.shape[:2] == (8, 6)
    task = Task(teacher, (X[:2],), [(X, None)], [(X, torch.zeros(4, dtype=torch.long))])
    training = Training(effort=Effort(3, "steps"))
    trained = paredown.distill(task, Distill(hard_weight=0, features=(Hint(),), training=training), model=student)
    assert trained(X).shape == (4, 10)
    assert any(pair.axis == -1 for pair in propose_pairs(Last(8), Last(6), X))
