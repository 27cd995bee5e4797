"""A model as an ATen graph, by torch.export, before decomposition: conv2d, linear and batch_norm stay whole."""

import pathlib
import re
import sys
import traceback
import warnings
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from paredown.core.errors import TraceError
from paredown.task.batches import Inputs

Dynamic = dict[str, dict[int, str]]


def trace(model: nn.Module, inputs: Inputs, dynamic: Dynamic | None = None) -> ExportedProgram:
    """The graph of `model` in evaluation mode; the batch (dimension 0 of every input) is dynamic, and what `dynamic` names.

    inputs: at least 2 samples. The program shares its parameters with the model. The model's mode is left as it was.
    Raises TraceError, naming the user's source line, where torch.export can't follow the model.
    """
    args, kwargs = as_call(inputs)
    modes = {module: module.training for module in model.modules()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model.eval(), args, kwargs, dynamic_shapes=_shapes(model, inputs, dynamic))
    except Exception as error:
        raise TraceError(
            "torch.export must be able to follow the model", got=f"{_line(error)}{_first_sentence(error)}",
            remedy="replace control flow on tensor values by torch.where or torch.cond, and constants of the batch size by x.shape[0]",
        ) from error  # fmt: skip
    finally:
        for module, mode in modes.items():
            module.training = mode


def as_call(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as positional and keyword arguments."""
    if isinstance(inputs, dict):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def module_path(node: fx.Node) -> str:
    """The dotted name of the innermost module that made a node, "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return re.sub(r"@\d+$", "", str(paths[-1])) if paths else ""


def source_line(node: fx.Node) -> str:
    """Where a node stands in the user's code: "model.py:12, in forward"; "" where unknown."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', node.meta.get("stack_trace") or "")
    if not frames:
        return ""
    path, line, function = frames[-1]
    return f"{pathlib.PurePath(path).name}:{line}, in {function}"


def _shapes(model: nn.Module, inputs: Inputs, dynamic: Dynamic | None) -> Any:
    """For each input tensor {0: batch, ...}. Names that `dynamic` repeats become one dimension."""
    batch = Dim("batch")
    named = {name: Dim(name) for dims in (dynamic or {}).values() for name in dims.values()}

    def of(name: str, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {0: batch} | {d: named[n] for d, n in (dynamic or {}).get(name, {}).items()}
        if isinstance(value, dict):
            return {k: of(k, v) for k, v in value.items()}
        return type(value)(of(name, v) for v in value) if isinstance(value, tuple | list) else None

    if isinstance(inputs, dict):
        return {name: of(name, value) for name, value in inputs.items()}
    names = _argument_names(model)
    values = inputs if isinstance(inputs, tuple) else (inputs,)
    return tuple(of(names[i] if i < len(names) else "", value) for i, value in enumerate(values))


def _argument_names(model: nn.Module) -> list[str]:
    code = getattr(type(model).forward, "__code__", None)
    return list(code.co_varnames[1 : code.co_argcount]) if code else []


def _first_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _line(error: BaseException) -> str:
    """The innermost frame of the user's own code, from the traceback or from the message."""
    own = (torch.__path__[0], str(pathlib.Path(__file__).parent), sys.prefix + "/lib", sys.base_prefix + "/lib")
    frames = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(error.__traceback__)]
    frames += re.findall(r'File "([^"]+)", line (\d+), in (\w+)', str(error))
    user = [(path, line, name) for path, line, name in frames if not path.startswith(own) and not path.startswith("<")]
    if not user:
        return ""
    path, line, name = user[-1]
    return f"{pathlib.PurePath(path).name}:{line}, in {name}: "
