"""A model as an ATen graph, by torch.export, before decomposition: conv2d, linear and batch_norm stay whole."""

import contextlib
import inspect
import io
import logging
import pathlib
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from paredown.core.errors import TraceError
from paredown.graph.inline import inline_
from paredown.task.batches import Inputs, apply_tensors, call, evaluating, unfused

Dynamic = dict[str, dict[int, str]]
_LIMIT = re.compile(r"(\w+) = Dim\('\w+'(?:, min=\d+)?, max=(\d+)\)")  # what torch.export proposes
_FIXED = re.compile(r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_UNKNOWN = re.compile(r"Found <class '(?:.*\.)?(\w+)'> in output, which is not a known type")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')


def trace(model: nn.Module, inputs: Inputs, dynamic: Dynamic | None = None) -> ExportedProgram:
    """The graph of `model` in evaluation mode; the batch (dimension 0 of every input) is dynamic, and what `dynamic` names.

    inputs: at least 2 samples. The program shares its parameters with the model. The model's mode is left as it was.
    Raises TraceError, naming the user's source line, where torch.export can't follow the model.
    """
    try:
        with _quiet(), evaluating(model), unfused():
            return inline_(_exported(model, inputs, dynamic))
    except Exception as error:
        _require_run(model, inputs)
        got, remedy = _explained(error)
        raise TraceError("torch.export must be able to follow the model", got=f"{_line(error)}{got}", remedy=remedy) from error


def _require_run(model: nn.Module, inputs: Inputs) -> None:
    try:
        with evaluating(model), torch.no_grad():
            call(model, apply_tensors(inputs, torch.clone))
    except Exception as error:
        got = f"{_line(error)}{_first_sentence(error)}"
        raise TraceError("a model must take the example inputs", got=got, remedy="pass what its forward takes") from error


def _explained(error: Exception) -> tuple[str, str]:
    """What stood in the way, and what to do about it."""
    text, got = str(error), _first_sentence(error)
    if unknown := _UNKNOWN.search(text):
        return got, f"return tensors in a tuple or a dict, or call torch.export.register_dataclass({unknown[1]})"
    if fixed := _FIXED.search(text):
        name, size = fixed.groups()
        own = "replace literal batch sizes, and len(x), by x.shape[0]"
        return f"{name} can be nothing but {size}", own if name == "batch" else "take it out of dynamic, or compute sizes from x"
    if ".numpy()" in text:
        return got, "compute with torch: what is handed to numpy isn't in the graph"
    return got, "replace control flow on tensor values by torch.where, literal batch sizes and len(x) by x.shape[0]"


def _exported(model: nn.Module, inputs: Inputs, dynamic: Dynamic | None) -> ExportedProgram:
    """A dynamic dimension that the model itself limits, by a table of 512 positions say, is exported with that limit."""
    args, kwargs = as_call(inputs)
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=_shapes(model, inputs, dynamic, {}))
    except Exception as error:
        limits = {name: int(most) for name, most in _LIMIT.findall(str(error))}
        if not limits:
            raise
        return torch.export.export(model, args, kwargs, dynamic_shapes=_shapes(model, inputs, dynamic, limits))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export warns, and logs the graph at which it failed; what of it concerns the user stands in the error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def as_call(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as positional and keyword arguments."""
    if isinstance(inputs, dict):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def module_path(node: fx.Node) -> str:
    """The dotted name of the innermost module that made a node, "" for the model itself."""
    return next(iter(module_stack(node)), "")


def module_stack(node: fx.Node) -> tuple[str, ...]:
    """The dotted names of the modules that made a node, the innermost first."""
    paths = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return tuple(re.sub(r"@\d+$", "", path) if "@" in path else path for path in reversed(paths))


def path_of(key: str) -> str:
    """The module that a quantizer's key begins with: "layer1/0/conv1@0:weight" -> "layer1.0.conv1"."""
    return key.partition("@")[0].replace("/", ".")


def source_line(node: fx.Node) -> str:
    """Where a node stands in the user's code: "model.py:12, in forward"; "" where unknown."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not pathlib.Path(frame[0]).is_relative_to(torch.__path__[0])]
    return _place(own[-1]) if own else ""


def place_of(node: fx.Node) -> str:
    """The line where a node stands, or else its module's name."""
    return source_line(node) or module_path(node)


def _shapes(model: nn.Module, inputs: Inputs, dynamic: Dynamic | None, limits: dict[str, int]) -> Any:
    """For each input tensor {0: batch, ...}. Names that `dynamic` repeats become one dimension. limits: the largest sizes."""
    batch = Dim("batch")
    named = {name: Dim(name, max=limits.get(name)) for dims in (dynamic or {}).values() for name in dims.values()}

    def of(name: str, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return ({0: batch} if value.dim() else {}) | {d: named[n] for d, n in (dynamic or {}).get(name, {}).items()}
        if isinstance(value, dict):
            return {k: of(k, v) for k, v in value.items()}
        return type(value)(of(name, v) for v in value) if isinstance(value, tuple | list) else None

    args, kwargs = as_call(inputs)
    given = inspect.signature(model.forward).bind(*args, **kwargs)
    extra = next((p.name for p in given.signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
    arguments = {name: value for name, value in given.arguments.items() if name != extra} | given.arguments.get(extra, {})
    return {name: of(name, value) for name, value in arguments.items()}


def _first_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _line(error: BaseException) -> str:
    """The innermost frame of the user's own code, from the traceback or from the message."""
    libraries = (torch.__path__[0], str(pathlib.Path(__file__).parents[1]), f"{sys.prefix}/lib", f"{sys.base_prefix}/lib", "<")
    frames = [(f.filename, str(f.lineno), f.name) for f in traceback.extract_tb(error.__traceback__)]
    user = [frame for frame in frames + _FRAME.findall(str(error)) if not frame[0].startswith(libraries)]
    return f"{_place(user[-1])}: " if user else ""


def _place(frame: tuple[str, str, str]) -> str:
    path, line, function = frame
    return f"{pathlib.PurePath(path).name}:{line}, in {function}"
