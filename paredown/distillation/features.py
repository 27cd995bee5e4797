"""What modules give (or get) during a forward pass, by name. The hooks are gone afterwards, also after an exception.

An operation in place changes what was captured before it: of a batch norm in front of an in-place ReLU the features are those
after the ReLU. Of a module that runs several times in one pass the last counts.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from paredown.core.errors import RecipeError, TaskError
from paredown.task.batches import Inputs, call, tensors

Side = Literal["output", "input"]


def with_features(
    model: nn.Module, inputs: Inputs, names: Collection[str], *, of: Side = "output"
) -> tuple[Any, dict[str, Tensor]]:
    """The model's output, and the first tensor of each named module's output (or input), with their history.

    Raises RecipeError where a name is not that of a module, TaskError where a module didn't run or gave no tensor.
    """
    with captured(model, names, of=of) as found:
        output = call(model, inputs)
    missing = [name for name in names if name not in found]
    if missing:
        raise TaskError(
            "every module whose features are asked for must run and give a tensor",
            got=f"nothing from {missing[0]}",
            remedy="name a module that forward calls",
        )
    return output, {name: found[name] for name in names}


@contextmanager
def captured(model: nn.Module, names: Collection[str], *, of: Side = "output") -> Iterator[dict[str, Tensor]]:
    """A mapping that every forward pass inside the `with` fills anew. Raises RecipeError where a name is not that of a module."""
    found: dict[str, Tensor] = {}

    def take(name: str, value: Any) -> None:
        first = next(iter(tensors(value)), None)
        if first is not None:
            found[name] = first

    with observed(model, names, take, of=of):
        yield found


@contextmanager
def observed(model: nn.Module, names: Collection[str], see: Callable[[str, Any], None], *, of: Side = "output") -> Iterator[None]:
    """`see(name, output or (args, kwargs))` at every call of a named module inside the `with`, in order of execution."""
    modules = _named(model, names)

    handles = []
    try:
        for name, module in modules.items():
            if of == "output":
                handles.append(module.register_forward_hook(_after(name, see)))
            else:
                handles.append(module.register_forward_pre_hook(_before(name, see), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def fed(model: nn.Module, names: Collection[str], give: Callable[[str, Any], Any]) -> Iterator[None]:
    """Inside the `with` a named module gets `give(name, (args, kwargs))`, again such a pair, in place of its arguments."""
    handles = []
    try:
        for name, module in _named(model, names).items():
            handles.append(module.register_forward_pre_hook(_instead(name, give), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _instead(name: str, give: Callable[[str, Any], Any]) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return give(name, (args, kwargs))

    return hook


def _after(name: str, see: Callable[[str, Any], None]) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        see(name, output)  # what a hook returns would replace the output

    return hook


def _before(name: str, see: Callable[[str, Any], None]) -> Callable[..., None]:
    def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
        see(name, (args, kwargs))

    return hook


def _named(model: nn.Module, names: Collection[str]) -> dict[str, nn.Module]:
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    known = dict(inner.named_modules(remove_duplicate=False))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise RecipeError(
            "features are captured from modules of the model", got=unknown[0], remedy="see model.named_modules() for the names"
        )
    return {name: known[name] for name in names}
