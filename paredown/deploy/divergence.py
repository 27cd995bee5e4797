"""Which operator of a file is the first to disagree with torch, each fed with torch's own inputs.

Comparing accumulated outputs would blame operators for the rounding of those before them. The values of a file bear the names of
the graph's nodes, so every stretch between two named values is cut out, run in the target's runtime and compared alone.
A quantized operator is cut with the Q/DQ around it, and with what only moves values between them. Without them a runtime wouldn't
take its integer kernel, or would round what it reads in float to a grid of its own.

A sum of floats in another order differs in its last bits, so a value at the edge between two of a grid comes out as its
neighbour; few stand there. An operator that computes something else moves many: a wrong zero point all of them, a weight that was
rounded once more those within its error of an edge. So an operator is explained by rounding while
    ||difference|| <= 1e-4 ||y||                      off the grids;
    ||difference|| <= s sqrt(max(6e-4 n r / s, 2))    on a grid of step s,   r = ||y|| / sqrt(n), n values:
as if those had become their neighbours that stand within 3e-4 r of an edge, and two at least. A quantizer alone is fed with the
very numbers that torch rounds, and still a runtime may multiply by 1 / s where torch divides by s: within 1e-6 r, and two at
least.
"""

import pathlib
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, load_model, save_model
from onnx.numpy_helper import to_array
from torch import fx
from torch.utils import _pytree

from paredown.core.target import Target
from paredown.deploy.nodes import MOVES
from paredown.deploy.onnx import OPSET, Built
from paredown.deploy.ports import Array
from paredown.deploy.session import load
from paredown.graph.trace import as_call, module_path, path_of, source_line
from paredown.task.batches import Inputs

Stretch = tuple[list[int], dict[str, str]]
Verdict = Literal["beyond the tolerance", "beyond rounding", "rounding"]
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_FUSED = ("Relu", "Clip", "Add", "Mul", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Gelu", "Tanh", "Softmax")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FAKES = (torch.ops.paredown.fake_quantize.default, torch.ops.paredown.fake_quantize_two_sided.default)
_LAST_BITS, _NEAR, _FEWEST = 1e-4, 3e-4, 2
_NEAR_ALONE = 1e-6  # some units in the last place of a float32


@dataclass(frozen=True)
class Measure:
    """difference(got, want), relative; tolerance: of a single operator. integers: of a quantized file, where `difference` is the
    relative L2 norm, and an operator within the tolerance may still be more than rounding explains.
    """

    difference: Callable[[Array, Array], float]
    tolerance: float
    integers: bool


@dataclass(frozen=True)
class Divergence:
    """operator: ONNX type and node name. module, line: where it comes from. error: with torch's inputs.
    verdict: "rounding" where each operator alone is what rounding explains (of a float file: within the tolerance), and this one
    is the largest.
    """

    operator: str
    node: str
    module: str
    line: str
    error: float
    verdict: Verdict

    def __str__(self) -> str:
        place = ", ".join(part for part in (f"module {self.module}" if self.module else "", self.line) if part)
        return (
            f"{_WORDS[self.verdict]}: {self.operator} {self.node}"
            + (f" ({place})" if place else "")
            + f", {self.error:.3g} by itself"
        )


_WORDS: dict[Verdict, str] = {
    "beyond the tolerance": "first diverging operator",
    "beyond rounding": "first operator that differs by more than rounding",
    "rounding": "no single operator exceeds the tolerance, the largest is",
}


def first_divergence(
    twin: Built, inputs: Inputs, path: str | pathlib.Path, target: Target, measure: Measure
) -> Divergence | None:
    """The first operator, in the file's order, beyond the tolerance; else the first beyond rounding; else the one that differs
    most. None: nothing could be compared.

    twin: of the model that the file was made from. inputs: at least 2 samples.
    """
    graph = Graph(load_model(str(path)), reference_values(twin, inputs))
    beyond: Divergence | None = None
    worst: Divergence | None = None
    for value in graph.compared():
        stretch = graph.stretch(value, coarse=True)
        error = _error(graph, value, stretch, target, measure)
        rounding = by_rounding(graph, value, stretch) if measure.integers else measure.tolerance
        if not error <= max(measure.tolerance, rounding):  # true for NaN too
            blamed, alone = _blamed(graph, value, target, measure)
            return _described(graph, twin, blamed, error, fine=alone, verdict="beyond the tolerance")
        if beyond is None and error > rounding:
            beyond = _described(graph, twin, value, error, fine=False, verdict="beyond rounding")
        if worst is None or error > worst.error:
            worst = _described(graph, twin, value, error, fine=False, verdict="rounding")
    return beyond or worst


def by_rounding(graph: "Graph", value: str, stretch: Stretch) -> float:
    """How far a stretch may be from torch, as relative L2, where nothing but rounding differs."""
    want, step, near = graph.reference[value].astype(np.float64), largest_step(graph, stretch), _NEAR
    if not step > 0:
        step, near = _step_alone(graph, stretch), _NEAR_ALONE
    size = float(np.linalg.norm(want))
    if not size > 0 or not step > 0:
        return _LAST_BITS
    neighbours = max(2 * near * size * float(np.sqrt(want.size)) / step, _FEWEST)
    return max(step * float(np.sqrt(neighbours)) / size, _LAST_BITS)


def largest_step(graph: "Graph", stretch: Stretch) -> float:
    """Of the quantizers within a stretch; those of what it is fed with round the same in torch. 0: there are none."""
    nodes, feeds = stretch
    inner = [graph.nodes[i] for i in nodes if graph.nodes[i].op_type == _Q and graph.nodes[i].input[0] not in feeds]
    return _largest_scale(graph, inner)


def _step_alone(graph: "Graph", stretch: Stretch) -> float:
    """Of a stretch that is a quantizer and nothing else but moves; 0 of any other."""
    nodes = [graph.nodes[i] for i in stretch[0]]
    if not {node.op_type for node in nodes} <= {_Q, _DQ, *MOVES}:
        return 0.0
    return _largest_scale(graph, [node for node in nodes if node.op_type == _Q])


def _largest_scale(graph: "Graph", quantizers: list[NodeProto]) -> float:
    steps = [float(to_array(graph.stored[node.input[1]]).max()) for node in quantizers if node.input[1] in graph.stored]
    return max(steps, default=0.0)


def reference_values(twin: Built, inputs: Inputs, skipped: Collection[object] = ()) -> dict[str, Array]:
    """{name in the file: value in torch} of every node, by running the graph that the file was translated from.

    skipped: operators that are to give their first argument instead.
    """
    program = twin.program
    given = iter(_pytree.tree_leaves(as_call(inputs)))
    flat = [_lifted(program, spec) if spec.target else next(given) for spec in program.graph_signature.input_specs]
    recorder = _Recorder(program.graph_module, skipped)
    with torch.no_grad():
        recorder.run(*flat, enable_io_processing=False)
    values = {name: tensor.detach().cpu().numpy() for name, tensor in recorder.values.items()}
    return values | {name: values[node] for name, node in twin.renamed.items() if node in values}


def _lifted(program: Any, spec: Any) -> Any:
    """A parameter, buffer or constant of an exported program."""
    return program.state_dict[spec.target] if spec.target in program.state_dict else program.constants[spec.target]


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the tensor of every node."""

    def __init__(self, module: fx.GraphModule, skipped: Collection[object] = ()) -> None:
        super().__init__(module)
        self.values: dict[str, torch.Tensor] = {}
        self.skipped = skipped

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0] if target in self.skipped else super().call_function(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.values[n.name] = result
        return result


class Graph:
    """A file's graph beside the values that torch computed for its names."""

    def __init__(self, model: ModelProto, reference: dict[str, Array]) -> None:
        self.model, self.reference = model, reference
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.made = {name: index for index, node in enumerate(self.nodes) for name in node.output}
        self.inputs = {entry.name for entry in model.graph.input}
        self.outputs = {entry.name for entry in model.graph.output}
        self.dynamic = set(self.inputs)  # what depends on the inputs; the rest is constant
        for node in self.nodes:
            if self.dynamic & set(node.input):
                self.dynamic |= set(node.output)
        self.pending, self.moved = self._pending(), self._moved()

    def known(self, name: str) -> bool:
        """Whether a value depends on the inputs and torch computed it too."""
        return name in self.dynamic and name in self.reference

    def compared(self) -> list[str]:
        """The values to compare one by one, in the file's order."""
        return [name for node in self.nodes for name in node.output if self.known(name) and name not in self.pending]

    def stretch(self, value: str, *, coarse: bool) -> Stretch:
        """Nodes that compute `value` from known values, and what is fed: {value of the stretch: known value}.

        coarse: back to values that are compared, keeping the Q/DQ of its inputs; else back to the nearest known ones.
        """
        nodes: set[int] = set()
        feeds: dict[str, str] = {}
        queue = [value]
        while queue:
            name = queue.pop()
            inner = coarse and (name in self.pending or name in self.moved)
            stops = name != value and (name in self.inputs or (self.known(name) and not inner))
            if stops:
                self._feed(name, nodes, feeds, coarse=coarse)
            elif name in self.made and self.made[name] not in nodes:
                nodes.add(self.made[name])
                queue += self.nodes[self.made[name]].input
        return sorted(nodes), feeds

    def _feed(self, name: str, nodes: set[int], feeds: dict[str, str], *, coarse: bool) -> None:
        """Feeds a known value; where it comes out of a Q/DQ pair, before the pair: its values are on the grid already."""
        index = self.made.get(name, -1)
        q = self.made.get(self.nodes[index].input[0], -1) if index >= 0 and self.nodes[index].op_type == _DQ else -1
        if coarse and q >= 0 and self.nodes[q].op_type == _Q:
            nodes |= {index, q}
            feeds[self.nodes[q].input[0]] = name
        else:
            feeds[name] = name

    def _pending(self) -> set[str]:
        """Values that go nowhere but, through operators that a runtime may fuse, into a QuantizeLinear."""
        readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        pending: set[str] = set()
        for node in reversed(self.nodes):
            for name in node.output:
                after = readers.get(name, [])
                fused = all(r.op_type == _Q or (r.op_type in _FUSED and r.output[0] in pending) for r in after)
                if after and fused and name not in self.outputs and node.op_type != _DQ:
                    pending.add(name)
        return pending

    def _moved(self) -> set[str]:
        """Values that come out of a Q/DQ pair by being moved alone."""
        moved: set[str] = set()
        for node in self.nodes:
            source = self.made.get(node.input[0], -1) if node.op_type in MOVES else -1
            if source >= 0 and node.input[0] in self.dynamic:
                from_grid = self.nodes[source].op_type == _DQ or node.input[0] in moved
                moved.update(node.output if from_grid else ())
        return moved


def _error(graph: Graph, value: str, stretch: Stretch, target: Target, measure: Measure) -> float:
    """How far the runtime is from torch on one stretch."""
    return measure.difference(run_stretch(graph, value, stretch, target), graph.reference[value])


def run_stretch(graph: Graph, value: str, stretch: Stretch, target: Target) -> Array:
    """What the runtime gives for one stretch alone, fed with the reference."""
    nodes, feeds = stretch
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "stretch.onnx"
        save_model(_cut(graph, nodes, feeds, value), str(path))
        session = load(path, target)
        got = session(**{name: np.ascontiguousarray(graph.reference[known]) for name, known in feeds.items()})
    return got[0] if isinstance(got, tuple) else got


def _cut(graph: Graph, nodes: list[int], feeds: dict[str, str], value: str) -> ModelProto:
    """A model of some nodes alone."""
    chosen = [graph.nodes[index] for index in nodes]
    read = {name for node in chosen for name in node.input}
    entries = [_entry(name, graph.reference[known]) for name, known in feeds.items()]
    initializers = [tensor for tensor in graph.model.graph.initializer if tensor.name in read]
    kind = helper.np_dtype_to_tensor_dtype(graph.reference[value].dtype)
    output = helper.make_tensor_value_info(value, kind, None)
    made = helper.make_graph(chosen, "stretch", entries, [output], initializers)
    imports = graph.model.opset_import or [helper.make_opsetid("", OPSET)]
    return helper.make_model(made, opset_imports=imports, ir_version=graph.model.ir_version)


def _entry(name: str, array: Array) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind if kind != TensorProto.UNDEFINED else TensorProto.FLOAT, array.shape)


def _blamed(graph: Graph, value: str, target: Target, measure: Measure) -> tuple[str, bool]:
    """Within a stretch of several operators the first value that is wrong by itself, True; else the stretch's end, False."""
    nodes, _ = graph.stretch(value, coarse=True)
    for name in (name for index in nodes for name in graph.nodes[index].output):
        if name == value or (graph.known(name) and name in graph.pending):
            fine = graph.stretch(name, coarse=False)
            if not _error(graph, name, fine, target, measure) <= measure.tolerance:
                return name, True
    return value, False


def _described(graph: Graph, twin: Built, value: str, error: float, *, fine: bool, verdict: Verdict) -> Divergence:
    """The operator that stands for a value's stretch: the one with the weight, else the last that isn't Q or DQ."""
    node = _telling([graph.nodes[index] for index in graph.stretch(value, coarse=not fine)[0]])
    named = next((name for name in node.output if name in graph.reference), value)
    origins = {n.name: n for n in twin.program.graph.nodes}
    origin = origins.get(twin.renamed.get(named, named))
    module = module_of_weight(graph, node) or (module_path(origin) if origin is not None else "")
    if module.startswith("quantizers."):  # a quantizer is no module of the user's: its key begins with the one that it serves
        module = path_of(module.removeprefix("quantizers."))
    return Divergence(node.op_type, node.name, module, source_line(origin) if origin is not None else "", error, verdict)


def _telling(nodes: list[NodeProto]) -> NodeProto:
    weighted = [node for node in nodes if node.op_type in WEIGHTED]
    computing = [node for node in nodes if node.op_type not in (_Q, _DQ)]
    return (weighted or computing or nodes)[-1]


def module_of_weight(graph: Graph, node: NodeProto) -> str:
    """The module whose parameter a node reads: "layer1.0.conv1" from "layer1.0.conv1.weight_quantized"."""
    for name in node.input[1:]:
        index = graph.made.get(name)
        source = str(graph.nodes[index].input[0]) if index is not None and graph.nodes[index].op_type == _DQ else name
        if "." in source:
            return source.rpartition(".")[0]
    return ""
