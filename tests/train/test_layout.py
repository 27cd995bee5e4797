import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils.data import DataLoader, TensorDataset

import paredown
from paredown import Distill, Task
from paredown.core.effort import Effort
from paredown.core.training import Training
from paredown.train.layout import layout_for, trains_channels_last
from paredown.train.loop import fit_


@pytest.mark.parametrize(
    ("layer", "safe"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), False),
        (nn.Conv2d(16, 16, 1, stride=(1, 2), groups=4), False),
        (nn.Conv2d(16, 8, 1, stride=2), True),
        (nn.Conv2d(4, 8, 1), True),
        (nn.Conv2d(4, 8, 3, stride=2), True),
    ],
    ids=["narrow", "narrow groups", "wide", "no stride", "no 1x1"],
)
def test_what_trains_channels_last(layer: nn.Module, safe: bool) -> None:
    assert trains_channels_last(nn.Sequential(nn.ReLU(), layer)) == safe


def test_layers_of_a_traced_model_are_calls() -> None:
    narrow, wide = (fx.symbolic_trace(nn.Sequential(nn.Conv2d(channels, 8, 1, stride=2))) for channels in (4, 16))
    for model in (narrow, wide):
        own = fx.GraphModule({"weight": model.get_submodule("0").weight}, _convolution())
        assert not any(isinstance(module, nn.Conv2d) for module in own.modules())
        assert trains_channels_last(own) == (model is wide)


def _convolution() -> fx.Graph:
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    graph.output(graph.call_function(torch.ops.aten.conv2d.default, (x, weight, None, [2, 2])))
    return graph


@pytest.mark.parametrize(("channels", "channels_last"), [(4, False), (16, True)])
def test_inputs_are_laid_out_as_the_model_trains(channels: int, channels_last: bool) -> None:
    seen: list[bool] = []
    model = nn.Sequential(nn.Conv2d(channels, 8, 1, stride=2)).to(memory_format=torch.channels_last)
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last)))
    fit_(
        model, [(torch.randn(2, channels, 4, 4), None)], lambda model, batch: model(batch[0]).square().mean(),
        Training(effort=Effort(1, "steps")),
    )  # fmt: skip
    assert seen[-1] == channels_last  # before that it is tried out


def test_a_narrow_strided_shortcut_trains_in_one_piece() -> None:
    """In a process of its own: spoilt memory shows late, and ends what it shows in."""
    code = (
        "import torch; from torch import nn; from paredown.core.effort import Effort; "
        "from paredown.core.training import Training; from paredown.train.loop import fit_; "
        "fit_(nn.Conv2d(4, 8, 1, stride=2), [(torch.randn(16, 4, 8, 8), None)] * 100, "
        "lambda model, batch: model(batch[0]).square().mean() + sum(0 * torch.randn(100 + j).sum() for j in range(50)), "
        "Training(effort=Effort(100, 'steps'), channels_last=True))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


class Viewing(nn.Module):
    """Flattens by a view, which channels last doesn't allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 8 * 8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(torch.relu(self.conv(x)).view(x.size(0), -1))
        return y


def test_a_model_that_views_is_trained_against_a_teacher_in_the_ordinary_layout() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 1, 8, 8), torch.arange(32) % 10
    task = Task(Viewing().eval(), (x[:2],), [(x, y)], [(x, y)])
    student = Viewing()
    before = F.mse_loss(student(x), task.model(x))
    for channels_last in (True, False):
        trained = paredown.distill(task, Distill(training=Training("20 steps", channels_last=channels_last)), model=student)
        assert F.mse_loss(trained(x), task.model(x)) < before


def test_the_layout_is_found_without_a_draw_of_the_callers() -> None:
    batches = DataLoader(TensorDataset(torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64)), 4, shuffle=True)
    model = nn.Sequential(nn.Conv2d(1, 4, 3))
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert layout_for(model, batches) is torch.channels_last
    assert torch.equal(torch.rand(1), expected)
    assert layout_for(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), batches) is torch.contiguous_format


def test_a_model_that_only_its_loss_can_call_trains_channels_last() -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(self.conv(x).mean((2, 3)), y)

    batches = [(torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))]
    assert layout_for(Labelled(), batches) is torch.channels_last
    assert not fit_(Labelled(), batches, lambda m, batch: m(*batch), Training("1 steps")).training
