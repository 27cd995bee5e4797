"""A torch model as an ONNX file: standard operators, dynamic batch, 8-bit weights in 8 bits, nothing of the machine in it."""

import contextlib
import hashlib
import importlib.metadata
import io
import logging
import os
import pathlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

import paredown.graph.dynamic_quantize
import paredown.graph.fake_quantize
import paredown.graph.stored_weight
import paredown.graph.two_sided  # noqa: F401 (they register operators)
from paredown.core.artifact import Artifact
from paredown.core.errors import ExportError, OutputError
from paredown.core.target import Target
from paredown.graph.trace import Dynamic, trace
from paredown.task.batches import Inputs, apply_tensors

OPSET = 20  # ONNX Runtime 1.17 and OpenVINO 2024.0 onward take it
_NARROW, _WIDE, _MOST = 2**4, 2**8, 2**16  # numbers that 4, 8 and 16 bits hold
_ADAPTIVE_POOLS = (
    torch.ops.aten.adaptive_avg_pool1d.default,
    torch.ops.aten.adaptive_avg_pool2d.default,
    torch.ops.aten.adaptive_avg_pool3d.default,
)


@dataclass(frozen=True)
class Built:
    """An ONNX model in memory (an onnx.ModelProto), and the graph that it was translated from.

    program: its nodes bear the names that the values of the model have, but for `renamed`, {name in the model: node}.
    precision: as the Artifact says it.
    """

    model: Any
    program: ExportedProgram
    renamed: dict[str, str]
    precision: str


def export_onnx(
    model: nn.Module, inputs: Inputs, path: str | pathlib.Path, *, target: Target | str, dynamic: Dynamic | None = None
) -> Artifact:
    """Writes `model` to `path`, whole or not at all; the folder is made where it is missing.

    inputs: at least 2 samples, batch on dimension 0, which stays dynamic, as does what `dynamic` names.
    target: recorded in the file's metadata, where `load` finds it.
    Raises TraceError or ExportError where the model can't be written, OutputError where the path can't.
    """
    return write_onnx(build(model, inputs, dynamic), path, Target.of(target))


def write_onnx(built: "Built", path: str | pathlib.Path, target: Target) -> Artifact:
    """What was built already, likewise."""
    _describe_(built.model, target, built.precision)
    data = _serialized(built.model)
    destination = pathlib.Path(path)
    _write(data, destination)
    return Artifact(str(destination), target, built.precision, len(data), hashlib.sha256(data).hexdigest())


def build(model: nn.Module, inputs: Inputs, dynamic: Dynamic | None = None) -> Built:
    """The ONNX model of `model`, checked, in memory. Raises TraceError or ExportError."""
    narrow = {parameter.dtype for parameter in model.parameters()} & {torch.bfloat16, torch.float16}
    if narrow:  # bfloat16 doesn't run; float16 is further from torch than parity allows
        got = str(min(narrow, key=str)).removeprefix("torch.")
        raise ExportError(
            "weights must be of a type that runtimes compute in as torch does", got=got, remedy="call model.float()"
        )
    from paredown.deploy import passes

    inputs = apply_tensors(inputs, lambda t: t.detach().contiguous())  # other strides would be written into the graph
    exported = trace(model, inputs, dynamic)
    names = _output_names(exported)
    try:
        with _quiet():
            ready = _pools_as_means(_laid_out_(exported))
            program = _translated(ready, names)
            proto = program.model_proto
            if not passes.is_closed(proto):  # onnxscript 0.7.2 fuses two clips of one tensor, and loses the bounds of one
                program = _translated(ready, names, optimize=False)
                proto = program.model_proto
    except Exception as error:
        raise ExportError(
            "the model must be expressible in ONNX operators", got=_cause(error), remedy="replace the operator that it names"
        ) from error
    assert program is not None and program.exported_program is not None  # export to memory returns it
    _passes_(proto, _dimension_names(program, dynamic))
    results = [node.name for node in _results(program.exported_program.graph)]
    renamed = {out.name: name for out, name in zip(proto.graph.output, results, strict=False) if out.name != name}
    return Built(proto, program.exported_program, renamed, _precision(exported.graph))


def _translated(exported: ExportedProgram, output_names: list[str], *, optimize: bool = True) -> Any:
    """torch's own exporter, with our operators in its table. optimize: fold constants and fuse, by onnxscript."""
    from paredown.deploy import dynamic, qdq, stored, two_sided

    return torch.onnx.export(
        exported,
        dynamo=True,
        verbose=False,
        optimize=optimize,
        opset_version=_opset(exported.graph),
        output_names=output_names,
        custom_translation_table={
            torch.ops.paredown.fake_quantize.default: qdq.translate(),
            torch.ops.paredown.fake_quantize_two_sided.default: two_sided.translate(),
            torch.ops.paredown.dynamic_quantize.default: dynamic.translate(),
            torch.ops.paredown.round_float.default: stored.translate_float(),
            torch.ops.paredown.look_up.default: stored.translate_look_up(),
        },
    )


def _opset(graph: fx.Graph) -> int:
    """OPSET, or the first one with 4-bit and 16-bit numbers and scales per group."""
    from paredown.deploy import packed, stored

    if any(codes <= stored.NARROW for codes in _codebooks(graph)):
        return packed.OPSET
    grids = _grids(graph)
    newer = any(
        any(block) or (axis >= 0 and high - low < _NARROW) or _WIDE <= high - low < _MOST for axis, low, high, *block in grids
    )
    return packed.OPSET if newer else OPSET


def _grids(graph: fx.Graph) -> list[tuple[int, ...]]:
    """Axis, low, high and perhaps block of each quantizer."""
    operators = (torch.ops.paredown.fake_quantize.default, torch.ops.paredown.fake_quantize_two_sided.default)
    return [node.args[3:] for node in graph.nodes if node.target in operators]


def _codebooks(graph: fx.Graph) -> list[int]:
    """How many codes each palette has."""
    return [len(node.args[1].meta["val"]) for node in graph.nodes if node.target is torch.ops.paredown.look_up.default]


def _precision(graph: fx.Graph) -> str:
    """ "fp32", or what weights are stored in: "int8", "int2/int4/int8" where layers differ, "fp16", "bf16", "palette4"."""
    floats = {node.args[1] for node in graph.nodes if node.target is torch.ops.paredown.round_float.default}
    if floats or _codebooks(graph):
        return ("fp16" if 5 in floats else "bf16") if floats else f"palette{max(_codebooks(graph)).bit_length() - 1}"
    grids = _grids(graph)
    levels = [high - low + 1 for axis, low, high, *_ in grids if axis >= 0]  # the others are activations
    bits = {next(b for b in (2, 3, 4, 8, 16) if n <= 2**b) for n in levels if n <= _MOST}  # the others are biases
    return "/".join(f"int{b}" for b in sorted(bits)) or ("int8" if grids else "fp32")


def _passes_(proto: Any, dimensions: dict[str, dict[int, str]]) -> None:
    """Lowers, strips and checks the model."""
    import onnx

    from paredown.deploy import dynamic, kept_floats, narrow, packed, pads, passes, qdq, stored, two_sided

    dynamic.lower_(proto)
    stored.lower_(proto)
    two_sided.lower_(proto)
    qdq.lower_(proto)
    pads.absorb_pads_(proto)
    packed.gemms_as_matmuls_(proto)
    qdq.transpose_weights_(proto)
    dynamic.integer_products_(proto)
    passes.drop_dead_(proto)  # what products read before is no reader any more
    packed.fold_at_load_(proto)
    qdq.quantize_biases_(proto)
    kept_floats.keep_floats_(proto)
    if any(entry.domain == "" and entry.version >= packed.OPSET for entry in proto.opset_import):
        narrow.narrow_weights_(proto)
    passes.drop_dead_(proto)
    passes.strip_(proto)
    passes.name_dimensions_(proto, dimensions)
    _rename_inputs_(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            "the exported model must pass ONNX's checker", got=_first_line(error), remedy="report this with the model's code"
        ) from error


def _rename_inputs_(proto: Any) -> None:
    """`forward(*args)` gives args_0, args_1, ...: input, or input_0, input_1, ..."""
    from paredown.deploy import passes

    names = [entry.name for entry in proto.graph.input]
    variadic = [name for name in names if re.fullmatch(r"args_\d+", name)]
    fresh = ["input"] if len(variadic) == 1 else [f"input_{index}" for index in range(len(variadic))]
    if variadic and not set(fresh) & _values(proto):
        passes.rename_(proto, dict(zip(variadic, fresh, strict=True)))


def _values(proto: Any) -> set[str]:
    return {name for node in proto.graph.node for name in [*node.input, *node.output]}


def _output_names(exported: ExportedProgram) -> list[str]:
    """The keys of a dict that the model returns; else "output", or "output_0", "output_1", ... ."""
    results = _results(exported.graph)
    spec = exported.call_spec.out_spec
    keys = [str(key) for key in spec.context] if spec is not None and spec.type is dict else []
    taken = {node.name for node in exported.graph.nodes}
    if len(keys) == len(results) and not taken & set(keys):
        return keys
    return ["output"] if len(results) == 1 else [f"output_{index}" for index in range(len(results))]


def _results(graph: fx.Graph) -> list[fx.Node]:
    """The nodes whose values the graph returns."""
    output = next(node for node in graph.nodes if node.op == "output")
    return [node for node in output.args[0] if isinstance(node, fx.Node)]


def _dimension_names(program: Any, dynamic: Dynamic | None) -> dict[str, dict[int, str]]:
    """{input: {dimension: name}}: the batch, and what `dynamic` names."""
    names = [entry.name for entry in program.model_proto.graph.input]
    return {name: {0: "batch"} | (dynamic or {}).get(name, {}) for name in names}


def _laid_out_(exported: ExportedProgram) -> ExportedProgram:
    """The program itself, with outputs of attention laid out in the order of their dimensions: which strides they have depends on
    the kernel that torch would choose, and its exporter may write a view that fits one choice and then run it with another.
    """
    graph = exported.graph_module.graph
    found = [node for node in graph.nodes if node.target is torch.ops.aten.scaled_dot_product_attention.default]
    for node in found:
        with graph.inserting_after(node):
            copy = graph.call_function(torch.ops.aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
        copy.meta = dict(node.meta)
        node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy and user.op != "output")
        _in_four_dimensions_(graph, node, copy)
    if found:
        exported.graph_module.recompile()
    return exported


def _in_four_dimensions_(graph: fx.Graph, attention: fx.Node, result: fx.Node) -> None:
    """Attention (batch, windows, ..., heads, length, width) as of a longer batch, (heads, length, width) as of a batch of one:
    torch's exporter takes 4 dimensions alone.

    result: the copy of its output that is read. Left alone where a mask of a longer batch, more than one size that isn't a
    number, or the graph returning it stands against it.
    """
    value = attention.meta["val"]
    leading, mask = value.shape[:-3], attention.args[3] if len(attention.args) > 3 else attention.kwargs.get("attn_mask")
    sizes = [size if isinstance(size, int) else -1 for size in leading]
    returned = any(user.op == "output" for user in attention.users)
    if len(sizes) == 1 or returned or sizes.count(-1) > 1 or (mask is not None and len(sizes) > 1):
        return
    aten = torch.ops.aten
    there: tuple[Any, ...] = (aten.flatten.using_ints, 0, len(sizes) - 1) if sizes else (aten.unsqueeze.default, 0)
    back: tuple[Any, ...] = (aten.unflatten.int, 0, sizes) if sizes else (aten.squeeze.dim, 0)
    read = [node for node in (*attention.args[:3], mask) if isinstance(node, fx.Node) and node.meta["val"].dim() > 2]
    for node in dict.fromkeys(read):
        with graph.inserting_before(attention):
            longer = graph.call_function(there[0], (node, *there[1:]))
        longer.meta = dict(node.meta) | {"val": there[0](node.meta["val"], *there[1:])}
        attention.replace_input_with(node, longer)
    with graph.inserting_after(result):
        whole = graph.call_function(back[0], (result, *back[1:]))
    whole.meta = dict(result.meta)
    result.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not whole)
    for node in (attention, result):
        node.meta = dict(node.meta) | {"val": there[0](value, *there[1:])}


def _pools_as_means(exported: ExportedProgram) -> ExportedProgram:
    """Adaptive average pools to one value as plain means: torch's own decomposition writes the strides of a
    channels-last tensor into the graph, which OpenVINO then reads wrongly.
    """
    if not any(node.target in _ADAPTIVE_POOLS for node in exported.graph.nodes):
        return exported
    means: ExportedProgram = exported.run_decompositions(dict.fromkeys(_ADAPTIVE_POOLS, _pool_as_mean))
    return means


def _pool_as_mean(x: torch.Tensor, size: list[int]) -> Any:
    if any(length != 1 for length in size):
        return NotImplemented
    return x.mean(tuple(range(-len(size), 0)), keepdim=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter prints, logs and warns; nothing of it concerns the user. Errors still come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _describe_(proto: Any, target: Target, precision: str) -> None:
    """The metadata that `load` and `doctor` read."""
    version = importlib.metadata.version("paredown")
    proto.producer_name, proto.producer_version, proto.graph.name = "paredown", version, "model"
    described = {
        "version": version, "runtime": target.runtime, "batch": target.batch, "threads": target.threads, "precision": precision,
    }  # fmt: skip
    for key, value in described.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = f"paredown.{key}", str(value)


def _serialized(proto: Any) -> bytes:
    try:
        return bytes(proto.SerializeToString(deterministic=True))
    except Exception as error:  # protobuf's own class for it differs between its releases
        raise ExportError(
            "a model must fit one file of 2 GB", got=f"{proto.ByteSize()} bytes", remedy="prune or quantize it first"
        ) from error


def _write(data: bytes, path: pathlib.Path) -> None:
    """Under a temporary name, then renamed, so that `path` never holds half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise OutputError("the file must be writable", got=f"{path}: {error.strerror}", remedy="choose another path") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _cause(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
