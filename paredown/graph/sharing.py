"""A cut model that owns no weights: they are slices of another model's parameters, so that training it trains those."""

from torch import Tensor, nn

from paredown.graph.manifest import Manifest
from paredown.graph.surgery import Layout, alias, copy_with, drop_, fix_attributes_, kept_values, named_tensors


def shared_cut(model: nn.Module, manifest: Manifest) -> nn.Module:
    """`model` cut by `manifest`, for one forward pass: what it gives has gradients in the parameters of `model`.

    Modes are those of `model`. Buffers are copies, so that batch norms of the cut model leave statistics alone. The slices are
    values: after a step of training they are stale, and the cut is made anew.
    Raises SurgeryError where the model can't be copied.
    """
    named, layout = named_tensors(model), Layout.of(model)
    copy = copy_with(model, {name: alias(tensor) for name, tensor in named.items()})
    modules = dict(copy.named_modules())
    fix_attributes_(modules, layout, manifest)
    sliced = {name: _value(name, tensor, manifest) for name, tensor in named.items()}
    for path, module in layout.modules.items():
        for held, mine in ((module._parameters, modules[path]._parameters), (module._buffers, modules[path]._buffers)):
            mine.update((key, sliced[layout.names[id(t)]]) for key, t in held.items() if t is not None)
        _refresh_recurrent_(modules[path])
    return drop_(copy, manifest)


def _value(name: str, tensor: Tensor, manifest: Manifest) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return kept_values(name, tensor, manifest)
    return kept_values(name, tensor.detach(), manifest).clone()


def _refresh_recurrent_(module: nn.Module) -> None:
    """Recurrent layers run on a list of their weights."""
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
