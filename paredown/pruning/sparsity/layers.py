"""Which weights may become sparse, and how a weight is looked at as matrices.

Weights of linear layers and of convolutions (1, 2, 3 dimensions), each once; not biases, norms, embeddings (nor what is
tied to one), recurrent layers or transposed convolutions.
"""

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from paredown.core.errors import RecipeError

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True, eq=False)
class Sparse:
    """A layer whose weight may become sparse. name: of the module; weight_name: of its parameter."""

    name: str
    module: Layer

    @property
    def weight_name(self) -> str:
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def weight(self) -> Tensor:
        return self.module.weight.detach()


def sparse_layers(model: nn.Module, protect: Collection[str] = ()) -> list[Sparse]:
    """In the order of `named_modules`. Raises RecipeError where `protect` names no module of the model."""
    _check_protect(model, protect)
    other = _weights_of_other_modules(model)
    found: dict[int, Sparse] = {}
    for name, module in model.named_modules():
        if isinstance(module, Layer) and isinstance(module._parameters.get("weight"), nn.Parameter):
            protected = any(not outer or name == outer or name.startswith(f"{outer}.") for outer in protect)
            if protected or id(module.weight) in other:
                other.add(id(module.weight))
            elif module.weight.numel() and module.weight.is_floating_point():
                found.setdefault(id(module.weight), Sparse(name, module))
    return [layer for key, layer in found.items() if key not in other]


def as_matrices(weight: Tensor, layer: Layer) -> Tensor:
    """A weight, or a tensor of its shape, as (groups, out / groups, kernel positions, in / groups)."""
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    flat = weight.reshape(*weight.shape[:2], -1)  # (out, in / groups, positions)
    return flat.transpose(1, 2).reshape(groups, -1, flat.shape[2], flat.shape[1])


def from_matrices(matrices: Tensor, layer: Layer) -> Tensor:
    """The inverse of `as_matrices`."""
    weight = layer.weight
    flat = matrices.reshape(weight.shape[0], -1, weight.shape[1])  # (out, positions, in / groups)
    return flat.transpose(1, 2).reshape(weight.shape).contiguous()


def _weights_of_other_modules(model: nn.Module) -> set[int]:
    """Parameters that an embedding or any other module holds, perhaps tied to a linear layer's."""
    modules = [module for module in model.modules() if not isinstance(module, Layer)]
    return {id(parameter) for module in modules for parameter in module._parameters.values() if parameter is not None}


def _check_protect(model: nn.Module, protect: Collection[str]) -> None:
    known = {name for name, _ in model.named_modules()}
    unknown = [name for name in protect if name not in known]
    if unknown:
        raise RecipeError(
            "protect must name modules of the model", got=unknown[0], remedy="see model.named_modules() for the names"
        )
