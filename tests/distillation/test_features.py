import pytest
import torch
from torch import Tensor, nn

from paredown.core.errors import RecipeError, TaskError
from paredown.distillation.features import captured, with_features
from tests.conftest import SmallResNet, make_small_resnet


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.idle, self.lstm = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.LSTM(3, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(self.b(input=self.a(x)))[0]


def test_features_are_the_modules_outputs_with_their_history(small_resnet: SmallResNet) -> None:
    x = torch.randn(2, 1, 8, 8)
    output, found = with_features(small_resnet, x, ["block1", "stem.0"])
    assert torch.equal(output, small_resnet(x))
    assert list(found) == ["block1", "stem.0"]
    assert torch.equal(found["stem.0"], small_resnet.stem[0](x))
    assert torch.equal(found["block1"], small_resnet.block1(small_resnet.stem(x)))
    found["block1"].sum().backward()
    assert small_resnet.stem[0].weight.grad is not None and small_resnet.head.weight.grad is None
    assert hooks(small_resnet) == 0


def test_inputs_can_be_captured_even_when_passed_by_name() -> None:
    model, x = Parts(), torch.randn(2, 4, 3)
    _, found = with_features(model, x, ["a", "b"], of="input")
    assert torch.equal(found["a"], x) and torch.equal(found["b"], model.a(x))


def test_of_several_outputs_the_first_tensor_counts() -> None:
    model, x = Parts(), torch.randn(2, 4, 3)
    output, found = with_features(model, x, ["lstm"])
    assert found["lstm"] is output


def test_hooks_are_gone_after_an_exception(small_resnet: SmallResNet) -> None:
    with pytest.raises(RuntimeError):
        with_features(small_resnet, torch.randn(2, 3, 8, 8), ["block1"])
    with pytest.raises(ValueError, match="mine"), captured(small_resnet, ["block1"]):
        raise ValueError("mine")
    assert hooks(small_resnet) == 0


def test_every_pass_fills_the_mapping_anew() -> None:
    model = make_small_resnet()
    with captured(model, ["head"]) as found:
        one = model(torch.randn(2, 1, 8, 8))
        assert found["head"] is one
        other = model(torch.randn(5, 1, 8, 8))
        assert found["head"] is other


def test_name_of_no_module_is_an_error(small_resnet: SmallResNet) -> None:
    with pytest.raises(RecipeError, match=r"tail.*named_modules"):
        with_features(small_resnet, torch.randn(2, 1, 8, 8), ["block1", "tail"])
    assert hooks(small_resnet) == 0


def test_module_that_does_not_run_is_an_error() -> None:
    with pytest.raises(TaskError, match="nothing from idle"):
        with_features(Parts(), torch.randn(2, 4, 3), ["a", "idle"])
