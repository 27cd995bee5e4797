"""Cutting indices out of a model: a new model of the same class, with smaller parameters and attributes that say so."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from paredown.core.errors import SurgeryError
from paredown.graph.manifest import Manifest, attach_, manifest_of


def cut(model: nn.Module, manifest: Manifest) -> nn.Module:
    """A copy of `model` with only the indices that `manifest`, relative to this model, keeps. The model is not touched.

    Attributes of torch's own layers follow the new shapes. What is tied stays tied; requires_grad is kept; gradients are not.
    The copy carries the manifest of all its cuts, relative to the model that was never cut. At no time does a second copy
    of the whole weights exist. Raises SurgeryError where the manifest doesn't fit the model, or the model can't be copied.
    """
    tensors = named_tensors(model)
    _check_names(tensors, manifest)
    _check_attributes(model, manifest)
    memo: dict[int, object] = {id(tensor): _cut_tensor(name, tensor, manifest) for name, tensor in tensors.items()}
    try:
        result = copy.deepcopy(model, memo)
    except Exception as error:
        raise SurgeryError(
            "a model must be copyable by copy.deepcopy",
            got=f"{type(error).__name__}: {error}",
            remedy="don't keep computed tensors or open resources as attributes",
        ) from error
    _fix_all_(result, model, manifest)
    earlier = manifest_of(model)
    return attach_(result, manifest if earlier is None else earlier.then(manifest))


def recut_(scratch: nn.Module, model: nn.Module, manifest: Manifest) -> None:
    """Cuts `scratch`, a copy of `model` however it was cut before, by `manifest`, in place. Whole weights are shared."""
    values = named_tensors(model)
    for name, tensor in named_tensors(scratch).items():
        tensor.data = kept_values(name, values[name].detach(), manifest)
    _fix_all_(scratch, model, manifest)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each tensor once, under the first of its names."""
    result: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in _all_named(model):
        result.setdefault(id(tensor), (name, tensor))
    return dict(result.values())


def take(tensor: Tensor, dimensions: dict[int, tuple[int, ...]]) -> Tensor:
    """The kept indices of each of the dimensions."""
    for dimension, indices in dimensions.items():
        tensor = tensor.index_select(dimension, torch.tensor(indices, device=tensor.device))
    return tensor


def kept_values(name: str, tensor: Tensor, manifest: Manifest) -> Tensor:
    """What a cut leaves of one parameter or buffer: the kept indices, times the factors that go with them."""
    tensor = take(tensor, manifest.kept.get(name, {}))
    for dimension, factors in manifest.scaled.get(name, {}).items():
        shape = [-1 if d == dimension else 1 for d in range(tensor.dim())]
        tensor = tensor * torch.tensor(factors, dtype=tensor.dtype, device=tensor.device).reshape(shape)
    return tensor


def _all_named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


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


def _fix_all_(result: nn.Module, model: nn.Module, manifest: Manifest) -> None:
    """Whole numbers as the model has them, then as the manifest has them, then as the shapes of the weights say."""
    before = dict(model.named_modules())
    for path, module in result.named_modules():
        set_numbers_(module, numbers_of(before[path]) | manifest.attributes.get(path, {}))
        _fix_attributes_(module, before[path], manifest.kept.get(f"{path}.weight" if path else "weight", {}))


def _fix_attributes_(module: nn.Module, before: nn.Module, kept: dict[int, tuple[int, ...]]) -> None:
    """in_channels, num_features and the like, from the shapes that the parameters have now."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.RNNBase):
        assert isinstance(before, nn.RNNBase)  # a copy has the class of what it was copied from
        _fix_recurrent_(module, before)
    elif isinstance(module, _NormBase) and module.running_mean is not None:
        module.num_features = len(module.running_mean)
    elif isinstance(weight, Tensor):
        _fix_by_weight_(module, weight, before, kept)


def _fix_by_weight_(module: nn.Module, weight: Tensor, before: nn.Module, kept: dict[int, tuple[int, ...]]) -> None:
    match module:
        case _ConvTransposeNd():
            assert isinstance(before, _ConvTransposeNd)  # a copy has the class of what it was copied from
            module.groups = _blocks(before.in_channels, before.groups, kept)
            module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
        case _ConvNd():
            assert isinstance(before, _ConvNd)  # a copy has the class of what it was copied from
            module.groups = _blocks(before.out_channels, before.groups, kept)
            module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
        case nn.Linear():
            module.out_features, module.in_features = weight.shape
        case _NormBase():
            module.num_features = len(weight)
        case nn.LayerNorm() | nn.RMSNorm():
            module.normalized_shape = tuple(weight.shape)
        case nn.GroupNorm():
            assert isinstance(before, nn.GroupNorm)  # as above
            module.num_channels = len(weight)
            module.num_groups = _blocks(before.num_channels, before.num_groups, kept)
        case nn.Embedding():
            module.num_embeddings, module.embedding_dim = weight.shape
        case nn.PReLU():
            module.num_parameters = len(weight)


def _fix_recurrent_(module: nn.RNNBase, before: nn.RNNBase) -> None:
    """weight_ih_l0 (gates * hidden, in), weight_hh_l0 (gates * hidden, hidden or projected)."""
    gates = len(before.get_parameter("weight_ih_l0")) // before.hidden_size
    rows, module.input_size = module.get_parameter("weight_ih_l0").shape
    module.hidden_size = rows // gates
    module.proj_size = module.get_parameter("weight_hh_l0").shape[1] if before.proj_size else 0


def _blocks(size: int, count: int, kept: dict[int, tuple[int, ...]]) -> int:
    """Of `count` equal blocks of a dimension how many still have an index."""
    return len({row // (size // count) for row in kept[0]}) if 0 in kept else count
