import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from paredown.core.errors import BatchError, NotFiniteError
from paredown.train.batchnorm import recalibrate_, require_two_samples

Batches = list[tuple[Tensor, None]]


def batches(count: int = 4, size: int = 16) -> Batches:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, 1, 8, 8, generator=generator) * 2 + 1, None) for _ in range(count)]


def test_statistics_become_the_plain_average_over_the_batches() -> None:
    norm = nn.BatchNorm2d(1, momentum=0.3)
    data = batches()
    assert recalibrate_(norm, data) == 1
    assert norm.running_mean is not None and norm.running_var is not None
    assert float(norm.running_mean) == pytest.approx(float(torch.stack([x.mean() for x, _ in data]).mean()), rel=1e-5)
    assert float(norm.running_var) == pytest.approx(float(torch.stack([x.var() for x, _ in data]).mean()), rel=1e-5)


def test_every_norm_is_counted_and_weights_modes_and_momenta_stay(small_resnet: nn.Module) -> None:
    small_resnet.get_submodule("block1").train()
    small_resnet.get_submodule("block1.bn1").momentum = 0.25  # type: ignore[assignment]  # it is a batch norm
    modes = [module.training for module in small_resnet.modules()]
    weights = [parameter.clone() for parameter in small_resnet.parameters()]
    assert recalibrate_(small_resnet, batches()) == 6
    assert [module.training for module in small_resnet.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(weights, small_resnet.parameters(), strict=True))
    assert small_resnet.get_submodule("block1.bn1").momentum == 0.25
    assert small_resnet.get_submodule("block1.bn2").momentum == 0.1


def test_recalibrating_brings_a_scaled_model_back(small_resnet: nn.Module) -> None:
    data = batches()
    recalibrate_(small_resnet, data)
    expected = small_resnet(data[0][0])
    with torch.no_grad():
        small_resnet.get_submodule("stem.0").weight *= 3
    spoilt = small_resnet(data[0][0])
    recalibrate_(small_resnet, data)
    assert (small_resnet(data[0][0]) - expected).norm() < 0.01 * (spoilt - expected).norm()


def test_a_model_without_batch_norms_reads_no_batch() -> None:
    def never() -> Tensor:
        raise AssertionError

    class Untouched:
        def __iter__(self) -> Tensor:
            return never()

    assert recalibrate_(nn.Linear(2, 2), Untouched()) == 0  # type: ignore[arg-type]  # must not be read


def test_batch_norms_without_running_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.BatchNorm2d(1))
    assert recalibrate_(model, batches()) == 1


def test_dropout_stays_off() -> None:
    model = nn.Sequential(nn.Dropout(1.0), nn.BatchNorm2d(1))
    recalibrate_(model, batches())
    assert float(model[1].running_mean) > 0.5


def test_no_more_batches_are_read_than_asked_for() -> None:
    norm = nn.BatchNorm2d(1)
    recalibrate_(norm, batches(5), batches_at_most=2)
    assert int(norm.num_batches_tracked) == 2


def failing(*_: Tensor) -> None:
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("hook", "data", "error"),
    [
        (failing, batches(), BatchError),
        (None, [], BatchError),
        (None, [(torch.zeros(2, 1, 8, 8) / 0, None)], NotFiniteError),
    ],
)
def test_old_statistics_stand_after_an_error(hook: Callable[..., None] | None, data: Batches, error: type[Exception]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Identity())
    model(torch.randn(8, 1, 8, 8) + 5)
    if hook is not None:
        model[1].register_forward_hook(hook)
    before = model[0].running_mean.clone()
    with pytest.raises(error):
        recalibrate_(model, data)
    assert torch.equal(model[0].running_mean, before)
    assert model[0].momentum == 0.1
    assert model.training


def test_one_value_per_channel_is_an_error_with_its_remedy() -> None:
    with pytest.raises(BatchError, match=r"at least 2 samples .* drop_last=True"):
        recalibrate_(nn.BatchNorm1d(3), [(torch.randn(1, 3), None)])


def with_a_last_batch_of_one(shuffle: bool = True, drop_last: bool = False) -> Any:
    return DataLoader(TensorDataset(torch.randn(9, 3), torch.zeros(9).long()), 4, shuffle=shuffle, drop_last=drop_last)


@pytest.mark.parametrize(
    "data", [with_a_last_batch_of_one(), [(torch.randn(4, 3), None), (torch.randn(1, 3), None)], [((torch.randn(1, 3),), None)]]
)
def test_a_batch_of_one_is_refused_before_it_comes_and_the_model_is_untouched(data: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    before = model[1].running_mean.clone()
    with pytest.raises(BatchError, match=r"at least 2 samples .* drop_last=True"):
        require_two_samples(model, data)
    assert torch.equal(model[1].running_mean, before) and not model.training


@pytest.mark.parametrize(
    "data", [with_a_last_batch_of_one(drop_last=True), [(torch.randn(4, 3), None)], [(torch.randn(1, 3), 3)]]
)
def test_batches_of_more_and_models_that_can_train_on_one_pass(data: Any) -> None:
    norm: nn.Module = nn.LayerNorm(3) if isinstance(data, list) and len(data[0][0]) == 1 else nn.BatchNorm1d(3)
    before = copy.deepcopy(norm.state_dict())
    require_two_samples(norm, data)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


class Domains(nn.Module):
    """Two norms, of which forward runs the first."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(1), nn.BatchNorm2d(1)])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norms[0](x)
        return y


def test_a_norm_that_no_batch_reaches_keeps_its_statistics() -> None:
    model = Domains()
    other = model.norms[1]
    assert isinstance(other, nn.BatchNorm2d) and other.running_mean is not None and other.num_batches_tracked is not None
    other.running_mean.fill_(3)
    other.num_batches_tracked.fill_(7)
    assert recalibrate_(model, batches()) == 1
    assert float(other.running_mean) == 3 and int(other.num_batches_tracked) == 7
