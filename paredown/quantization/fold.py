"""Folding batch norms into the convolution or linear layer before them (Jacob et al., arXiv:1712.05877, section 3.2).

With g, b, m, v the batch norm's weight, bias, mean and variance, and s = g / sqrt(v + eps), per output channel:
weight' = s * weight, bias' = s * (bias - m) + b.

A batch norm folds where its input is such an operator's output, read by nothing else, with weights that are parameters.
Any other stays in the graph in evaluation mode: it uses its running statistics, also while the quantized model trains.
"""

import torch
from torch import Tensor, fx, nn

from paredown.quantization.nodes import argument, constant, free_path, get, name_of, put_, value_of

CONVOLUTIONS = frozenset(["conv1d", "conv2d", "conv3d"])


def fold_batch_norms_(module: fx.GraphModule) -> int:
    """Folds in place (the module must own its parameters) and returns how many were folded.

    A weight that several operators share, each with a batch norm of its own, is copied: from then on they are apart.
    """
    count = 0
    for norm in [node for node in module.graph.nodes if name_of(node) == "batch_norm"]:
        if _foldable(module, norm):
            _fold_(module, norm)
            count += 1
    module.graph.eliminate_dead_code()
    return count


def scaled(weight: Tensor, bias: Tensor | None, norm: tuple[Tensor | None, ...], eps: float) -> tuple[Tensor, Tensor]:
    """weight (out, ...), bias (out,), norm: weight, bias, mean, variance, each (out,) -> the folded pair, in weight's type."""
    w = weight.detach().double()
    g, b, m, v = (t if t is None else t.detach().double() for t in norm)
    if m is None or v is None:
        raise ValueError("a batch norm without running statistics can't be folded")
    s = torch.rsqrt(v + eps) if g is None else g * torch.rsqrt(v + eps)
    shift = -m if bias is None else bias.detach().double() - m
    folded = s * shift if b is None else s * shift + b
    return (w * s.view(-1, *[1] * (w.dim() - 1))).to(weight.dtype), folded.to(weight.dtype)


def _foldable(module: fx.GraphModule, norm: fx.Node) -> bool:
    before = norm.args[0]
    name = name_of(before)
    if not isinstance(before, fx.Node) or len(before.users) != 1 or name not in CONVOLUTIONS | {"linear"}:
        return False
    bias = argument(before, 2)
    fixed = all(n is None or constant(module, n) is not None for n in (bias, argument(norm, 1), argument(norm, 2)))
    statistics = all(constant(module, argument(norm, i)) is not None for i in (3, 4))
    value = value_of(before)
    channels_last = name == "linear" and (value is None or value.dim() != 2)  # a batch norm's channels are on dimension 1
    weight = constant(module, argument(before, 1))
    return weight is not None and fixed and statistics and argument(norm, 5) is False and not channels_last


def _fold_(module: fx.GraphModule, norm: fx.Node) -> None:
    before, eps = norm.args[0], float(argument(norm, 7))
    assert isinstance(before, fx.Node)  # _foldable saw it
    weight_node, bias_node = before.args[1], argument(before, 2)
    weight, bias = constant(module, weight_node), constant(module, bias_node)
    assert weight is not None and isinstance(weight_node, fx.Node)
    parts = tuple(constant(module, argument(norm, i)) for i in (1, 2, 3, 4))
    new_weight, new_bias = scaled(weight, bias, parts, eps)
    weight_path = _own(module, weight_node)
    bias_path = _own(module, bias_node) if bias is not None else free_path(module, _beside(weight_path))
    put_(module, weight_path, nn.Parameter(new_weight, requires_grad=weight.requires_grad))
    put_(module, bias_path, nn.Parameter(new_bias, requires_grad=weight.requires_grad))
    with module.graph.inserting_before(before):
        read_weight, read_bias = module.graph.get_attr(weight_path), module.graph.get_attr(bias_path)
    read_weight.meta, read_bias.meta = dict(weight_node.meta), {"val": value_of(norm.args[2])}
    rest = list(before.args[3:])
    before.args = (before.args[0], read_weight, read_bias, *rest)
    before.kwargs = {k: v for k, v in before.kwargs.items() if k != "bias"}
    norm.replace_all_uses_with(before)
    module.graph.erase_node(norm)


def _own(module: fx.GraphModule, node: fx.Node) -> str:
    """The path of a parameter that only this node's user reads: its own, or a free one beside it."""
    path = str(node.target)
    value = get(module, path)
    readers = [n for n in module.graph.nodes if n.op == "get_attr" and get(module, str(n.target)) is value]
    return path if sum(len(n.users) for n in readers) == 1 else free_path(module, path)


def _beside(path: str) -> str:
    """ "a.conv.weight" -> "a.conv.bias"."""
    prefix, _, _ = path.rpartition(".")
    return f"{prefix}.bias" if prefix else "bias"
