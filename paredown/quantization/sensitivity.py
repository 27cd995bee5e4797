"""What a layer loses at each width: one number per layer and choice, in a table (layers, choices) of float64, higher is worse.

    metric   the drop of the task's own metric with this layer alone on its grid
    noise    the squared error of the model's output, relative to the output (1 / SQNR), with this layer alone on its grid
    hessian  mean of the Hessian's diagonal over the layer's weights times the squared error of its weights
             (HAWQ-V2, Dong et al., arXiv:1911.03852, eq. 10); the trace by Hutchinson: E[v^T H v], v of random signs

All three take one model per choice, the same graph calibrated at that width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from paredown.measure.quality import score
from paredown.quantization.layers import Layer, layers_of, unquantized
from paredown.quantization.model import QuantizedModel
from paredown.quantization.nodes import argument
from paredown.quantization.weights import rounded
from paredown.task.batches import Batch, Inputs, batch_size, call, tensors
from paredown.task.task import Task
from paredown.train.loop import Loss

Table = npt.NDArray[np.float64]


@contextmanager
def only(model: QuantizedModel, layer: Layer) -> Iterator[None]:
    """Within it this layer's weight and what it reads are on their grids, all else is in float."""
    own = {f"{layer.key}:weight", f"{layer.key}:bias", input_key(layer)}
    with unquantized(model, [key for key in model.quantizers if key not in own]):
        yield


def noise_table(models: Sequence[QuantizedModel], batches: Sequence[Inputs]) -> Table:
    """models: one per choice. Relative squared error of the output, summed over the batches."""
    with torch.no_grad(), unquantized(models[0]):
        wanted = [_output(models[0], inputs) for inputs in batches]
    size = sum(float(y.square().sum()) for y in wanted)

    def noise(model: QuantizedModel, layer: Layer) -> float:
        with torch.no_grad(), only(model, layer):
            errors = [(_output(model, inputs) - y).square().sum() for inputs, y in zip(batches, wanted, strict=True)]
        return float(torch.stack(errors).sum()) / max(size, 1e-300)

    return _table(models, noise)


def metric_table(models: Sequence[QuantizedModel], task: Task) -> Table:
    """models: one per choice. The drop on the validation split, in the metric's units; negative where it got better."""
    sign = 1.0 if task.scorer.higher_is_better else -1.0
    with unquantized(models[0]):
        before = score(lambda inputs: call(models[0], inputs), task, "validation").value

    def drop(model: QuantizedModel, layer: Layer) -> float:
        with only(model, layer):
            return sign * (before - score(lambda inputs: call(model, inputs), task, "validation").value)

    return _table(models, drop)


def hessian_table(models: Sequence[QuantizedModel], traces: Sequence[float]) -> Table:
    """models: one per choice; traces (layers,): of `hessian_traces`. Weights alone count: activations move nothing here."""
    layers = layers_of(models[0])
    means = {layer.key: trace / layer.weight(models[0]).numel() for layer, trace in zip(layers, traces, strict=True)}

    def predicted(model: QuantizedModel, layer: Layer) -> float:
        q, weight = layer.quantizer(model), layer.weight(model).detach()
        error = (rounded(weight, q.scale, q.zero_point, q.grid, q.block) - weight).square().sum()
        return max(means[layer.key], 0.0) * float(error)

    return _table(models, predicted)


def hessian_traces(model: QuantizedModel, loss: Loss, batches: Sequence[Batch], *, draws: int = 8, seed: int = 0) -> list[float]:
    """The trace of the loss's Hessian over each layer's weights, in the float model, averaged over draws and batches.

    Where the model isn't at a minimum of the loss single draws, and traces, may be negative. They can't be for the distance of
    its output from what that was before (soft labels of its own), which also needs no targets.
    """
    layers = layers_of(model)
    weights = [layer.weight(model) for layer in layers]
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(len(layers), dtype=torch.float64)
    with unquantized(model):
        for batch in batches:
            gradients = torch.autograd.grad(loss(model, batch), weights, create_graph=True)
            for _ in range(draws):
                signs = [torch.randint(0, 2, w.shape, generator=generator).to(w) * 2 - 1 for w in weights]
                product = torch.stack([(g * v).sum() for g, v in zip(gradients, signs, strict=True)]).sum()
                curved = torch.autograd.grad(product, weights, retain_graph=True)
                sums += torch.stack([(h * v).sum().double().cpu() for h, v in zip(curved, signs, strict=True)])
    return [float(total) / (draws * len(batches)) for total in sums]


def own_distance(model: nn.Module, batch: Batch) -> Tensor:
    """Half the squared distance of the output from itself, a sample: 0, with the Hessian J^T J; needs no target."""
    output = _output(model, batch[0])
    return (output - output.detach()).square().sum() / (2 * batch_size(batch[0]))


def _table(models: Sequence[QuantizedModel], value: object) -> Table:
    """(layers, choices); value: (model, layer) -> float."""
    assert callable(value)  # one of the functions above
    columns = [[value(model, layer) for layer in layers_of(model)] for model in models]
    return np.array(columns, dtype=np.float64).T


def _output(model: nn.Module, inputs: Inputs) -> Tensor:
    """All floating-point outputs as one vector."""
    return torch.cat([t.double().flatten() for t in tensors(call(model, inputs)) if t.is_floating_point()])


def input_key(layer: Layer) -> str:
    """The quantizer of what a layer reads, through moves; "" where there is none."""
    node = argument(layer.node, 0)
    while isinstance(node, fx.Node) and not str(node.target).startswith("quantizers."):
        node = node.args[0] if node.args else None
    return str(node.target).removeprefix("quantizers.") if isinstance(node, fx.Node) else ""
