"""Where a scale per channel can move from what makes a tensor to what reads it, the function unchanged in exact arithmetic.

    reader(f(maker(x))) = (reader * s)(f((maker / s)(x))),   f(a t) = a f(t) for a > 0

Makers: a convolution or linear layer, a layer or RMS norm with a weight, or a linear layer whose output is multiplied by
another tensor (the gate of a SwiGLU block). Readers: the convolutions or linear layers that alone read the tensor.
What stands between them: quantizers, relu, pooling, dropout.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from paredown.quantization.layers import CONVOLUTIONS, Layer, layers_of
from paredown.quantization.model import QuantizedModel
from paredown.quantization.nodes import argument, constant, get, name_of

_POOLS = frozenset(["max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d"])
_HOMOGENEOUS = frozenset(["relu", "leaky_relu", "dropout"]) | _POOLS
_NORMS = {"layer_norm": (2, 3), "rms_norm": (2,)}  # operator -> where its weight (and bias) stand


@dataclass(frozen=True)
class Scaling:
    """makers: paths of parameters with the channels on dimension 0. readers: layers whose input has them. from_norm: whether a
    norm makes the tensor. between: what stands between them and isn't a quantizer.
    """

    makers: tuple[str, ...]
    readers: tuple[Layer, ...]
    channels: int
    from_norm: bool
    between: frozenset[str]


def scalings_of(model: QuantizedModel) -> tuple[Scaling, ...]:
    """All of them, in the order of the graph. Parameters that others read too are left out."""
    layers = {layer.node: layer for layer in layers_of(model)}
    found = (_scaling(model, node, layers) for node in model.graph.nodes)
    return tuple(scaling for scaling in found if scaling is not None)


@torch.no_grad()
def rescale_(model: QuantizedModel, scaling: Scaling, s: Tensor) -> None:
    """Divides the makers by s (channels,), above 0, and multiplies the readers. Scales of quantizers are stale afterwards."""
    for path in scaling.makers:
        parameter = get(model, path)
        parameter.div_(s.to(parameter.dtype).view(-1, *[1] * (parameter.dim() - 1)))
    for layer in scaling.readers:
        parameter = layer.weight(model)
        parameter.copy_(times_inputs(parameter, s, layer.groups))


def times_inputs(weight: Tensor, s: Tensor, groups: int = 1) -> Tensor:
    """weight (out, in / groups, ...) times s (in,) along its input channels."""
    split = weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])
    along = s.to(weight.dtype).view(groups, 1, -1, *[1] * (weight.dim() - 2))
    return (split * along).view_as(weight)


def input_magnitudes(weight: Tensor, groups: int = 1) -> Tensor:
    """weight (out, in / groups, ...) -> (in,): the largest magnitude that each input channel meets."""
    split = weight.detach().abs().view(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return split.amax((1, 3)).flatten()


def _scaling(model: QuantizedModel, node: fx.Node, layers: dict[fx.Node, Layer]) -> Scaling | None:
    makers = _makers(model, node, layers)
    if not makers or not all(_read_once(model, path) for path in makers):
        return None
    between: set[str] = set()
    ends = list(_ends(node, between, set()))
    last = [(user, via) for user, via in ends if user not in layers or user.args[0] is not via]
    if last or not ends:
        return None
    readers = tuple(layers[user] for user in dict.fromkeys(user for user, _ in ends))
    channels, from_norm = int(get(model, makers[0]).shape[0]), name_of(node) in _NORMS
    kinds = {name_of(reader.node) in CONVOLUTIONS for reader in readers}
    if kinds != {name_of(node) in CONVOLUTIONS} or not all(_read_once(model, r.weight_path) for r in readers):
        return None  # channels on dimension 1 of a convolution, on the last of all others
    if kinds == {False} and between & _POOLS:
        return None  # they mix the last dimension
    return Scaling(makers, readers, channels, from_norm, frozenset(between))


def _makers(model: QuantizedModel, node: fx.Node, layers: dict[fx.Node, Layer]) -> tuple[str, ...]:
    """The parameters that the value of `node` is proportional to, channel by channel; () where there are none."""
    name = name_of(node)
    if node in layers:
        layer = layers[node]
        if argument(node, 2) is not None and layer.bias_path is None:
            return ()
        return (layer.weight_path,) if layer.bias_path is None else (layer.weight_path, layer.bias_path)
    if name in _NORMS:
        places = [argument(node, i) for i in _NORMS[name]]
        values = [constant(model, place) for place in places]
        if (
            values[0] is None
            or values[0].dim() != 1
            or any(p is not None and v is None for p, v in zip(places, values, strict=True))
        ):
            return ()
        return tuple(str(place.target) for place in places if place is not None)
    if name == "mul" and node.args[0] is not node.args[1]:  # a square grows by the square
        own = [a for a in node.args if isinstance(a, fx.Node) and a in layers and list(a.users) == [node]]
        return _makers(model, own[0], layers) if own and name_of(own[0]) == "linear" and _same_shape(node, own[0]) else ()
    return ()


def _ends(node: fx.Node, between: set[str], seen: set[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The nodes that read a tensor behind everything homogeneous, each with the node it reads it from."""
    for user in node.users:
        through = user.op == "call_module" and str(user.target).startswith(("quantizers.", "dropouts."))
        if through or name_of(user) in _HOMOGENEOUS:
            if not through:
                between.add(name_of(user))
            if user not in seen:
                seen.add(user)
                yield from _ends(user, between, seen)
        else:
            yield user, node


def _read_once(model: QuantizedModel, path: str) -> bool:
    """Whether one operator alone reads this parameter, quantizers aside."""
    value = get(model, path)
    readers = [n for n in model.graph.nodes if n.op == "get_attr" and get(model, str(n.target)) is value]
    users = [user for n in readers for user in n.users]
    through = [user for u in users for user in (u.users if u.op == "call_module" else [u])]
    return len(through) == 1


def _same_shape(node: fx.Node, other: fx.Node) -> bool:
    a, b = node.meta.get("val"), other.meta.get("val")
    return a is not None and b is not None and a.shape[-1] == b.shape[-1]
