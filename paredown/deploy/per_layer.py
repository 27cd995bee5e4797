"""What a runtime makes of each layer of a quantized file by itself, fed with what the float model gives there.

Each stretch of the file that holds a weight, with the Q/DQ around it, is cut out (`divergence.py`), run in the target's runtime,
and computed in torch on the same inputs with its quantizers and without: so the error of one layer isn't that of those before it.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, fx

from paredown.core.target import Target
from paredown.deploy.divergence import FAKES, WEIGHTED, Graph, largest_step, module_of_weight, reference_values, run_stretch
from paredown.deploy.onnx import Built
from paredown.deploy.ports import Array
from paredown.graph.trace import module_path
from paredown.task.batches import Inputs

_MOST_DB = 150.0  # what is equal to the last bit
_FEW_STEPS, _SMALL = 1.5, 1e-3  # by which a sum without saturation may be off: steps of its grid, or of the largest output


@dataclass(frozen=True)
class LayerRun:
    """simulated_db, runtime_db: signal to quantization noise of what the layer gives, relu and output's grid included, in torch
    and in the runtime. saturated: outputs of the runtime that are further from the simulation than rounding explains.
    """

    module: str
    simulated_db: float
    runtime_db: float
    saturated: int


def layer_runs(twin: Built, inputs: Inputs, target: Target) -> tuple[LayerRun, ...]:
    """In the order of the ONNX model. A stretch with several layers, which a runtime fuses, stands under the last of them.

    twin: the ONNX model of a quantized one, and its graph in torch; inputs: at least 2 samples.
    """
    floats = reference_values(twin, inputs, skipped=FAKES)
    graph, nodes = Graph(twin.model, floats), {node.name: node for node in twin.program.graph.nodes}
    runs = []
    for value in graph.compared():
        stretch = graph.stretch(value, coarse=True)
        weighted = [graph.nodes[i] for i in stretch[0] if graph.nodes[i].op_type in WEIGHTED]
        if weighted:
            got = run_stretch(graph, value, stretch, target)
            end = nodes[twin.renamed.get(value, value)]
            ours = _simulated(end, floats, set(stretch[1].values()))
            inner = largest_step(graph, stretch)
            runs.append(_compared(_module(graph, twin, weighted[-1]), end, (floats[value], ours, got), floats, inner))
    return tuple(runs)


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two sums of squares; 150 where there is no noise."""
    return min(10 * math.log10(signal / noise), _MOST_DB) if noise > 0 and signal > 0 else _MOST_DB


def _compared(
    module: str, end: fx.Node, values: tuple[Array, Array, Array], floats: dict[str, Array], inner: float
) -> LayerRun:  # fmt: skip
    """values: float, simulated, of the runtime. inner: the largest step within, by which a sum may be off where a part of it was
    rounded the other way.
    """
    want, ours, got = (value.astype(np.float64) for value in values)
    scale = end.args[1] if end.target in FAKES else None
    step = float(floats[scale.name].max()) if isinstance(scale, fx.Node) else 0.0
    allowed = max(_FEW_STEPS * max(step, inner), 0.0 if step else _SMALL * float(np.abs(ours).max(initial=0)))
    signal = float((want**2).sum())
    simulated, run = (decibels(signal, float(((value - want) ** 2).sum())) for value in (ours, got))
    return LayerRun(module, simulated, run, saturated=int((np.abs(got - ours) > allowed).sum()))


def _simulated(end: fx.Node, floats: dict[str, Array], feeds: Collection[str]) -> Array:
    """What the nodes between the feeds and `end` give, quantizers applied, those of the feeds too."""
    known: dict[fx.Node, Any] = {}

    def value(node: fx.Node) -> Any:
        if node not in known:
            given = node.op == "placeholder" or (node.name in feeds and node.target not in FAKES)
            known[node] = torch.from_numpy(floats[node.name]) if given else computed(node)
        return known[node]

    def computed(node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        if node.name in feeds:  # a quantizer: its input is fed
            args = (torch.from_numpy(floats[node.name]), *args[1:])
        return node.target(*args, **kwargs)  # type: ignore[operator]  # an operator

    with torch.no_grad():
        result: Tensor = value(end)
    return result.numpy()


def _module(graph: Graph, twin: Built, node: NodeProto) -> str:
    origins = {n.name: n for n in twin.program.graph.nodes}
    named = next((name for name in node.output if twin.renamed.get(name, name) in origins), "")
    origin = origins.get(twin.renamed.get(named, named))
    return module_of_weight(graph, node) or (module_path(origin) if origin is not None else "")
