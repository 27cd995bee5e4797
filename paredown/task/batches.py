"""Batches as the user gives them: (inputs, target), inputs a tensor, a tuple (positional) or a dict (by name)."""

import contextlib
import copy
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paredown.core.errors import BatchError, NotFiniteError

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]
Batch = tuple[Inputs, Any]
Batches = Iterable[Batch]


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """`model(x)`, `model(*inputs)` or `model(**inputs)`, by the type of the inputs."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a nest of tuples, lists, dicts and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    items = value if isinstance(value, tuple | list) else (value if isinstance(value, dict) else _fields(value)).values()
    return [tensor for item in items for tensor in tensors(item)]


def apply_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same nest with `function` applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: apply_tensors(item, function) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return _sequence(value, [apply_tensors(item, function) for item in value])
    if not (fields := _fields(value)):
        return value
    made = copy.copy(value)  # not made anew: what __post_init__ does is done
    for name, item in fields.items():
        object.__setattr__(made, name, apply_tensors(item, function))
    return made


def _fields(value: Any) -> dict[str, Any]:
    """Of a dataclass, by name; of anything else none."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {}
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def joined(nests: Sequence[Any]) -> Any:
    """The same nest with the tensors of all of them concatenated on dimension 0. Raises what torch does where they don't fit."""
    columns = zip(*(tensors(nest) for nest in nests), strict=True)
    whole = iter([torch.cat(column) for column in columns])
    return apply_tensors(nests[0], lambda _: next(whole))


def arranged(inputs: Any, like: Any) -> Any:
    """The same nest with the keys of its dicts in the order that they have in `like`.

    Raises BatchError where a dict has other keys than the one in its place.
    """
    if isinstance(inputs, dict) and isinstance(like, dict):
        if inputs.keys() != like.keys():
            raise BatchError(
                f"inputs must have the names of example_inputs: {', '.join(map(str, like))}",
                got=", ".join(map(str, inputs)),
                remedy="put every name that batches hold into example_inputs, and the other way round",
            )
        return {key: arranged(inputs[key], like[key]) for key in like}
    if isinstance(inputs, tuple | list) and isinstance(like, tuple | list) and len(inputs) == len(like):
        return _sequence(inputs, [arranged(a, b) for a, b in zip(inputs, like, strict=True)])
    return inputs


def batch_size(inputs: Inputs) -> int:
    """Samples in a batch: dimension 0 of its first tensor."""
    return int(tensors(inputs)[0].shape[0])


def first_samples(inputs: Inputs, count: int) -> Inputs:
    """The first samples of a batch; what has no row for each sample stays whole."""
    few: Inputs = rows_of(inputs, batch_size(inputs), slice(count))
    return few


def rows_of(value: Any, samples: int, rows: slice) -> Any:
    """Some samples of inputs or targets of so many; what has no row for each stays whole."""
    return apply_tensors(value, lambda t: t[rows] if t.dim() and t.shape[0] == samples else t)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives; the CPU for a model without any."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def digests(inputs: Inputs) -> list[bytes]:
    """For each sample of a batch 16 bytes that tell it from any other, by its values, shapes, types and names, and by what of the
    inputs is no tensor.
    """
    samples = batch_size(inputs)
    around = b"" if isinstance(inputs, Tensor) else repr(_around_tensors(inputs)).encode()
    states = [hashlib.blake2b(around, digest_size=16) for _ in range(samples)]
    for tensor in tensors(inputs):
        rows = tensor if tensor.dim() and tensor.shape[0] == samples else tensor.expand(samples, *tensor.shape)
        head = f"{tuple(rows.shape[1:])}{rows.dtype}".encode()
        flat = rows.detach().cpu().contiguous().reshape(samples, -1).view(torch.uint8).numpy()
        for state, row in zip(states, flat, strict=True):
            state.update(head)
            state.update(row)
    return [state.digest() for state in states]


def _around_tensors(value: Any) -> Any:
    """Names and order of a nest, and the plain values in it; of other objects the class, as what they print may be an address."""
    if isinstance(value, tuple | list):
        return [_around_tensors(item) for item in value]
    if isinstance(value, dict):
        return {key: _around_tensors(item) for key, item in value.items()}
    if isinstance(value, str | bytes | int | float | complex | None):
        return value
    return (type(value).__qualname__, _around_tensors(_fields(value)))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode; each of its modules gets its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def without_gradient(modules: Iterable[nn.Module]) -> Iterator[None]:
    """No parameter of these modules requires a gradient meanwhile."""
    trainable = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Attention layers by their own operators, instead of torch's one fused operator, which hides what is inside."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def each(batches: Batches, name: str, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """The batches one by one, each checked (form, finite inputs) and moved to `device`.

    Raises BatchError where there is none, where the iterator can be used only once, or where a batch isn't (inputs, target).
    """
    if isinstance(batches, Iterator):
        raise BatchError(
            f"{name} must be re-iterable, so that every pass sees the same data", got=type(batches).__name__,
            remedy="pass a list or a DataLoader, not a generator",
        )  # fmt: skip
    if not isinstance(batches, Iterable):
        raise BatchError(
            f"{name} must be an iterable of (inputs, target)",
            got=type(batches).__name__,
            remedy="pass a list or a DataLoader",
        )
    empty = True
    for index, batch in enumerate(batches):
        empty = False
        inputs, target = _pair(batch, name, index)
        yield apply_tensors(inputs, lambda t: t.to(device)), apply_tensors(target, lambda t: t.to(device))
    if empty:
        raise BatchError(
            f"{name} must hold at least one batch",
            got="an empty iterator",
            remedy="check the data set's path and split",
        )


@contextlib.contextmanager
def fitting(name: str, inputs: Inputs, target: Any = None) -> Iterator[None]:
    """What a model, or a loss, says of a batch that isn't like the first ones, as a BatchError that shows the batch."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        shapes = [str(tuple(tensor.shape)) for tensor in (*tensors(inputs), *tensors(target))]
        raise BatchError(
            f"every batch of {name} must fit the model and the loss",
            got=f"{', '.join(shapes)}: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
            remedy="look for the sample that differs from example_inputs",
        ) from error


def check_finite(value: Any, what: str) -> None:
    """Raises NotFiniteError where a floating-point tensor in `value` holds NaN or infinity."""
    for tensor in tensors(value):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            kind = "NaN" if bool(torch.isnan(tensor).any()) else "infinity"
            raise NotFiniteError(
                f"{what} must be finite", got=kind, remedy="look for a division by zero, or a missing value in the data"
            )


def _pair(batch: Any, name: str, index: int) -> Batch:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise BatchError(
            f"each batch of {name} must be a pair (inputs, target)",
            got=_form(batch),
            remedy="write (inputs, None) where there is no target",
        )
    inputs, target = batch
    inputs = tuple(inputs) if isinstance(inputs, list) else inputs
    if not isinstance(inputs, Tensor | tuple | dict) or not tensors(inputs):
        raise BatchError(
            f"inputs of {name} must be a tensor, a tuple or a dict of tensors",
            got=_form(inputs),
            remedy="convert arrays by torch.as_tensor",
        )
    if tensors(inputs)[0].dim() == 0 or batch_size(inputs) == 0:
        raise BatchError(
            f"inputs of {name} must have the batch on dimension 0",
            got=tuple(tensors(inputs)[0].shape),
            remedy="add a batch dimension",
        )
    check_finite(inputs, f"inputs of {name}, batch {index},")
    return inputs, target


def _sequence(like: Any, items: list[Any]) -> Any:
    """The items in a tuple or list of the same class; a NamedTuple takes them one by one."""
    return type(like)(*items) if hasattr(like, "_fields") else type(like)(items)


def _form(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
