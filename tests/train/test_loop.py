import copy
import dataclasses
import itertools
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from paredown.core.effort import Effort
from paredown.core.errors import BatchError, NotFiniteError, NotTrainableError, TaskError, TrainingDivergedError
from paredown.core.steps import Training
from paredown.task.batches import Batch
from paredown.train.loop import fit_
from tests.conftest import make_small_resnet

X = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 10
SHORT = Training(effort=Effort(4, "steps"))


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(X, Y), 16, shuffle=True)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def counted(model: nn.Module, training: Training, batches: object = None) -> int:
    calls = itertools.count()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        next(calls)
        return cross_entropy(model, batch)

    fit_(model, batches or loader(), loss, training)  # type: ignore[arg-type]  # any batches
    return next(calls)


def test_training_lowers_the_loss_and_returns_the_model_itself_in_evaluation_mode(small_resnet: nn.Module) -> None:
    before = float(cross_entropy(small_resnet, (X, Y)).detach())
    found = fit_(small_resnet, loader(), cross_entropy, Training(effort=Effort(10), learning_rate=0.1))
    assert found is small_resnet
    assert not any(module.training for module in found.modules())
    assert all(parameter.grad is None for parameter in found.parameters())
    assert float(cross_entropy(found, (X, Y)).detach()) < 0.5 * before


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "ema": 0.9}, {"channels_last": False, "clip": None}])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(small_resnet: nn.Module, changes: dict[str, object]) -> None:
    training = dataclasses.replace(SHORT, **changes)
    first, second, other = (copy.deepcopy(small_resnet) for _ in range(3))
    fit_(first, loader(), cross_entropy, training, seed=1)
    torch.manual_seed(99)
    fit_(second, loader(), cross_entropy, training, seed=1)
    fit_(other, loader(), cross_entropy, training, seed=2)
    assert equal(state(first), state(second))
    assert not equal(state(first), state(other))


def test_the_users_generators_go_on_from_where_they_were(small_resnet: nn.Module) -> None:
    def draws() -> tuple[float, float, float]:
        return float(torch.rand(1)), float(np.random.rand()), random.random()

    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = draws()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    fit_(small_resnet, loader(), cross_entropy, SHORT)
    assert draws() == expected


def test_one_step_is_sgd_with_nesterov_momentum_and_decay_on_matrices_only() -> None:
    model = nn.Linear(3, 2)
    model.bias.data.fill_(1.0)
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    expected = copy.deepcopy(model)
    F.mse_loss(expected(x), y).backward()
    training = Training(effort=Effort(1, "steps"), learning_rate=0.1, weight_decay=0.5, warmup=0, clip=None)
    fit_(model, [(x, y)], lambda m, b: F.mse_loss(m(b[0]), b[1]), training)
    rate = 0.1 * 0.5 * (1 + math.cos(math.pi * 0.5))  # the middle of the only step
    weight = expected.weight.detach()
    assert torch.allclose(model.weight, weight - rate * 1.9 * (expected.weight.grad + 0.5 * weight), atol=1e-6)
    assert torch.allclose(model.bias, expected.bias.detach() - rate * 1.9 * expected.bias.grad, atol=1e-6)


def test_fused_steps_on_channels_last_weights_equal_plain_ones(small_resnet: nn.Module) -> None:
    plain, double = copy.deepcopy(small_resnet).double(), copy.deepcopy(small_resnet).double()
    batches = [(X.double(), Y)]
    fit_(plain, batches, cross_entropy, dataclasses.replace(SHORT, channels_last=False))
    fit_(double, batches, cross_entropy, SHORT)
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, double.state_dict()[name], rtol=1e-9, atol=1e-12), name


def test_gradients_are_clipped_to_the_norm() -> None:
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    training = Training(effort=Effort(1, "steps"), learning_rate=1, weight_decay=0, warmup=0, clip=1.0)
    fit_(model, [(torch.full((4, 2), 1e4), None)], lambda m, b: m(b[0]).sum(), training)
    assert float((model.weight.detach() - before).norm()) == pytest.approx(0.5 * 1.9, rel=1e-3)  # rate 0.5, Nesterov 1.9, norm 1


@pytest.mark.parametrize(
    ("effort", "steps"), [(Effort(2), 8), (Effort(5, "steps"), 5), (Effort(0.5), 2), (Effort(1e-4, "seconds"), 1)]
)
def test_training_takes_exactly_the_effort(small_resnet: nn.Module, effort: Effort, steps: int) -> None:
    assert counted(small_resnet, Training(effort=effort)) == steps


def test_seconds_end_the_training(small_resnet: nn.Module) -> None:
    assert counted(small_resnet, Training(effort=Effort(0.3, "seconds"))) > 1


def test_weights_are_contiguous_afterwards_and_inputs_channels_last_meanwhile() -> None:
    seen: list[bool] = []
    model = make_small_resnet(16)  # no shortcut so narrow that it doesn't train channels last

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        conv = model.get_submodule("block1.conv1")
        seen.append(conv.weight.is_contiguous(memory_format=torch.channels_last) and not conv.weight.is_contiguous())
        return cross_entropy(model, batch)

    fit_(model, loader(), loss, SHORT)
    assert seen == [True] * 4
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_average_lies_between_the_first_and_the_last_weights(small_resnet: nn.Module) -> None:
    first, last, averaged = (copy.deepcopy(small_resnet) for _ in range(3))
    fit_(last, loader(), cross_entropy, SHORT)
    fit_(averaged, loader(), cross_entropy, dataclasses.replace(SHORT, ema=0.999))
    for name in ("head.weight", "block1.bn1.running_mean"):
        start, end, middle = (model.state_dict()[name] for model in (first, last, averaged))
        assert 0 < (middle - start).norm() < (end - start).norm(), name
    assert int(averaged.state_dict()["stem.1.num_batches_tracked"]) == int(last.state_dict()["stem.1.num_batches_tracked"])


def test_nan_loss_stops_with_step_and_last_loss_and_leaves_the_model_as_it_was(small_resnet: nn.Module) -> None:
    before, calls = state(small_resnet), itertools.count()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch) * (math.nan if next(calls) == 3 else 0) + 2.5

    small_resnet.train()
    small_resnet.get_submodule("head").eval()
    with pytest.raises(TrainingDivergedError, match=r"got nan at step 3, after 2\.5; lower learning_rate \(now 0\.02\)"):
        fit_(small_resnet, loader(), loss, Training(effort=Effort(3)))
    assert equal(state(small_resnet), before)
    assert small_resnet.training and not small_resnet.get_submodule("head").training
    assert all(parameter.is_contiguous() and parameter.grad is None for parameter in small_resnet.parameters())


def test_weights_that_diverge_in_the_last_step_are_an_error() -> None:
    model = nn.Linear(2, 1)
    training = Training(effort=Effort(1, "steps"), learning_rate=1e38, clip=None)
    with pytest.raises(TrainingDivergedError, match="after the last step"):
        fit_(model, [(torch.full((4, 2), 1e4), None)], lambda m, b: m(b[0]).sum() * 1e4, training)
    assert bool(torch.isfinite(model.weight).all())


def test_an_interrupt_leaves_the_model_as_it_was(small_resnet: nn.Module) -> None:
    before = state(small_resnet)

    def progress(_label: str, _fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_(small_resnet, loader(), cross_entropy, SHORT, progress=progress)
    assert equal(state(small_resnet), before)


def test_nothing_of_accelerate_stays_on_the_model(small_resnet: nn.Module) -> None:
    before = set(vars(small_resnet))
    fit_(small_resnet, loader(), cross_entropy, SHORT)
    assert set(vars(small_resnet)) == before


def test_each_pass_is_announced(small_resnet: nn.Module) -> None:
    class Shuffling:
        def __init__(self) -> None:
            self.epochs: list[int] = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

        def __iter__(self) -> Iterator[Batch]:
            return iter([(X[:16], Y[:16]), (X[16:32], Y[16:32])])

    batches = Shuffling()
    assert counted(small_resnet, Training(effort=Effort(3)), batches) == 6
    assert batches.epochs[:3] == [0, 1, 2]
    assert batches.epochs[-1] == 0  # what comes next sees the batches as a resumed run would


def test_progress_ends_at_one(small_resnet: nn.Module) -> None:
    seen: list[float] = []
    fit_(small_resnet, loader(), cross_entropy, SHORT, progress=lambda _, fraction: seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[0] == 0 and seen[-1] == 1


def test_frozen_parameters_stay(small_resnet: nn.Module) -> None:
    frozen = small_resnet.get_submodule("stem.0").weight
    frozen.requires_grad_(False)
    before = frozen.clone()
    fit_(small_resnet, loader(), cross_entropy, SHORT)
    assert torch.equal(frozen, before)


def test_a_model_without_gradients_is_an_error_with_its_remedy(small_resnet: nn.Module) -> None:
    with pytest.raises(NotTrainableError, match="requires_grad_"):
        fit_(small_resnet.requires_grad_(False), loader(), cross_entropy, SHORT)


@pytest.mark.parametrize("value", [lambda out: out, lambda out: out.detach().sum(), lambda out: 1.0])
def test_a_loss_that_is_no_trainable_scalar_is_an_error(small_resnet: nn.Module, value: object) -> None:
    with pytest.raises(TaskError, match="scalar tensor that depends"):
        fit_(small_resnet, loader(), lambda m, b: value(m(b[0])), SHORT)  # type: ignore[operator]  # a function


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], BatchError, "at least one batch"),
        ([(X / 0, Y)], NotFiniteError, "inputs of train"),
        ([(X[:1, :, :1, :1], Y[:1])], BatchError, "drop_last=True"),
        (iter([(X, Y)]), BatchError, "re-iterable"),
    ],
)
def test_bad_batches_are_errors(small_resnet: nn.Module, batches: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit_(small_resnet, batches, cross_entropy, SHORT)  # type: ignore[arg-type]  # bad on purpose


@pytest.mark.slow
def test_digits_are_learnt_in_seconds() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)

    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1300], order[1300:]
    batches = DataLoader(TensorDataset(x[train], y[train]), 64, shuffle=True, drop_last=True)
    model = fit_(make_small_resnet(16), batches, cross_entropy, Training(effort=Effort(12), learning_rate=0.1))
    assert float((model(x[test]).argmax(1) == y[test]).double().mean()) > 0.97


def test_the_environment_of_accelerate_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fit_(make_small_resnet(), loader(), cross_entropy, SHORT)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert equal(state(fit_(make_small_resnet(), loader(), cross_entropy, SHORT)), state(plain))


def test_an_accelerator_of_the_callers_own_can_be_made_afterwards() -> None:
    code = (
        "import torch; from torch import nn; from paredown.train.loop import fit_; from paredown.core.steps import Training\n"
        "fit_(nn.Linear(2, 1), [(torch.ones(4, 2), None)], lambda m, b: m(b[0]).mean(), Training('1 steps'))\n"
        "from accelerate import Accelerator; print(Accelerator(mixed_precision='bf16').mixed_precision)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout == "bf16\n", done.stderr


class Remembering(nn.Module):
    """Its forward makes a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.register_buffer("seen", x.detach())
        y: Tensor = self.layer(x)
        return y


def test_an_error_is_the_users_own_where_a_buffer_was_made_meanwhile() -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        model(batch[0])
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        fit_(Remembering(), [(torch.ones(4, 2), None)], loss, SHORT)


@pytest.mark.parametrize(("optimizer", "clip"), [("sgd", None), ("sgd", 1.0), ("adamw", None)])
def test_sparse_embeddings_train(optimizer: Literal["sgd", "adamw"], clip: float | None) -> None:
    table = nn.Embedding(10, 4, sparse=True)
    before = table.weight.detach().clone()
    training = Training(effort=Effort(2, "steps"), optimizer=optimizer, clip=clip, weight_decay=0)
    fit_(table, [(torch.tensor([1, 2]), None)], lambda model, batch: model(batch[0]).square().mean(), training)
    assert not torch.equal(table.weight[1], before[1]) and torch.equal(table.weight[3], before[3])
