"""The only training loop, on Accelerate: one process now, and the same code under `accelerate launch`.

With several processes each takes every so-many-th batch, gradients are averaged, and an effort in epochs counts whole
passes of all processes together.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from paredown.core.errors import NotTrainableError, TaskError, TrainingDivergedError
from paredown.core.progress import Progress, silent
from paredown.core.steps import Training
from paredown.task.batches import Batch, Batches, device_of, without_gradient
from paredown.train.average import Average
from paredown.train.batchnorm import needing_two_samples
from paredown.train.layout import laid_out, lay_out_, layout_for
from paredown.train.masks import Masks
from paredown.train.passes import Passes, announce
from paredown.train.processes import from_first
from paredown.train.schedule import Clock, clock_of, rate
from paredown.train.seeds import seeded
from paredown.train.state import Keeping, Point, State, named_tensors

Loss = Callable[[nn.Module, Batch], Tensor]

_LABEL = "train"
_EVERY = 0.1  # seconds between two reports of progress


def fit_(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    training: Training,
    *,
    frozen: Collection[str] = (),
    seed: int = 0,
    progress: Progress = silent,
    keeping: Keeping | None = None,
) -> nn.Module:
    """Trains the model where it stands and returns it in evaluation mode.

    frozen: names of modules whose weights and statistics stay as they are, beside those of `training`; a name that the
    model lacks is passed over.

    loss: (model, (inputs, target)) -> scalar tensor; the batch is on the model's device. Call the model that is passed in.
    batches: their `set_epoch(epoch)`, or their sampler's, is called before each pass where there is one, and with 0 at the end.
    The same seed gives the same weights, bit for bit on one thread, if the batches draw from the global generators only.
    keeping: where it is kept how far the training got; one that was killed goes on from there. In one process only.

    Raises TrainingDivergedError (a loss that is NaN or infinite), NotTrainableError, BatchError, TaskError. On any error the
    model keeps the weights, buffers and modes from before.
    """
    still = [module for name, module in model.named_modules() if name in {*frozen, *training.frozen}]
    try:
        with _unharmed(model), without_gradient(still), _prepared_once(model), seeded(seed), _accelerator() as accelerator:
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise NotTrainableError(
                    "training needs parameters that require a gradient",
                    got="none",
                    remedy="call model.requires_grad_(True), or protect less",
                )
            _run_(model, still, batches, loss, training, progress, keeping, accelerator)
    finally:
        announce(batches, 0)  # what comes next sees the batches as a resumed run would
    return model.eval()


def _run_(
    model: nn.Module,
    frozen: list[nn.Module],
    batches: Batches,
    loss: Loss,
    training: Training,
    progress: Progress,
    keeping: Keeping | None,
    accelerator: Any,
) -> None:
    if accelerator.num_processes > 1:
        model.to(accelerator.device)
    layout = layout_for(model, batches) if training.channels_last else torch.contiguous_format
    lay_out_(model, layout)
    clock = clock_of(training.effort, batches, accelerator.num_processes)
    optimizer, masks = _prepared(_optimizer(model, training), accelerator), Masks(model)
    average = None if training.ema is None else Average(model, training.ema)
    passes = Passes(batches, device_of(model), accelerator)
    state = None if keeping is None else _state(keeping, model, training, optimizer, average, passes, accelerator)
    point = Point() if state is None else state.restore_()
    if point.finished:
        return
    clock = clock.after(point.spent)
    parallel = accelerator.prepare_model(model.train())
    for module in frozen:
        module.eval()
    weights, last, shown = list(model.parameters()), point.last, 0.0
    for step, batch in enumerate(passes, point.step):
        fraction = _agreed(clock, step, accelerator)
        if fraction >= 1 and step > 0:  # however short, one step at least
            break
        _set_rate(optimizer, training.learning_rate * rate(_middle(clock, fraction), training.warmup))
        value = _loss(loss, parallel, laid_out(batch, layout))
        last = _finite(float(value.detach()), step, last, training)
        accelerator.backward(value)
        _densify_gradients_(weights)
        masks.mask_gradients_()
        if training.clip is not None:
            accelerator.clip_grad_norm_(weights, training.clip)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(model)
        if state is not None:
            state.save_if_due(Point(step + 1, clock.spent(), last))
        if time.monotonic() - shown > _EVERY:
            progress(_LABEL, fraction)
            shown = time.monotonic()
    if average is not None:
        average.write_(model)
    _check_weights(model, last, training)
    if state is not None:
        state.finish()
    progress(_LABEL, 1.0)


@contextmanager
def _accelerator() -> Iterator[Any]:
    """Accelerate's view of the processes, which steps at every batch. In one process what others find of it is as before."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import GradientAccumulationPlugin

    shared = [kind._shared_state for kind in (AcceleratorState, GradientState, PartialState)]  # an Accelerator sets them for good
    before = [dict(state) for state in shared]
    one_step = GradientAccumulationPlugin(num_steps=1)  # whatever the environment says: the loss would be divided by it
    accelerator = Accelerator(device_placement=False, gradient_accumulation_plugin=one_step)
    try:
        yield accelerator
    finally:
        if accelerator.num_processes == 1:
            for state, values in zip(shared, before, strict=True):
                state.clear()
                state.update(values)


def _optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Weight decay applies to matrices and kernels, not to biases, norms and scales (1 dimension or none)."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": training.weight_decay},
        {"params": [w for w in weights if w.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = all(w.is_floating_point() and w.device.type in ("cpu", "cuda") for w in weights)  # half of foreach's time
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=training.learning_rate, fused=fused)
    return torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9, nesterov=True, fused=fused)


def _state(
    keeping: Keeping,
    model: nn.Module,
    training: Training,
    optimizer: Any,
    average: Average | None,
    passes: Passes,
    accelerator: Any,
) -> State:
    if accelerator.num_processes > 1:
        raise TaskError(
            "how far a training got is kept in one process only", got=accelerator.num_processes, remedy="leave resume out"
        )
    return State(keeping, model, training, optimizer, average, passes)


def _prepared(optimizer: torch.optim.Optimizer, accelerator: Any) -> Any:
    """Accelerate's wrapper where it has something to do; in one process without loss scaling it only costs 0.5 ms a step.

    (It searches the disk for an optional package at each one, accelerate 1.15.)
    """
    if accelerator.num_processes == 1 and accelerator.scaler is None:
        return optimizer
    return accelerator.prepare_optimizer(optimizer)


def _set_rate(optimizer: Any, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _agreed(clock: Clock, step: int, accelerator: Any) -> float:
    """The fraction of the effort that is spent; by the first process's watch where there are several."""
    fraction = clock.fraction(step)
    if clock.steps is not None or accelerator.num_processes == 1:
        return fraction
    return float(from_first(torch.tensor(fraction, dtype=torch.float64, device=accelerator.device)))


def _middle(clock: Clock, fraction: float) -> float:
    """The middle of the step that begins at `fraction`, so that neither the first nor the last has a rate of 0."""
    return fraction if clock.steps is None else min(1.0, fraction + 0.5 / clock.steps)


def _loss(loss: Loss, model: nn.Module, batch: Batch) -> Tensor:
    with needing_two_samples():
        value = loss(model, batch)
    if not isinstance(value, Tensor) or value.dim() != 0 or not value.requires_grad:
        kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TaskError(
            "the loss must be a scalar tensor that depends on the model's parameters", got=kind,
            remedy="take its mean over the batch; don't detach it, and don't compute it under no_grad",
        )  # fmt: skip
    return value


def _densify_gradients_(weights: list[nn.Parameter]) -> None:
    """Those of nn.Embedding(sparse=True): neither AdamW nor SGD with weight decay or Nesterov's momentum takes them sparse."""
    for weight in weights:
        if weight.grad is not None and weight.grad.is_sparse:
            weight.grad = weight.grad.to_dense()


def _finite(value: float, step: int, last: float, training: Training) -> float:
    if not math.isfinite(value):
        raise _diverged(f"{value} at step {step}", last, training)
    return value


def _check_weights(model: nn.Module, last: float, training: Training) -> None:
    """The last step is not followed by a loss that would show it."""
    if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
        raise _diverged("NaN or infinite weights after the last step", last, training)


def _diverged(what: str, last: float, training: Training) -> TrainingDivergedError:
    return TrainingDivergedError(
        "the loss must stay finite",
        got=f"{what}, after {last:.4g}",
        remedy=f"lower learning_rate (now {training.learning_rate:g}), or set clip (now {training.clip})",
    )


@contextmanager
def _unharmed(model: nn.Module) -> Iterator[None]:
    """Gradients gone and weights contiguous afterwards; after an error values and modes as before."""
    modes = [(module, module.training) for module in model.modules()]
    before = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
    model.zero_grad(set_to_none=True)
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for name, tensor in named_tensors(model).items():
                if name in before and tensor.shape == before[name].shape:  # a forward pass may have made it, or resized it
                    tensor.copy_(before[name])
        for module, mode in modes:
            module.training = mode
        raise
    finally:
        model.zero_grad(set_to_none=True)
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()


@contextmanager
def _prepared_once(model: nn.Module) -> Iterator[None]:
    """Takes back what Accelerate leaves on a model: its mark, and the forward that it wraps for mixed precision."""
    names = ("_is_accelerate_prepared", "forward", "_original_forward")
    before = {name: model.__dict__[name] for name in names if name in model.__dict__}
    try:
        yield
    finally:
        for name in names:
            model.__dict__.pop(name, None)
        model.__dict__.update(before)
