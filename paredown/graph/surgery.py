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
        tensor.data = take(values[name].detach(), manifest.kept.get(name, {}))
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


def _all_named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _cut_tensor(name: str, tensor: Tensor, manifest: Manifest) -> Tensor:
    kept = manifest.kept.get(name, {})
    value = take(tensor.detach(), kept) if kept else tensor.detach().clone()
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


def _misfit(rule: str, got: str) -> SurgeryError:
    return SurgeryError(
        f"a manifest must {rule}", got=got, remedy="pass a fresh, uncut model of the class that the manifest was made from"
    )


def _fix_all_(result: nn.Module, model: nn.Module, manifest: Manifest) -> None:
    before = dict(model.named_modules())
    for path, module in result.named_modules():
        _fix_attributes_(module, before[path], manifest.kept.get(f"{path}.weight" if path else "weight", {}))


def _fix_attributes_(module: nn.Module, before: nn.Module, kept: dict[int, tuple[int, ...]]) -> None:
    """in_channels, num_features and the like, from the shapes that the parameters have now."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        if isinstance(module, _NormBase) and module.running_mean is not None:
            module.num_features = len(module.running_mean)
        return
    match module:
        case _ConvTransposeNd():
            module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
        case _ConvNd():
            assert isinstance(before, _ConvNd)  # a copy has the class of what it was copied from
            module.groups = _groups(before, kept)
            module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
        case nn.Linear():
            module.out_features, module.in_features = weight.shape
        case _NormBase():
            module.num_features = len(weight)
        case nn.LayerNorm() | nn.RMSNorm():
            module.normalized_shape = tuple(weight.shape)
        case nn.GroupNorm():
            module.num_channels = len(weight)
        case nn.Embedding():
            module.num_embeddings, module.embedding_dim = weight.shape
        case nn.PReLU():
            module.num_parameters = len(weight)


def _groups(conv: _ConvNd, kept: dict[int, tuple[int, ...]]) -> int:
    """How many groups still have an output channel: exact, where shapes alone leave it open."""
    each = conv.out_channels // conv.groups
    return len({row // each for row in kept[0]}) if 0 in kept else conv.groups
