"""Putting quantizers and dropouts into a traced graph as modules, where a placement says."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from paredown.core.steps import Quantize
from paredown.graph import dynamic_quantize as _operator  # noqa: F401 (importing it registers the operator)
from paredown.graph.trace import module_path, path_of
from paredown.quantization.functional import DROPOUTS
from paredown.quantization.grid import BIASES, WEIGHTS
from paredown.quantization.model import Codebook, FakeQuantizer, HalfFloat
from paredown.quantization.nodes import argument, constant, name_of, value_of
from paredown.quantization.placement import Placement, Site
from paredown.quantization.scheme import BitWidths, Scheme, activation_grid, weight_grid

_SMALLEST_BLOCK = 32


def insert_quantizers_(module: fx.GraphModule, placement: Placement, scheme: Scheme, config: Quantize, *, reduced: bool) -> None:
    """Adds `module.quantizers`, and a call of one at every site. reduced: 8-bit weights on [-63, 63]."""
    quantizers, weights = nn.ModuleDict(), _apart(placement.weights)
    for site in weights:
        weight, widths = constant(module, site.node), scheme.of(path_of(site.key))
        assert weight is not None  # the placement takes constant weights only
        table = all(name_of(reader) == "embedding" for reader in site.readers)
        quantizers[site.key] = _of_weight(weight, widths, config, reduced=reduced, table=table).to(weight.device)
        device = weight.device
    for site in placement.biases:
        bias = constant(module, site.node)
        assert bias is not None  # likewise
        quantizers[site.key] = FakeQuantizer(BIASES, (bias.shape[0],), axis=0).to(bias.device)
    for site in placement.activations:
        quantizers[site.key] = FakeQuantizer(activation_grid(site.bits, config.activations)).to(device)
    module.add_module("quantizers", quantizers)
    for site in (*weights, *placement.biases, *placement.activations, *placement.restated):
        _call_(module.graph, f"quantizers.{site.key}", site)


def _apart(sites: tuple[Site, ...]) -> tuple[Site, ...]:
    """Without those whose readers all read the same weight from an earlier one: a tied table, and one looked up twice."""
    kept: list[Site] = []
    for site in sites:
        if not any(each.node is site.node and {*site.readers} <= {*each.readers} for each in kept):
            kept.append(site)
    return tuple(kept)


def _of_weight(weight: Tensor, widths: BitWidths, config: Quantize, *, reduced: bool, table: bool) -> nn.Module:
    """On an integer grid one scale per output channel, or per group. table: that is looked up alone. Beside integer layers it is
    in 8 bits: no sum of its rows saturates, and with zero points it would be computed anew in every call.
    """
    if config.kind in ("fp16", "bf16"):
        return HalfFloat(5 if config.kind == "fp16" else 8)
    if config.kind == "palette":
        return Codebook(widths.weight_bits)
    grid = WEIGHTS if table and config.kind == "static" else weight_grid(widths, config.weights, reduced=reduced)
    rows = weight.shape[0]
    if not widths.group:
        return FakeQuantizer(grid, (rows,), axis=0)
    row = weight[0].numel()
    block = _block(row, widths.group)
    return FakeQuantizer(grid, (rows, -(-row // block)), axis=1, block=block)


def _block(row: int, group: int) -> int:
    """Numbers that share a scale: halved while half of it holds the whole row, which the file would fill up with zeros."""
    while group > _SMALLEST_BLOCK and group // 2 >= row:
        group //= 2
    return group


def insert_dynamic_(module: fx.GraphModule) -> None:
    """What a linear layer with a quantized weight reads is rounded by its own range; once where several read it."""
    rounded: dict[fx.Node, fx.Node] = {}
    for node in list(module.graph.nodes):
        weight = argument(node, 1) if name_of(node) == "linear" else None
        if not isinstance(weight, fx.Node) or weight.op != "call_module" or not str(weight.target).endswith(":weight"):
            continue
        x = node.args[0]
        if x not in rounded:
            with module.graph.inserting_after(_last_input(module.graph) if x.op == "placeholder" else x):
                rounded[x] = module.graph.call_function(torch.ops.paredown.dynamic_quantize.default, (x,))
            rounded[x].meta = _origin(x)
        node.replace_input_with(x, rounded[x])


def insert_dropouts_(module: fx.GraphModule) -> None:
    """Adds `module.dropouts`: dropout operators, traced in evaluation mode, become modules that follow the model's mode."""
    dropouts, seen = nn.ModuleDict(), Counter[str]()
    module.add_module("dropouts", dropouts)
    for node in list(module.graph.nodes):
        name = name_of(node).removesuffix("_")
        value = value_of(node)
        if name not in DROPOUTS or value is None:
            continue
        path = module_path(node).replace(".", "/")
        key = f"{path}@{seen[path]}"
        seen[path] += 1
        dropouts[key] = _dropout(name, value.dim())(float(argument(node, 1)))
        with module.graph.inserting_before(node):
            made = module.graph.call_module(f"dropouts.{key}", (node.args[0],))
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        module.graph.erase_node(node)


def _call_(graph: fx.Graph, target: str, site: Site) -> None:
    """One call behind the site's node (behind all inputs, where that is an input), read by the site's readers."""
    with graph.inserting_after(_last_input(graph) if site.node.op == "placeholder" else site.node):
        made = graph.call_module(target, (site.node,))
    made.meta = _origin(site.node)
    for reader in site.readers:
        reader.replace_input_with(site.node, made)


def _last_input(graph: fx.Graph) -> fx.Node:
    last: fx.Node = graph.find_nodes(op="placeholder")[-1]
    return last


def _origin(node: fx.Node) -> dict[str, Any]:
    """What is known of a node's value and of where it comes from."""
    return {key: node.meta[key] for key in ("val", "nn_module_stack", "stack_trace") if key in node.meta}


def _dropout(name: str, dimensions: int) -> Callable[[float], nn.Module]:
    """A feature dropout zeroes whole channels, of inputs with a batch."""
    if name == "dropout":
        return nn.Dropout
    return {3: nn.Dropout1d, 4: nn.Dropout2d}.get(dimensions, nn.Dropout3d)
