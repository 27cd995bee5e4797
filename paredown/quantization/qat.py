"""Training a quantized model: straight-through, LSQ or PACT, on the same graph and operators that are exported.

    straight-through  y = D(Q(x)), dy/dx = 1 inside the range; scales stay      (Bengio et al., arXiv:1308.3432)
    LSQ               the scale is learned: dy/ds = round(x / s) - x / s inside, low - z or high - z outside, times
                      g = 1 / sqrt(n high), n the numbers that share the scale  (Esser et al., arXiv:1902.08153, eq. 3)
    PACT              the upper end alpha of each activation is learned: dy/dalpha = 1 where x >= alpha, 0 elsewhere, with
                      lambda alpha^2 in the loss; weights straight-through       (Choi et al., arXiv:1805.06085, eq. 1 to 3)

Where scales are to be powers of two, forward takes the nearest one and the gradient passes straight through (as Jain et al.,
arXiv:1903.08066, who learn its logarithm).

Scales begin where calibration put them; zero points stay. Biases are in float meanwhile and go back to their int32 grid, in
steps of s_x * s_w, at the end. Batch norms are folded, or frozen (`model.py`). The loss is the caller's: distillation arrives so.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from paredown.core.errors import OrderError
from paredown.core.fields import choice, within
from paredown.core.progress import Progress, silent
from paredown.core.steps import Training
from paredown.quantization.model import FakeQuantizer, QuantizedModel
from paredown.quantization.static import set_bias_scales_
from paredown.task.batches import Batch, Batches
from paredown.train.loop import Loss, fit_

Method = Literal["straight_through", "lsq", "pact"]
_SMALLEST = 1e-9


@dataclass(frozen=True)
class Learning:
    """method: what is learned besides weights. penalty: PACT's lambda."""

    method: Method = "lsq"
    penalty: float = 1e-4

    def __post_init__(self) -> None:
        choice("method", self.method, Method)
        within("penalty", self.penalty, 0, 1)


class LearnedStep(nn.Module):
    """LSQ: a quantizer whose scale is a parameter, of the quantizer's shape."""

    def __init__(self, quantizer: FakeQuantizer, *, is_weight: bool) -> None:
        super().__init__()
        self.origin, self.is_weight = quantizer, is_weight
        self.step = nn.Parameter(quantizer.scale.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        q = self.origin
        shared = x.numel() / self.step.numel() if self.is_weight else x[0].numel()
        factor = 1 / math.sqrt(max(shared * max(q.grid.high, 1), 1))
        s = spread(_scaled_gradient(self.scale(), factor), x, q)
        z = spread(q.zero_point, x, q).to(x.dtype)
        steps = _straight(x / s) + z
        return (steps.clamp(q.grid.low, q.grid.high) - z) * s

    def scale(self) -> Tensor:
        return _on_powers(self.step.abs().clamp(min=_SMALLEST), self.origin)


class LearnedClip(nn.Module):
    """PACT: an activation's quantizer whose upper end alpha (1,) is a parameter; the scale follows it."""

    def __init__(self, quantizer: FakeQuantizer) -> None:
        super().__init__()
        self.origin = quantizer
        self.alpha = nn.Parameter(quantizer.scale.detach() * self._steps())

    def forward(self, x: Tensor) -> Tensor:
        q, s = self.origin, self.scale().detach()
        clipped = torch.minimum(x, self.alpha.to(x.dtype)).maximum((q.grid.low - q.zero_point) * s)
        rounded = ((torch.round(clipped / s) + q.zero_point).clamp(q.grid.low, q.grid.high) - q.zero_point) * s
        return clipped + (rounded - clipped).detach()

    def scale(self) -> Tensor:
        return _on_powers((self.alpha / self._steps()).abs().clamp(min=_SMALLEST), self.origin)

    def _steps(self) -> Tensor:
        """How many steps lie above 0; 1 where all are below."""
        return (self.origin.grid.high - self.origin.zero_point).clamp(min=1)


def train_quantized(
    model: QuantizedModel,
    batches: Batches,
    loss: Loss,
    training: Training,
    learning: Learning | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> QuantizedModel:
    """A trained copy in evaluation mode; the model given is left untouched.

    loss: (model, (inputs, target)) -> scalar tensor, as `train.fit_` takes it.
    Raises OrderError where the model is not calibrated, and what `fit_` raises.
    """
    student = copy.deepcopy(model)
    with learned_scales(student, learning or Learning()) as changed:
        fit_(student, batches, changed(loss), training, seed=seed, progress=progress)
    return student.eval()


@contextmanager
def learned_scales(model: nn.Module, learning: Learning) -> Iterator[Callable[[Loss], Loss]]:
    """Within it the quantizers of the model (a QuantizedModel) learn; gives what has to be done to the loss.

    Afterwards they are those that were there, with the scales that were learned. Raises OrderError where the model is not
    calibrated.
    """
    assert isinstance(model, QuantizedModel)  # no other model has quantizers
    _check_calibrated(model)
    replaced = _learn_(model, learning.method)
    try:
        yield lambda loss: _with_penalty(loss, replaced, learning)
        model.learned = True
    finally:
        _restore_(model, replaced)
        with torch.no_grad():
            set_bias_scales_(model)


def spread(value: Tensor, x: Tensor, q: FakeQuantizer) -> Tensor:
    """A scale or zero point in a shape that broadcasts to x; gradients pass."""
    if q.block:
        rows, entries = x.shape[0], x.numel() // x.shape[0]
        return value.repeat_interleave(q.block, 1)[:, :entries].reshape(rows, *x.shape[1:])
    return value.view(()) if q.axis < 0 else value.view([-1 if d == q.axis else 1 for d in range(x.dim())])


def _learn_(model: QuantizedModel, method: Method) -> dict[str, LearnedStep | LearnedClip]:
    """Puts learning quantizers in place, and switches those of biases off where scales will move."""
    replaced: dict[str, LearnedStep | LearnedClip] = {}
    for key in list(model.quantizers):
        quantizer = model.quantizer(key)
        if method == "lsq" and not key.endswith(":bias"):
            replaced[key] = LearnedStep(quantizer, is_weight=key.endswith(":weight"))
        elif method == "pact" and not key.endswith((":bias", ":weight")):
            replaced[key] = LearnedClip(quantizer)
        elif method != "straight_through" and key.endswith(":bias"):
            quantizer.enabled = False
    for key, module in replaced.items():
        model.quantizers[key] = module
    return replaced


def _restore_(model: QuantizedModel, replaced: dict[str, LearnedStep | LearnedClip]) -> None:
    """The quantizers that were there, with the scales that were learned."""
    with torch.no_grad():
        for key, module in replaced.items():
            quantizer = module.origin
            quantizer.set_(module.scale().detach(), quantizer.zero_point)
            model.quantizers[key] = quantizer
    for key in model.quantizers:
        model.quantizer(key).enabled = True


def _with_penalty(loss: Loss, replaced: dict[str, LearnedStep | LearnedClip], learning: Learning) -> Loss:
    clips = [module.alpha for module in replaced.values() if isinstance(module, LearnedClip)]
    if not clips or not learning.penalty:
        return loss

    def penalized(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model, batch) + learning.penalty * torch.stack([alpha.square().sum() for alpha in clips]).sum()

    return penalized


def _check_calibrated(model: QuantizedModel) -> None:
    missing = [key for key in model.quantizers if not bool(torch.isfinite(model.quantizer(key).scale).all())]
    if missing:
        raise OrderError(
            "a model is calibrated before it is trained", got=f"no scale at {missing[0]}", remedy="call calibrate_ first"
        )


def _on_powers(scale: Tensor, quantizer: FakeQuantizer) -> Tensor:
    """The nearest power of two (of the logarithm), with the gradient of the scale, where the grid wants one."""
    if not quantizer.grid.power_of_two:
        return scale
    return scale + (torch.exp2(torch.round(torch.log2(scale))) - scale).detach()


def _straight(x: Tensor) -> Tensor:
    """round(x), with the gradient of x."""
    return x + (torch.round(x) - x).detach()


def _scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """x, with its gradient times `factor`."""
    return (x - x * factor).detach() + x * factor
