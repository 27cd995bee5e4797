"""Code and settings as text, by which a run knows whether what it depends on is still the same.

A function is its name, its instructions, and the values that it holds (defaults, closures, arguments of a partial); an object
that is called is its class and its attributes; a model is the code of its classes and the plain values that its modules keep.
Functions of other modules that this code calls are named, not followed.
"""

import functools
import hashlib
import inspect
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_DEPTH = 4  # of values within values
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def described(value: Any, depth: int = _DEPTH) -> str:  # noqa: PLR0911 (one for each kind of value)
    """The same text for the same code and values, in this process or another. Beyond `depth` only classes are named."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if depth == 0:
        return _name(type(value))
    inner = functools.partial(described, depth=depth - 1)
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} {tensor_digest(value)}"
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.shape} {value.dtype} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(inner, value))}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(inner, value)))}}}"  # whose order is another one in each process
    if isinstance(value, dict):
        return f"{{{', '.join(f'{inner(key)}: {inner(item)}' for key, item in value.items())}}}"
    if isinstance(value, functools.partial):
        return f"partial {inner(value.func)} {inner(value.args)} {inner(value.keywords)}"
    if isinstance(value, types.CodeType):
        return f"{value.co_code.hex()} {value.co_names} {described(value.co_consts)}"
    if inspect.isroutine(value) or isinstance(value, type):
        return _function(value, depth)
    own = {} if isinstance(value, types.ModuleType) else getattr(value, "__dict__", {})
    return f"{_class(type(value))} {inner({name: item for name, item in own.items() if name != 'training'})}"


def described_model(model: nn.Module) -> list[str]:
    """The code of each class of the model's modules, the plain values that each module keeps, and the buffers that no
    state_dict holds. Weights and the mode aren't in it.
    """
    classes = {_name(type(module)): _class(type(module)) for module in model.modules()}
    lines = [classes[name] for name in sorted(classes)]
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if _is_plain(value) and key != "training"}
        unsaved = {key: module._buffers[key] for key in sorted(module._non_persistent_buffers_set)}
        lines.append(f"{name} {_name(type(module))} {described(plain)} {described(unsaved)}")
    return lines


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of the values, in hex."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def _function(value: Any, depth: int) -> str:
    """A class is named here; a function of Python's also has its instructions, its defaults and what it closes over."""
    code = getattr(value, "__code__", None)
    if code is None:
        return _name(value)
    cells = [_content(cell) for cell in getattr(value, "__closure__", None) or ()]
    held = [getattr(value, "__defaults__", None), getattr(value, "__kwdefaults__", None), *cells]
    return f"{_name(value)} {described(code)} {described(held, depth - 1)}"


def _content(cell: Any) -> Any:
    """None for a cell that is still empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _class(cls: type) -> str:
    """A class of the user's with the functions and plain values that it and its bases define; torch's and Python's by name."""
    own = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in ("torch", "builtins")]
    return " ".join([_name(cls), *(line for base in own for line in _members(base))])


def _members(cls: type) -> Iterator[str]:
    for name, value in sorted(vars(cls).items()):
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)  # of a property, of a static method
        if inspect.isfunction(function) or (_is_plain(value) and not name.startswith("__")):
            yield f"{name} {described(function)}"


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple | list) and all(isinstance(item, _PLAIN) for item in value))


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
