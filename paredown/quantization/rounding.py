"""AdaRound (Nagel et al., "Up or Down?", arXiv:2004.10568, eq. 21 to 25): which weights to round up, learned layer by layer.

    W~ = s (clamp(floor(W / s) + h(V) + z, low, high) - z),   h(V) = clamp(1.2 sigmoid(V) - 0.1, 0, 1)
    min over V of  || f(W x) - f(W~ x~) ||^2 + lambda sum(1 - |2 h(V) - 1|^beta)

x what the float model gives the layer, x~ what the quantized one does; beta falls, so that h ends at 0 or 1.
V has the weight's shape. The same optimization over several layers at once is block reconstruction (`reconstruction.py`).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paredown.core.errors import BatchError, RecipeError
from paredown.core.fields import count, positive, within
from paredown.quantization.grid import per_entry
from paredown.quantization.layers import Layer, Part, layers_of, node_named, part_of, unquantized, values_at
from paredown.quantization.model import FakeQuantizer, QuantizedModel
from paredown.task.batches import Inputs, batch_size

_STRETCH, _SHIFT = 1.2, -0.1


@dataclass(frozen=True)
class Rounding:
    """How V is trained. steps, samples per step, Adam's rate. penalty: lambda. warmup: fraction of the steps without it."""

    steps: int = 1000
    samples: int = 32
    learning_rate: float = 1e-2
    penalty: float = 0.01
    warmup: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        count("steps", self.steps)
        count("samples", self.samples)
        positive("learning_rate", self.learning_rate)
        positive("penalty", self.penalty)
        within("warmup", self.warmup, 0, 1)


class SoftRounding(nn.Module):
    """Stands for a weight's quantizer while V is trained. It begins where it changes nothing: floor(W / s) + h(V) = W / s."""

    def __init__(self, weight: Tensor, quantizer: FakeQuantizer) -> None:
        super().__init__()
        self.grid = quantizer.grid
        s, z = (per_entry(t, weight, quantizer.block).reshape(weight.shape) for t in (quantizer.scale, quantizer.zero_point))
        steps = weight.detach() / s
        self.register_buffer("scale", s)
        self.register_buffer("zero_point", z)
        self.register_buffer("below", steps.floor())
        rest = (steps - steps.floor()).clamp(1e-4, 1 - 1e-4)
        self.v = nn.Parameter(-torch.log(_STRETCH / (rest - _SHIFT) - 1))

    def up(self) -> Tensor:
        """h(V): how far each weight is rounded up, in [0, 1]."""
        return (_STRETCH * torch.sigmoid(self.v) + _SHIFT).clamp(0, 1)

    def forward(self, _weight: Tensor) -> Tensor:
        return self._values(self.up())

    def rounded(self) -> Tensor:
        """The weight on its grid, each value up or down by h(V) >= 1/2."""
        return self._values((self.up().detach() >= 0.5).to(self.v.dtype))

    def penalty(self, beta: float) -> Tensor:
        return (1 - (2 * self.up() - 1).abs() ** beta).sum()

    def _values(self, up: Tensor) -> Tensor:
        below, scale, zero = self.get_buffer("below"), self.get_buffer("scale"), self.get_buffer("zero_point")
        return ((below + up + zero).clamp(self.grid.low, self.grid.high) - zero) * scale


def adaround_(
    model: QuantizedModel, batches: Sequence[Inputs], config: Rounding | None = None, *, keys: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Rounds layer after layer (all, or those of `keys`), each on what the rounded ones before it give; returns their keys.

    The model is calibrated; batches: inputs, their activations at one layer are held in memory. Afterwards the weights lie on
    their grids: rounding them again changes nothing.
    """
    reference = copy.deepcopy(model)
    chosen = [layer for layer in layers_of(model) if keys is None or layer.key in keys]
    for layer in chosen:
        part = part_of(model, [layer.node])
        learn_(model, reference, part, [layer], batches, config or Rounding())
    return tuple(layer.key for layer in chosen)


def learn_(
    model: QuantizedModel,
    reference: QuantizedModel,
    part: Part,
    layers: Sequence[Layer],
    batches: Sequence[Inputs],
    config: Rounding,
) -> None:
    """Learns the rounding of the layers of one part against its result in the float reference, and writes their weights."""
    inputs, wanted = _seen(model, reference, part, batches)
    soft = [_soften_(part, layer, model) for layer in layers]
    optimizer = torch.optim.Adam([s.v for s in soft], lr=config.learning_rate)
    generator = torch.Generator().manual_seed(config.seed)
    for step in range(config.steps):
        rows = torch.randint(len(wanted), (min(config.samples, len(wanted)),), generator=generator)
        result = _run(part, [x[rows] if by_sample else x for x, by_sample in inputs], layers)
        loss = _distance(result, wanted[rows])
        beta = _beta(step / config.steps, config.warmup)
        if beta is not None:
            loss = loss + config.penalty * torch.stack([s.penalty(beta) for s in soft]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    with torch.no_grad():
        for layer, s in zip(layers, soft, strict=True):
            weight = layer.weight(model)
            weight.copy_(s.rounded().to(weight.dtype))


def _run(part: Part, inputs: Sequence[Tensor], layers: Sequence[Layer]) -> Tensor:
    """Raises RecipeError where the part holds the number of samples that it was cut out with."""
    try:
        result: Tensor = part.module(*inputs)
    except (RuntimeError, IndexError) as error:
        got = f"{layers[0].path}: {str(error).partition(chr(10))[0]}"
        rule, remedy = "a block whose rounding is learned must take any number of samples", 'write refine=("adaround",)'
        raise RecipeError(rule, got=got, remedy=remedy) from error
    return result


def _seen(
    model: QuantizedModel, reference: QuantizedModel, part: Part, batches: Sequence[Inputs]
) -> tuple[list[tuple[Tensor, bool]], Tensor]:
    """What the part reads in the quantized model, and what it gives in the float reference, (samples, ...) each. What hasn't as
    many rows as there are samples, a mask for one, is no sample's own: it is what it is for the first batch, and marked False.

    Raises BatchError where samples differ in shape.
    """
    read = [values_at(model, part.sources, inputs) for inputs in batches]
    result = node_named(reference, part.result.name)
    with unquantized(reference):
        given = [values_at(reference, [result], inputs)[0] for inputs in batches]
    shapes = {tuple(y.shape[1:]) for y in given}
    if len(shapes) > 1:
        raise BatchError(
            "rounding is learned on samples of one shape",
            got=" and ".join(str(shape) for shape in sorted(shapes)[:2]),
            remedy="pad the first training batches to one length, or leave adaround and brecq out of refine",
        )
    sizes = [batch_size(inputs) for inputs in batches]
    found = []
    for column in zip(*read, strict=True):
        by_sample = all(isinstance(x, Tensor) and x.dim() and len(x) == n for x, n in zip(column, sizes, strict=True))
        found.append((torch.cat(column) if by_sample else column[0], by_sample))
    return found, torch.cat(given)


def _soften_(part: Part, layer: Layer, model: QuantizedModel) -> SoftRounding:
    """Puts a SoftRounding in the place of the layer's quantizer, in the part alone."""
    soft = SoftRounding(layer.weight(model), layer.quantizer(model))
    part.module.get_submodule("quantizers").add_module(f"{layer.key}:weight", soft)
    return soft


def _distance(result: Tensor, wanted: Tensor) -> Tensor:
    """Squared error, summed over the channels and averaged over the rest, as the paper weighs it against the penalty."""
    channels = 1 if wanted.dim() > 2 else -1
    if wanted.dim() == 3:
        channels = -1  # (batch, tokens, channels)
    return (result - wanted).square().sum(channels).mean()


def _beta(fraction: float, warmup: float) -> float | None:
    """None while warming up, then from 20 to 2 along a cosine."""
    if fraction < warmup:
        return None
    part = (fraction - warmup) / max(1 - warmup, 1e-9)
    return float(2 + 9 * (1 + torch.cos(torch.tensor(part * torch.pi))))
