"""What rounding costs at each width, a weight or a tensor at a time: tables of float64, higher is worse.

    metric   the drop of the task's own metric with this weight (what is read) alone on its grid
    noise    the squared error of the model's output, relative to the output (1 / SQNR), likewise
    hessian  mean of the Hessian's diagonal over the weight (what is read) times its squared error
             (HAWQ-V2, Dong et al., arXiv:1911.03852, eq. 10). Of the output's distance from what it was, |y - y0|^2 / 2 a
             sample, which needs no targets and is at its minimum: H = J^T J with J = dy/dw, and its trace is E[|J^T u|^2], u of
             random signs (Hutchinson's estimate of J J^T)

Weights: (layers, choices), of one model per choice, the same graph calibrated at that width. What is read: (tensors, choices), a
tensor that several layers read stands once, under the key of its quantizer (`tensors_of`).
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from paredown.core.errors import NotTrainableError, TaskError
from paredown.measure.quality import score
from paredown.quantization.costs import Table
from paredown.quantization.layers import Layer, layers_of, unquantized
from paredown.quantization.model import QuantizedModel
from paredown.quantization.placement import key_before
from paredown.task.batches import Inputs, batch_size, call, rows_of, tensors
from paredown.task.task import Task

_AT_ONCE = 8  # samples


@dataclass(frozen=True)
class Traces:
    """Of the Hessian: weights (layers,), tensors (tensors,) in the order of `tensors_of`, empty where they weren't asked for."""

    weights: Table
    tensors: Table


def tensors_of(model: QuantizedModel) -> tuple[str, ...]:
    """The quantizers of what layers read, in the order of the graph, each once."""
    return tuple(dict.fromkeys(key for layer in layers_of(model) if (key := key_before(layer.node))))


def parts_of(model: QuantizedModel, *, read: bool) -> list[tuple[str, ...]]:
    """The quantizers that belong together: of what each tensor is, or of each layer's weight and bias."""
    if read:
        return [(key,) for key in tensors_of(model)]
    return [(f"{layer.key}:weight", f"{layer.key}:bias") for layer in layers_of(model)]


@contextmanager
def only(model: QuantizedModel, keys: Collection[str]) -> Iterator[None]:
    """Within it these quantizers are on, all else is in float."""
    with unquantized(model, [key for key in model.quantizers if key not in keys]):
        yield


def noise(model: QuantizedModel, batches: Sequence[Inputs]) -> float:
    """Relative squared error of the output of the model as it stands, summed over the batches."""
    with torch.no_grad(), unquantized(model):
        wanted = [_output(model, inputs) for inputs in batches]
    return _distance(model, batches, wanted)


def noise_table(models: Sequence[QuantizedModel], batches: Sequence[Inputs], *, read: bool = False) -> Table:
    """models: one per choice. Relative squared error of the output, summed over the batches. read: of what layers read."""
    with torch.no_grad(), unquantized(models[0]):
        wanted = [_output(models[0], inputs) for inputs in batches]

    def alone(model: QuantizedModel, keys: tuple[str, ...]) -> float:
        with only(model, keys):
            return _distance(model, batches, wanted)

    return _table(models, alone, read=read)


def metric_table(models: Sequence[QuantizedModel], task: Task, *, read: bool = False) -> Table:
    """models: one per choice. The drop on the validation split, in the metric's units; negative where it got better."""
    sign = 1.0 if task.scorer.higher_is_better else -1.0
    with unquantized(models[0]):
        before = score(lambda inputs: call(models[0], inputs), task, "validation").value

    def drop(model: QuantizedModel, keys: tuple[str, ...]) -> float:
        with only(model, keys):
            return sign * (before - score(lambda inputs: call(model, inputs), task, "validation").value)

    return _table(models, drop, read=read)


def hessian_table(models: Sequence[QuantizedModel], traces: Traces) -> Table:
    """models: one per choice. Of weights."""
    means = [trace / layer.weight(models[0]).numel() for layer, trace in zip(layers_of(models[0]), traces.weights, strict=True)]

    def error(model: QuantizedModel, layer: Layer) -> float:
        weight = layer.weight(model).detach()
        with torch.no_grad():
            return float((layer.quantizer(model)(weight) - weight).square().sum())

    rows = [[mean * error(m, layers_of(m)[i]) for m in models] for i, mean in enumerate(means)]
    return np.array(rows, dtype=np.float64)


def hessian_table_of_tensors(models: Sequence[QuantizedModel], traces: Traces, batches: Sequence[Inputs]) -> Table:
    """models: one per choice; batches: those that the traces were taken of."""
    keys = tensors_of(models[0])
    sums, counts = np.zeros((len(keys), len(models))), np.zeros(len(keys))
    for inputs in _few_at_a_time(batches):
        with torch.no_grad(), unquantized(models[0]), _seeing(models[0], keys) as seen:
            call(models[0], inputs)
        for row, key in enumerate(keys):
            x = seen[key].detach()
            counts[row] += x.numel()
            with torch.no_grad():
                sums[row] += [float((model.quantizer(key)(x) - x).square().sum()) for model in models]
    table: Table = traces.tensors[:, None] * sums / counts[:, None]
    return table


def hessian_traces(
    model: QuantizedModel, batches: Sequence[Inputs], *, draws: int = 8, seed: int = 0, read: bool = False
) -> Traces:
    """Over each layer's weights, and with `read` over what layers read, in the float model, averaged over draws and samples.

    One derivative of u^T y gives J^T u of all layers at once. v^T H v with signs v in all layers would hold for each layer what
    the others' signs add to it: small traces drown in that, and may come out below 0.

    Raises NotTrainableError where no gradient gets from the outputs to one of them, or one isn't finite.
    """
    weights, keys = [layer.weight(model) for layer in layers_of(model)], tensors_of(model) if read else ()
    generator = torch.Generator().manual_seed(seed)
    sums, samples = torch.zeros(len(weights) + len(keys), dtype=torch.float64), sum(map(batch_size, batches))
    with unquantized(model), torch.enable_grad(), _trainable(weights):
        for inputs in _few_at_a_time(batches):
            sums += _squared_slopes(model, inputs, weights, keys, draws, generator)
    means = sums.numpy() / (draws * samples)
    return Traces(means[: len(weights)], means[len(weights) :])


def _few_at_a_time(batches: Sequence[Inputs]) -> Iterator[Inputs]:
    """Parts of a batch, as even as they can be: what a gradient needs is kept of `_AT_ONCE` samples at most."""
    for inputs in batches:
        samples = batch_size(inputs)
        parts = -(-samples // _AT_ONCE)
        ends = [samples * part // parts for part in range(parts + 1)]
        for start, end in itertools.pairwise(ends):
            yield rows_of(inputs, samples, slice(start, end))


def _squared_slopes(
    model: QuantizedModel,
    inputs: Inputs,
    weights: Sequence[Tensor],
    keys: Collection[str],
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """|J^T u|^2 summed over draws of u, float64: of each weight, then of each tensor that is read. No graph is left."""
    with _seeing(model, keys) as seen:
        output = _output(model, inputs)
    over = [*weights, *(seen[key] for key in keys)]
    sums = torch.zeros(len(over), dtype=torch.float64)
    for _ in range(draws):
        signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
        sums += torch.stack([slope.square().sum().double().cpu() for slope in _slopes(output @ signs, over)])
    if not bool(sums.isfinite().all()):
        raise _without_gradients("NaN or infinity")
    return sums


def _slopes(value: Tensor, over: Sequence[Tensor]) -> list[Tensor]:
    if not value.requires_grad:
        raise _without_gradients(f"none for {len(over)} of {len(over)}")
    try:
        found = torch.autograd.grad(value, over, retain_graph=True, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # an operator that has no derivative, or whose input was overwritten
        raise _without_gradients(str(error).partition("\n")[0]) from error
    slopes = [slope for slope in found if slope is not None]
    if len(slopes) < len(over):
        raise _without_gradients(f"none for {len(over) - len(slopes)} of {len(over)}")
    return slopes


def _without_gradients(got: str) -> NotTrainableError:
    return NotTrainableError(
        "the Hessian takes a gradient from the outputs to every weight, and to what layers read",
        got=got,
        remedy='write sensitivity="noise", which takes none',
    )


@contextmanager
def _trainable(weights: Sequence[Tensor]) -> Iterator[None]:
    """Within it frozen ones require a gradient too."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


@contextmanager
def _seeing(model: QuantizedModel, keys: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Within it what passes these quantizers first is kept, by key, as a tensor that a derivative can be taken of."""
    seen: dict[str, Tensor] = {}

    def keep(key: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if key in seen:  # a quantizer that is restated behind a padding is called again
                return None
            seen[key] = output if output.requires_grad or not torch.is_grad_enabled() else output.detach().requires_grad_()
            return seen[key]

        return hook

    handles = [model.quantizer(key).register_forward_hook(keep(key)) for key in keys]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _table(models: Sequence[QuantizedModel], value: Callable[[QuantizedModel, tuple[str, ...]], float], *, read: bool) -> Table:
    """(layers or tensors, choices)."""
    columns = [[value(model, keys) for keys in parts_of(model, read=read)] for model in models]
    return np.array(columns, dtype=np.float64).T


def _distance(model: QuantizedModel, batches: Sequence[Inputs], wanted: Sequence[Tensor]) -> float:
    """Of the model's outputs from those wanted, squared and relative to them."""
    with torch.no_grad():
        errors = [(_output(model, inputs) - y).square().sum() for inputs, y in zip(batches, wanted, strict=True)]
    return float(torch.stack(errors).sum()) / max(sum(float(y.square().sum()) for y in wanted), 1e-300)


def _output(model: nn.Module, inputs: Inputs) -> Tensor:
    """All floating-point outputs as one vector. Raises TaskError where there is none."""
    outputs = tensors(call(model, inputs))
    if not (floats := [t.double().flatten() for t in outputs if t.is_floating_point()]):
        raise TaskError(
            "what rounding does to the outputs is seen in floating-point ones",
            got=", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in outputs})),
            remedy='write sensitivity="metric"',
        )
    return torch.cat(floats)
