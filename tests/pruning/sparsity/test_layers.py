import pytest
import torch
from torch import nn

from paredown.core.errors import RecipeError
from paredown.pruning.sparsity.layers import as_matrices, from_matrices, sparse_layers


def names(model: nn.Module, protect: tuple[str, ...] = ()) -> list[str]:
    return [layer.weight_name for layer in sparse_layers(model, protect)]


def test_weights_of_convolutions_and_linear_layers_and_no_others() -> None:
    model = nn.Sequential(
        nn.Embedding(4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2), nn.LSTM(4, 4), nn.LayerNorm(4),
        nn.Linear(4, 2), nn.MultiheadAttention(4, 2),
    )  # fmt: skip
    assert names(model) == ["1.weight", "6.weight", "7.out_proj.weight"]
    assert names(nn.Linear(2, 2)) == ["weight"]


def test_weight_tied_to_an_embedding_stays_dense() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Embedding(5, 3), nn.Linear(3, 5))
    model[2].weight = model[1].weight
    assert names(model) == ["0.weight"]


def test_tied_weight_stands_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert names(model) == ["0.weight"] and names(model, ("1",)) == []


def test_protect_names_a_module_with_all_that_is_in_it() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    assert names(model, ("0",)) == ["1.weight"]
    assert names(model, ("0.1", "1")) == ["0.0.weight"]
    assert names(model, ("",)) == []
    with pytest.raises(RecipeError, match="named_modules"):
        names(model, ("2",))


@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(3, 4, (2, 3)), nn.Conv3d(2, 2, 2)])
def test_matrices_turn_back_into_the_weight(layer: nn.Linear | nn.Conv2d) -> None:
    weight = layer.weight.detach()
    matrices = as_matrices(weight, layer)
    assert matrices.dim() == 4 and matrices.shape[-1] == weight.shape[1]
    assert torch.equal(from_matrices(matrices, layer), weight)
