"""Cutting indices out of a model: a new model of the same class, with smaller parameters and attributes that say so."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from paredown.core.errors import SurgeryError
from paredown.graph.dropped import Absent
from paredown.graph.manifest import Manifest, attach_, manifest_of

_PLAIN = frozenset((type(None), bool, int, float, str))
_COPYING = ("__deepcopy__", "__getstate__", "__setstate__", "__reduce__", "__getnewargs__", "__getnewargs_ex__")


def cut(model: nn.Module, manifest: Manifest) -> nn.Module:
    """A copy of `model` with only the indices that `manifest`, relative to this model, keeps. The model is not touched.

    Attributes of torch's own layers follow the new shapes. What is tied stays tied; requires_grad is kept; gradients are not.
    The copy carries the manifest of all its cuts, relative to the model that was never cut. At no time does a second copy
    of the whole weights exist. Raises SurgeryError where the manifest doesn't fit the model, or the model can't be copied.
    """
    tensors = named_tensors(model)
    _check_names(tensors, manifest)
    _check_attributes(model, manifest)
    result = copy_with(model, {name: _cut_tensor(name, tensor, manifest) for name, tensor in tensors.items()})
    fix_attributes_(dict(result.named_modules()), Layout.of(model), manifest)
    drop_(result, manifest)
    earlier = manifest_of(model)
    return attach_(result, manifest if earlier is None else earlier.then(manifest))


def drop_(model: nn.Module, manifest: Manifest) -> nn.Module:
    """Puts what costs nothing in place of the modules that `manifest` drops."""
    for part in manifest.dropped:
        try:
            model.set_submodule(part.module, Absent(part), strict=True)
        except AttributeError:
            raise _misfit("drop modules of the model", part.module) from None
    return model


def alias(tensor: Tensor) -> Tensor:
    """Another tensor, or parameter, with the same values, not copied."""
    return nn.Parameter(tensor.detach(), requires_grad=False) if isinstance(tensor, nn.Parameter) else tensor.detach()


def copy_with(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A copy of a model in which these, by name, stand for its parameters and buffers, so that no weight is copied.

    Raises SurgeryError where the model can't be copied.
    """
    memo: dict[int, object] = {id(tensor): tensors[name] for name, tensor in named_tensors(model).items()}
    for module in reversed([*model.modules()]):  # parts before what holds them
        state = _plain_state(module, memo)
        if state is None:  # its many empty tables of hooks are what copying it would spend its time on
            tables = (value for value in vars(module).values() if type(value) is OrderedDict and not value)
            memo.update((id(value), OrderedDict()) for value in tables)
        else:
            memo[id(module)] = plain = type(module).__new__(type(module))
            vars(plain).update(state)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise SurgeryError(
            "a model must be copyable by copy.deepcopy",
            got=f"{type(error).__name__}: {error}",
            remedy="don't keep computed tensors or open resources as attributes",
        ) from error


def _plain_state(module: nn.Module, memo: dict[int, object]) -> dict[str, object] | None:
    """What copy.deepcopy, which takes ten times as long, would make of the attributes of a module that holds nothing but plain
    values and what is in the memo; None for any other.
    """
    ways = (getattr(type(module), name, None) for name in _COPYING)
    if type(module).__reduce_ex__ is not object.__reduce_ex__ or not all(way is None or _is_standard(way) for way in ways):
        return None  # it is copied in a way of its own
    state: dict[str, object] = {}
    for name, value in vars(module).items():
        if type(value) in _PLAIN or (type(value) is tuple and all(type(entry) in _PLAIN for entry in value)):
            state[name] = value
        elif type(value) in {dict, OrderedDict} and all(part is None or id(part) in memo for part in value.values()):
            parts = {key: None if part is None else memo[id(part)] for key, part in value.items()}
            state[name] = memo.setdefault(id(value), type(value)(parts))
        elif type(value) in {list, set} and all(type(entry) in _PLAIN for entry in value):
            state[name] = memo.setdefault(id(value), type(value)(value))
        else:
            return None
    return state


def _is_standard(method: Any) -> bool:
    """Whether it is no class of the user's that says how it is copied."""
    return method in {object.__getstate__, object.__reduce__} or str(method.__module__).startswith("torch.nn.modules.")


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each tensor once, under the first of its names."""
    result: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in _all_named(model):
        result.setdefault(id(tensor), (name, tensor))
    return dict(result.values())


def take(tensor: Tensor, dimensions: dict[int, tuple[int, ...]]) -> Tensor:
    """The kept indices of each of the dimensions."""
    for dimension, indices in dimensions.items():
        tensor = tensor.index_select(dimension, _index(indices).to(tensor.device))
    return tensor


@functools.lru_cache(maxsize=1024)
def _index(indices: tuple[int, ...]) -> Tensor:
    """Mostly several dimensions keep the same indices."""
    return torch.tensor(indices)


def kept_values(name: str, tensor: Tensor, manifest: Manifest, rows: Tensor | None = None) -> Tensor:
    """What a cut leaves of one parameter or buffer: the kept indices, times the factors that go with them.

    rows: indices of what is left of dimension 0, if only those are wanted.
    """
    kept, scaled = manifest.kept.get(name, {}), manifest.scaled.get(name, {})
    if rows is not None:
        tensor = tensor.index_select(0, _index(kept[0]).to(rows.device)[rows] if 0 in kept else rows)
        kept = {dimension: indices for dimension, indices in kept.items() if dimension != 0}
    tensor = take(tensor, kept)
    for dimension, factors in scaled.items():
        shape = [-1 if d == dimension else 1 for d in range(tensor.dim())]
        factor = torch.tensor(factors, dtype=tensor.dtype, device=tensor.device)
        tensor = tensor * (factor[rows] if dimension == 0 and rows is not None else factor).reshape(shape)
    return tensor


def _all_named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then buffers, in the order of torch's own lists; the modules are walked through once."""
    modules = [(f"{path}." if path else "", module) for path, module in model.named_modules()]
    for tensors in ("_parameters", "_buffers"):
        for prefix, module in modules:
            yield from ((prefix + name, t) for name, t in getattr(module, tensors).items() if t is not None)


def _cut_tensor(name: str, tensor: Tensor, manifest: Manifest) -> Tensor:
    changed = name in manifest.kept or name in manifest.scaled
    value = kept_values(name, tensor.detach(), manifest) if changed else tensor.detach().clone()
    return nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def _check_names(tensors: dict[str, Tensor], manifest: Manifest) -> None:
    for name, dimensions in manifest.kept.items():
        if name not in tensors:
            raise _misfit("name parameters and buffers of the model", name)
        for dimension, indices in dimensions.items():
            if dimension >= tensors[name].dim():
                raise _misfit("name dimensions that exist", f"dimension {dimension} of {name}")
            if not indices or min(indices) < 0 or max(indices) >= tensors[name].shape[dimension]:
                raise _misfit("keep indices that exist, and at least one", f"{name}, dimension {dimension}")


def numbers_of(module: nn.Module) -> dict[str, int]:
    """Whole numbers that a module keeps, by name; those in a tuple or list as "name.0", "name.1"."""
    result: dict[str, int] = {}
    for name, value in vars(module).items():
        if type(value) is int:
            result[name] = value
        elif type(value) in {tuple, list} and value and all(type(entry) is int for entry in value):
            result.update((f"{name}.{i}", entry) for i, entry in enumerate(value))
    return result


def set_numbers_(module: nn.Module, numbers: dict[str, int]) -> None:
    """Gives a module these values, under the names that `numbers_of` uses."""
    for key, number in numbers.items():
        name, _, index = key.partition(".")
        if index:
            sequence = vars(module)[name]
            vars(module)[name] = type(sequence)(number if i == int(index) else entry for i, entry in enumerate(sequence))
        else:
            vars(module)[name] = number


def _check_attributes(model: nn.Module, manifest: Manifest) -> None:
    modules = dict(model.named_modules())
    for path, values in manifest.attributes.items():
        for name in values:
            if path not in modules or name not in numbers_of(modules[path]):
                raise _misfit("name attributes of the model's modules that are whole numbers", f"{path}.{name}")


def _misfit(rule: str, got: str) -> SurgeryError:
    return SurgeryError(
        f"a manifest must {rule}", got=got, remedy="pass a fresh, uncut model of the class that the manifest was made from"
    )


@dataclass(frozen=True)
class Layout:
    """modules: of a model, by path. names: of its tensors, by id. holders: paths of all modules with a tensor, by its name."""

    modules: dict[str, nn.Module]
    names: dict[int, str]
    holders: dict[str, list[str]]

    @classmethod
    def of(cls, model: nn.Module) -> "Layout":
        modules, names = dict(model.named_modules()), {id(tensor): name for name, tensor in named_tensors(model).items()}
        holders: dict[str, list[str]] = {}
        for path, module in modules.items():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    holders.setdefault(names[id(tensor)], []).append(path)
        return cls(modules, names, holders)

    def touched(self, manifest: Manifest) -> list[str]:
        """Paths of the modules that hold what `manifest` cuts, or an attribute of it."""
        holding = (path for name in manifest.kept for path in self.holders[name])
        return list(dict.fromkeys((*holding, *manifest.attributes)))


def fix_attributes_(modules: dict[str, nn.Module], layout: Layout, manifest: Manifest) -> None:
    """Sets whole numbers of the modules of a copy: those of the manifest, then those that follow from what it leaves of weights.

    layout: of the model that was copied. The weights of the copy are not looked at: they may be cut later.
    """

    def kept(tensor: Tensor) -> dict[int, tuple[int, ...]]:
        return manifest.kept.get(layout.names.get(id(tensor), ""), {})

    for path in layout.touched(manifest):
        set_numbers_(modules[path], manifest.attributes.get(path, {}))
        _fix_layer_(modules[path], layout.modules[path], kept)


def restore_attributes_(modules: dict[str, nn.Module], layout: Layout, manifest: Manifest) -> None:
    """Undoes what `fix_attributes_` did."""
    for path in layout.touched(manifest):
        set_numbers_(modules[path], numbers_of(layout.modules[path]))


def _fix_layer_(module: nn.Module, before: nn.Module, kept: Callable[[Tensor], dict[int, tuple[int, ...]]]) -> None:
    """in_channels, num_features and the like."""

    def shape(tensor: Tensor) -> tuple[int, ...]:
        return tuple(len(kept(tensor).get(d, range(size))) for d, size in enumerate(tensor.shape))

    weight = getattr(before, "weight", None)
    if isinstance(module, nn.RNNBase):
        _fix_recurrent_(module, before, shape)
    elif isinstance(module, _NormBase) and isinstance(before, _NormBase) and before.running_mean is not None:
        module.num_features = shape(before.running_mean)[0]
    elif isinstance(weight, Tensor):
        _fix_by_weight_(module, shape(weight), before, kept(weight))


def _fix_by_weight_(module: nn.Module, shape: tuple[int, ...], before: nn.Module, kept: dict[int, tuple[int, ...]]) -> None:
    """shape: what the cut leaves of the weight."""
    match module:
        case _ConvTransposeNd():
            assert isinstance(before, _ConvTransposeNd)  # a copy has the class of what it was copied from
            module.groups = groups = _blocks(before.in_channels, before.groups, kept)
            module.in_channels, module.out_channels = shape[0], shape[1] * groups
        case _ConvNd():
            assert isinstance(before, _ConvNd)  # as above
            module.groups = groups = _blocks(before.out_channels, before.groups, kept)
            module.out_channels, module.in_channels = shape[0], shape[1] * groups
            _fix_kernel_(module, before, shape[2:])
        case nn.Linear():
            module.out_features, module.in_features = shape
        case _NormBase():
            module.num_features = shape[0]
        case nn.LayerNorm() | nn.RMSNorm():
            module.normalized_shape = tuple(shape)
        case nn.GroupNorm():
            assert isinstance(before, nn.GroupNorm)  # as above
            module.num_channels = shape[0]
            module.num_groups = _blocks(before.num_channels, before.num_groups, kept)
        case nn.Embedding():
            module.num_embeddings, module.embedding_dim = shape
        case nn.PReLU():
            module.num_parameters = shape[0]


def _fix_kernel_(module: _ConvNd, before: _ConvNd, size: tuple[int, ...]) -> None:
    """A kernel that was cropped to its centre, with as much less padding, so that outputs stay where they were."""
    if size == tuple(before.kernel_size):
        return
    module.kernel_size = size
    sides = tuple((was - now) // 2 * d for was, now, d in zip(before.kernel_size, size, before.dilation, strict=True))
    if not isinstance(before.padding, str):
        module.padding = tuple(p - side for p, side in zip(before.padding, sides, strict=True))
    around = before._reversed_padding_repeated_twice  # of the last dimension first, each side by itself
    module._reversed_padding_repeated_twice = [p - sides[-1 - i // 2] for i, p in enumerate(around)]


def _fix_recurrent_(module: nn.RNNBase, before: nn.Module, shape: Callable[[Tensor], tuple[int, ...]]) -> None:
    """weight_ih_l0 (gates * hidden, in), weight_hh_l0 (gates * hidden, hidden or projected)."""
    assert isinstance(before, nn.RNNBase)  # a copy has the class of what it was copied from
    gates = len(before.get_parameter("weight_ih_l0")) // before.hidden_size
    rows, module.input_size = shape(before.get_parameter("weight_ih_l0"))
    module.hidden_size = rows // gates
    module.proj_size = shape(before.get_parameter("weight_hh_l0"))[1] if before.proj_size else 0


def _blocks(size: int, count: int, kept: dict[int, tuple[int, ...]]) -> int:
    """Of `count` equal blocks of a dimension how many still have an index."""
    return len({row // (size // count) for row in kept[0]}) if 0 in kept else count
