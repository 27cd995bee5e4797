"""The quantized layers of a model one by one: weights, inputs, outputs; and parts of its graph that run alone."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from paredown.graph.trace import as_call, module_path
from paredown.quantization.model import FakeQuantizer, QuantizedModel
from paredown.quantization.nodes import argument, get, name_of, quantizer_key
from paredown.quantization.weights import dequantized, integers
from paredown.task.batches import Inputs

CONVOLUTIONS = frozenset(["conv1d", "conv2d", "conv3d"])


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer whose weight is on a grid. key: "layer1/0/conv1@0"; node: its operator in the graph."""

    key: str
    node: fx.Node
    weight_path: str
    bias_path: str | None

    @property
    def path(self) -> str:
        return module_path(self.node)

    @property
    def groups(self) -> int:
        return int(argument(self.node, 6, 1)) if name_of(self.node) in CONVOLUTIONS else 1

    def weight(self, model: nn.Module) -> nn.Parameter:
        value: nn.Parameter = get(model, self.weight_path)
        return value

    def bias(self, model: nn.Module) -> nn.Parameter | None:
        value: nn.Parameter | None = get(model, self.bias_path) if self.bias_path else None
        return value

    def quantizer(self, model: QuantizedModel) -> FakeQuantizer:
        return model.quantizer(f"{self.key}:weight")

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer gives for another input, weight or bias."""
        rest = self.node.args[3:]
        result: Tensor = self.node.target(x, weight, bias, *rest, **_without_bias(self.node))  # type: ignore[operator]  # ATen
        return result


def layers_of(model: QuantizedModel) -> tuple[Layer, ...]:
    """In the order of the graph. Embeddings and recurrent layers are not among them."""
    found = []
    for node in model.graph.nodes:
        if name_of(node) not in CONVOLUTIONS | {"linear"}:
            continue
        weight, bias = argument(node, 1), argument(node, 2)
        if isinstance(weight, fx.Node) and weight.op == "call_module" and str(weight.target).endswith(":weight"):
            key = quantizer_key(weight).removesuffix(":weight")
            found.append(Layer(key, node, str(weight.args[0].target), _parameter(bias)))  # type: ignore[union-attr]  # its site
    return tuple(found)


@contextlib.contextmanager
def unquantized(model: QuantizedModel, keys: Iterable[str] | None = None) -> Iterator[None]:
    """Within it the quantizers (all, or those named) pass their input through."""
    chosen = [model.quantizer(key) for key in (model.quantizers if keys is None else keys)]
    before = [q.enabled for q in chosen]
    try:
        for q in chosen:
            q.enabled = False
        yield
    finally:
        for q, enabled in zip(chosen, before, strict=True):
            q.enabled = enabled


@torch.no_grad()
def values_at(model: QuantizedModel, nodes: Sequence[fx.Node], inputs: Inputs) -> list[Tensor]:
    """What the nodes give when the model runs on `inputs`; it stops after the last of them."""
    recorder = _Recorder(model, nodes)
    args, kwargs = as_call(inputs)
    with contextlib.suppress(_AllKeptError):
        recorder.run(*_flat(model, args, kwargs))
    return [recorder.kept[node] for node in nodes]


def node_named(model: QuantizedModel, name: str) -> fx.Node:
    """The node of a copy that answers to the original's. Raises StopIteration where there is none."""
    found: fx.Node = next(node for node in model.graph.nodes if node.name == name)
    return found


def input_node(layer: Layer) -> fx.Node:
    """The node whose value the layer reads."""
    node = layer.node.args[0]
    assert isinstance(node, fx.Node)  # a layer reads a tensor
    return node


@torch.no_grad()
def write_rounded_(model: QuantizedModel, layer: Layer, weight: Tensor) -> None:
    """Sets the layer's weight to the nearest values on its grid: rounding it again changes nothing."""
    q = layer.quantizer(model)
    stored = integers(weight, q.scale, q.zero_point, q.grid, q.block)
    parameter = layer.weight(model)
    parameter.copy_(dequantized(stored, q.scale, q.zero_point, q.block).to(parameter.dtype))


@dataclass(frozen=True)
class Part:
    """A piece of a model's graph that runs alone. sources: the nodes outside whose values it takes, in order; result: the one
    node whose value it gives.
    """

    module: fx.GraphModule
    sources: tuple[fx.Node, ...]
    result: fx.Node


def part_of(model: QuantizedModel, nodes: Sequence[fx.Node]) -> Part:
    """The graph of `nodes` (in graph order; the last is the result) with the weights they read; it shares them with the model."""
    inside = set(nodes)
    graph, copied, sources = fx.Graph(), dict[fx.Node, fx.Node](), []
    needed = [n for n in model.graph.nodes if n in inside or _serves(n, inside)]
    outside = {a for n in needed for a in n.all_input_nodes} - set(needed)
    for node in model.graph.nodes:
        if node in outside:
            copied[node] = graph.placeholder(node.name)
            sources.append(node)
    for node in needed:
        copied[node] = graph.node_copy(node, lambda n: copied[n])
    graph.output(copied[nodes[-1]])
    return Part(fx.GraphModule(model, graph), tuple(sources), nodes[-1])


def _serves(node: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether a node only brings constants (a weight, its quantizer) to what is inside."""
    is_constant = node.op == "get_attr" or (node.op == "call_module" and str(node.target).endswith((":weight", ":bias")))
    return is_constant and any(user in inside or _serves(user, inside) for user in node.users)


class _Recorder(fx.Interpreter):
    def __init__(self, model: QuantizedModel, nodes: Sequence[fx.Node]) -> None:
        super().__init__(model)
        self.kept: dict[fx.Node, Tensor] = {}
        self.missing = set(nodes)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.missing:
            self.missing.discard(n)
            self.kept[n] = value
            if not self.missing:
                raise _AllKeptError
        return value


class _AllKeptError(Exception):
    """Ends a run early."""


def _flat(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The inputs in the order of the graph's placeholders: arguments by name stand in the order of `forward`."""
    names = module.graph._codegen.pytree_info.orig_args[len(args) :]
    return (*args, *(kwargs[name] for name in names if name in kwargs))


def _without_bias(node: fx.Node) -> dict[str, Any]:
    return {name: value for name, value in node.kwargs.items() if name not in ("weight", "bias", "input")}


def _parameter(bias: object) -> str | None:
    """The path of the bias that a node reads, through its quantizer."""
    node = bias.args[0] if isinstance(bias, fx.Node) and bias.op == "call_module" else bias
    return str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else None
