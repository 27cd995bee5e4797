"""Where quantizers stand: what each runtime executes in int8, and what follows for the tensors of a graph.

A runtime fuses DequantizeLinear -> operator -> (relu) -> QuantizeLinear into one int8 operator. So each tensor that enters or
leaves one is quantized once, at its anchor: the operator that makes it, or the relu fused behind that. Operators that only
move values (slice, pad, reshape, ...) keep the scale of what they are given.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import assert_never

from torch import fx, nn

from paredown.core.steps import Quantize
from paredown.graph.trace import module_path
from paredown.quantization.functional import is_inplace
from paredown.quantization.nodes import argument, constant, is_dropout, is_float, name_of, quantizer_key, value_of
from paredown.quantization.scheme import MOST_INTEGER, Scheme


@dataclass(frozen=True)
class Rules:
    """What one runtime does in int8, by ATen operator.

    weighted: operators with a constant weight, computed in int8.
    stored: those of them that need a quantized output to be; without it they run in float.
    joins: operators of two tensors, computed in int8 where both come quantized.
    lookups: operators of one tensor, likewise: a table of 256 numbers.
    fused: activations that disappear into the operator before them.
    moves: operators that pass a quantized tensor on with its scale.
    restated: moves that the runtime takes only between two quantizers; the tensor's own is put behind them again.
    sums: a join is fused into a stored operator that it alone reads, and takes that operand unrounded.
    averages: where nothing else reads a stored operator, its output stays in float.
    Where "sigmoid" is among the lookups, a silu is two operators, a sigmoid and a product.
    """

    weighted: frozenset[str]
    stored: frozenset[str]
    joins: frozenset[str]
    fused: frozenset[str]
    moves: frozenset[str]
    restated: frozenset[str]
    sums: bool = False
    lookups: frozenset[str] = frozenset()
    averages: frozenset[str] = frozenset()


# Shares of 1, of which the model's results may be made: these, and products, are on a grid only on the way to another layer,
# where they scale what it reads; small probabilities would all become 0.
_GATES, _AVERAGES = frozenset(["sigmoid"]), frozenset(["avg_pool1d", "avg_pool2d", "avg_pool3d"])
_CONVOLUTIONS = frozenset(["conv1d", "conv2d", "conv3d"])
TRANSPOSED = frozenset(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"])
RECURRENT = frozenset(["lstm", "gru", "rnn_tanh", "rnn_relu"])
_RESHAPES = frozenset(
    ["view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "contiguous", "clone",
     "alias", "detach", "dropout", "feature_dropout"]
)  # fmt: skip

PORTABLE = Rules(
    weighted=_CONVOLUTIONS | {"linear"},
    stored=_CONVOLUTIONS,
    joins=frozenset(["add"]),
    fused=frozenset(["relu", "relu6", "hardtanh"]),
    moves=_RESHAPES | {"slice", "pad", "constant_pad_nd", "max_pool1d", "max_pool2d", "max_pool3d"},
    restated=frozenset(["pad", "constant_pad_nd"]),
)
# ONNX Runtime 1.32: a convolution without a quantized output runs in float; Add and Mul (QLinearAdd, QLinearMul) want three
# quantizers, Sigmoid two. Concat and pools of means have integer kernels too, which gained nothing in DenseNet and GoogLeNet.
# OpenVINO 2026.4: conv + quantizer + add + relu + quantizer is one operator, which skips the rounding of the first; a silu, a
# sigmoid or a hardswish behind a convolution is part of it, in float, and rounded once. Its integer average pool is wrong (VNNI).
RULES: dict[str | None, Rules] = {
    None: PORTABLE,
    "onnxruntime": replace(PORTABLE, joins=PORTABLE.joins | {"mul"}, lookups=frozenset(["sigmoid"])),
    "openvino": replace(PORTABLE, sums=True, fused=PORTABLE.fused | {"silu", "sigmoid", "hardswish"}, averages=_AVERAGES),
}
# Linear layers, on what the runtime rounds as it comes; no tensor between two operators stays in integers.
DYNAMIC = Rules(
    weighted=frozenset(["linear"]),
    stored=frozenset(),
    joins=frozenset(),
    fused=frozenset(),
    moves=frozenset(),
    restated=frozenset(),
)
# Weights are converted number by number, whatever reads them.
CONVERTED = replace(PORTABLE, weighted=PORTABLE.weighted | TRANSPOSED)


def rules_of(config: Quantize) -> Rules:
    """Those of the step's kind, and of its runtime where that matters."""
    match config.kind:
        case "dynamic":
            return DYNAMIC
        case "fp16" | "bf16" | "palette":
            return CONVERTED
        case "static" | "weight_only":
            rules = RULES[config.target]
            floats = config.kind == "weight_only" or config.weights.two_sided or config.activations.two_sided
            return replace(rules, joins=PORTABLE.joins, lookups=frozenset()) if floats else rules  # computed in float anyway
        case _:
            assert_never(config.kind)


@dataclass(frozen=True)
class Site:
    """One quantizer: its key, the node whose value it quantizes, the nodes that read the quantized value; bits: of an
    activation.
    """

    key: str
    node: fx.Node
    readers: tuple[fx.Node, ...]
    bits: int = 8


@dataclass(frozen=True)
class Placement:
    """weights, biases: one site per weighted operator (that has a bias); a runtime holds biases as int32. Operators whose
    weight alone is on a grid, or has a scale per group, keep their bias in float.
    activations: one per anchor. restated: the same keys again, behind moves.
    """

    weights: tuple[Site, ...]
    biases: tuple[Site, ...]
    activations: tuple[Site, ...]
    restated: tuple[Site, ...]


@dataclass
class _State:
    module: nn.Module
    rules: Rules
    scheme: Scheme
    names: dict[fx.Node, str]
    protect: tuple[str, ...] = ()
    unrounded: frozenset[fx.Node] = frozenset()  # origins of tensors that are to stay in float
    feeding: frozenset[fx.Node] = frozenset()  # what a layer with a weight reads, or what that is made of
    int8: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)  # operator -> the tensors it reads quantized
    anchors: dict[fx.Node, str] = field(default_factory=dict)  # anchor -> key


def place(
    module: fx.GraphModule,
    rules: Rules,
    protect: tuple[str, ...] = (),
    scheme: Scheme | None = None,
    *,
    float_biases: bool = False,
) -> Placement:
    """The quantizers of a folded graph. protect: modules (and what is inside them) that stay in float.

    scheme: widths by layer (None: 8 bits everywhere); a layer of 32 bits stays in float too. float_biases: no bias gets one.
    """
    state = _State(module, rules, scheme or Scheme(), _call_names(module.graph, rules), protect)
    free = [n for n in module.graph.nodes if not _is_protected(n, protect)]
    stored = [site for node in free for site in _weight_only(state, node)]
    integer = [node for node in free if _is_weighted(state, node) and _in_integers(state, node)]
    state.unrounded = _unrounded(state, free) - {_origin(state, node.args[0]) for node in integer}
    state.feeding = _feeding(module.graph, integer)
    for node in integer:
        _take(state, node, (node.args[0],), stored=name_of(node) in rules.stored and not state.scheme.of(module_path(node)).wide)
    for node in free:
        operands = _operands(state, node)
        origins = [_origin(state, operand) for operand in operands]
        if origins and all(origin in state.anchors and _bits(state, origin) <= MOST_INTEGER for origin in origins):
            summed = _summed(state, node, operands) if rules.sums else None
            state.anchors = {anchor: key for anchor, key in state.anchors.items() if anchor is not summed}
            _take(state, node, tuple(o for o in operands if o is not summed), stored=True)
    weighted = [n for n in module.graph.nodes if n in state.int8 and name_of(n) in rules.weighted]
    biases = [] if float_biases else weighted
    biased = [n for n in biases if constant(module, argument(n, 2)) is not None and not state.scheme.of(module_path(n)).group]
    activations = [(n, state.anchors[n]) for n in module.graph.nodes if n in state.anchors]
    weights = [Site(f"{state.names[n]}:weight", argument(n, 1), (n,)) for n in weighted]
    return Placement(
        tuple(_with_lookups(state, site) for site in (*weights, *stored)),
        tuple(Site(f"{state.names[n]}:bias", argument(n, 2), (n,)) for n in biased),
        tuple(Site(key, n, _readers(state, n), _bits(state, n)) for n, key in activations),
        _restated(state),
    )


def _in_integers(state: _State, node: fx.Node) -> bool:
    widths = state.scheme.of(module_path(node))
    return not widths.is_float and not widths.weight_only


def _feeding(graph: fx.Graph, layers: list[fx.Node]) -> frozenset[fx.Node]:
    found = set(layers)
    for node in reversed(graph.nodes):
        if not found.isdisjoint(node.users):
            found.add(node)
    return frozenset(found)


def _scales(state: _State, gate: fx.Node) -> bool:
    """Whether a gate does nothing but scale, in products, what a later layer reads."""
    return bool(gate.users) and all(
        _scales(state, user) if name_of(user) in state.rules.moves else name_of(user) == "mul" and user in state.feeding
        for user in gate.users
    )


def _unrounded(state: _State, nodes: list[fx.Node]) -> frozenset[fx.Node]:
    """Where what layers read comes from whose weights alone are on a grid. What makes it may run in float for that."""
    layers = [node for node in nodes if _has_weight(state, node) and state.scheme.of(module_path(node)).weight_only]
    return frozenset(_origin(state, node.args[0]) for node in layers if isinstance(node.args[0], fx.Node))


def _weight_only(state: _State, node: fx.Node) -> list[Site]:
    """The weights of an operator that are stored on a grid, while it computes in float."""
    name, path = name_of(node), module_path(node)
    widths = state.scheme.of(path)
    if widths.is_float or node not in state.names:
        return []
    if name == "embedding":
        table = node.args[0] if state.scheme.embeddings and constant(state.module, node.args[0]) is not None else None
        if not isinstance(table, fx.Node) or any(_is_protected(user, state.protect) for user in table.users):
            return []  # a tied weight is one tensor in the file
        return [Site(f"{state.names[node]}:weight", table, tuple(table.users))]
    if not widths.weight_only:
        return []
    if name in state.rules.weighted:
        return [Site(f"{state.names[node]}:weight", argument(node, 1), (node,))] if _has_weight(state, node) else []
    weights = [w for w in argument(node, 2, ()) if _is_matrix(state.module, w)] if name in RECURRENT else []
    return [Site(f"{state.names[node]}:{str(w.target).rpartition('.')[2]}:weight", w, (node,)) for w in weights]


def _with_lookups(state: _State, site: Site) -> Site:
    """A table that a layer on a grid reads too is looked up from that grid: the file would hold it twice, once in float."""
    lookups = [user for user in site.node.users if name_of(user) == "embedding" and not _is_protected(user, state.protect)]
    return replace(site, readers=tuple(dict.fromkeys((*site.readers, *lookups))))


def _is_matrix(module: nn.Module, node: object) -> bool:
    value = constant(module, node)
    return value is not None and value.dim() == 2


def _bits(state: _State, anchor: fx.Node) -> int:
    """The most bits that a layer reading this tensor wants; 8 where sums alone read it."""
    readers = [n for n, operands in state.int8.items() if any(_origin(state, o) is anchor for o in operands)]
    wanted = [state.scheme.of(module_path(n)).activation_bits for n in readers if name_of(n) in state.rules.weighted]
    return max(wanted, default=8)


def _take(state: _State, node: fx.Node, operands: tuple[fx.Node, ...], *, stored: bool) -> None:
    """Makes `node` an int8 operator: its operands get quantizers, and its output where it has to be stored."""
    state.int8[node] = operands
    for operand in operands:
        origin = _origin(state, operand)
        if origin not in state.anchors:
            state.anchors[origin] = _key(state, origin, node)
    after = _fused(state, node)
    averaged = bool(after.users) and all(name_of(user) in state.rules.averages for user in after.users)
    if stored and not averaged and after not in state.unrounded and not _is_result(state, after):
        state.anchors.setdefault(after, _key(state, after, node))


def _is_weighted(state: _State, node: fx.Node) -> bool:
    return _has_weight(state, node) and _quantizable(state, node.args[0])


def _has_weight(state: _State, node: fx.Node) -> bool:
    weighted = name_of(node) in state.rules.weighted
    return weighted and constant(state.module, argument(node, 1)) is not None and is_float(node)


def _operands(state: _State, node: fx.Node) -> tuple[fx.Node, ...]:
    """The two tensors of a join of equal rank, or the one of a lookup; () where `node` is neither."""
    if name_of(node) in state.rules.lookups:
        return (node.args[0],) if _scales(state, node) and _quantizable(state, node.args[0]) else ()  # type: ignore[return-value]
    if name_of(node) == "mul" and node not in state.feeding:
        return ()
    if name_of(node) not in state.rules.joins or node.kwargs.get("alpha", 1) != 1:
        return ()
    operands = tuple(a for a in node.args[:2] if isinstance(a, fx.Node) and _quantizable(state, a))
    ranks = {value.dim() for value in map(value_of, operands) if value is not None}
    return operands if len(operands) == 2 and len(ranks) == 1 else ()


def _summed(state: _State, node: fx.Node, operands: tuple[fx.Node, ...]) -> fx.Node | None:
    """The operand (the later one) that a join may take unrounded: a stored operator's own output, read by nothing else."""
    own = [o for o in operands if o in state.int8 and name_of(o) in state.rules.stored and list(o.users) == [node]]
    return max(own) if own and operands[0] is not operands[1] else None


def _quantizable(state: _State, node: object) -> bool:
    """Whether a quantizer may stand at the origin of this tensor."""
    origin = _origin(state, node) if isinstance(node, fx.Node) else None
    if origin is None or not is_float(origin) or origin.op == "get_attr":
        return False
    return not is_inplace(origin) and not any(is_inplace(user) for user in origin.users)


def _origin(state: _State, node: fx.Node) -> fx.Node:
    """The node that made a tensor's values, before any moves."""
    while name_of(node) in state.rules.moves and isinstance(node.args[0], fx.Node) and _pads_zero(node):
        node = node.args[0]
    return node


def key_before(node: fx.Node) -> str:
    """The key of the quantizer that what an operator reads comes from, through moves and dropouts, which are modules by now; ""
    where it isn't rounded.
    """
    current = argument(node, 0)
    while isinstance(current, fx.Node) and (name_of(current) in PORTABLE.moves or is_dropout(current)) and current.args:
        current = current.args[0]
    return quantizer_key(current) if isinstance(current, fx.Node) else ""


def _pads_zero(node: fx.Node) -> bool:
    """False for a padding that brings in values which the grid might not hold."""
    if name_of(node) == "constant_pad_nd":
        return bool(argument(node, 2, 0) == 0)
    return name_of(node) != "pad" or (argument(node, 2, "constant") == "constant" and argument(node, 3) in (None, 0))


def _fused(state: _State, node: fx.Node) -> fx.Node:
    """The activation that disappears into `node`, or `node` itself."""
    users = list(node.users)
    if len(users) != 1 or name_of(users[0]) not in state.rules.fused:
        return node
    return node if name_of(users[0]) in _GATES and not _scales(state, users[0]) else users[0]


def _is_result(state: _State, node: fx.Node) -> bool:
    """Whether a tensor leaves the model, directly or by moves, and goes nowhere else."""
    return all(u.op == "output" or (name_of(u) in state.rules.moves and _is_result(state, u)) for u in node.users)


def _readers(state: _State, anchor: fx.Node) -> tuple[fx.Node, ...]:
    """What reads the quantized value: everything inside the model where an int8 operator made the tensor, since that
    operator is fused with the quantizer; else int8 operators and moves alone, and float operators keep the precise value.
    """
    everything = _maker(state, anchor) is not None
    users = [user for user in anchor.users if user.op != "output"]
    return tuple(u for u in users if everything or u in state.int8 or name_of(u) in state.rules.moves)


def _maker(state: _State, anchor: fx.Node) -> fx.Node | None:
    """The int8 operator whose output, with what is fused behind it, the anchor is."""
    made = anchor.args[0] if name_of(anchor) in state.rules.fused else anchor
    return made if isinstance(made, fx.Node) and made in state.int8 and _fused(state, made) is anchor else None


def _restated(state: _State) -> tuple[Site, ...]:
    """Operands that reach their int8 operator through a move which the runtime takes only between two quantizers."""
    readers: dict[fx.Node, list[fx.Node]] = {}
    for node, operands in state.int8.items():
        for operand in dict.fromkeys(operands):
            current = operand
            while current is not _origin(state, operand) and name_of(current) not in state.rules.restated:
                current = current.args[0]  # type: ignore[assignment]  # a move's first argument is a tensor
            if current is not _origin(state, operand):
                readers.setdefault(operand, []).append(node)
    return tuple(Site(state.anchors[_origin(state, x)], x, tuple(nodes)) for x, nodes in readers.items())


def _key(state: _State, anchor: fx.Node, reader: fx.Node) -> str:
    """ "layer1/0/conv1@0:output" by the int8 operator that makes the tensor, else "conv1@0:input" by the first that reads it."""
    made = _maker(state, anchor)
    if made is not None:
        fused = "output" if anchor is made or name_of(anchor) in PORTABLE.fused else name_of(anchor)
        return f"{state.names[made]}:{fused if name_of(made) in state.rules.weighted else name_of(made)}"
    if name_of(reader) in state.rules.weighted:
        return f"{state.names[reader]}:input"
    raise AssertionError("the operands of joins and lookups have anchors already")


def _call_names(graph: fx.Graph, rules: Rules) -> dict[fx.Node, str]:
    """Module path and call index of every operator that can be int8: "layer1/0/conv1@0". Weighted operators count together."""
    seen: Counter[tuple[str, str]] = Counter()
    names = {}
    for node in graph.nodes:
        name = name_of(node)
        if name not in rules.weighted | rules.joins | rules.lookups | RECURRENT | {"embedding"}:
            continue
        path, kind = module_path(node).replace(".", "/"), name if name in rules.joins | rules.lookups else ""
        names[node] = f"{path}@{seen[path, kind]}"
        seen[path, kind] += 1
    return names


def edges(module: fx.GraphModule, rules: Rules, protect: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The paths of the first and the last layer with a weight; () where that would be all of them."""
    state = _State(module, rules, Scheme(), {})
    weighted = [module_path(n) for n in module.graph.nodes if _has_weight(state, n)]
    paths = list(dict.fromkeys(p for p in weighted if p and not any(_inside(p, name) for name in protect)))
    return (paths[0], paths[-1]) if len(paths) > 2 else ()


def _is_protected(node: fx.Node, protect: tuple[str, ...]) -> bool:
    """By the module that runs it, or by the one that holds a weight it reads: nn.MultiheadAttention never runs its out_proj."""
    held = [str(read.target).rpartition(".")[0] for read in node.all_input_nodes if read.op == "get_attr"]
    return any(_inside(path, name) for path in (module_path(node), *held) for name in protect)


def _inside(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.") or name == ""
