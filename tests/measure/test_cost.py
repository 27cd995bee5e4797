import gzip
import pathlib
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from paredown.core.errors import ArtifactError
from paredown.measure.cost import compressed_bytes, count_macs, count_parameters, size_bytes


def test_macs_of_a_convolution_are_those_of_one_sample() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1, groups=1)
    expected = 8 * 3 * 9 * 16 * 16
    assert count_macs(conv, torch.randn(2, 3, 16, 16)) == expected
    assert count_macs(conv, torch.randn(5, 3, 16, 16)) == expected


def test_macs_of_a_grouped_convolution_count_each_group_once() -> None:
    assert count_macs(nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.randn(2, 8, 4, 4)) == 8 * 9 * 16


def test_macs_of_attention_count_projections_and_both_products() -> None:
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    assert count_macs(attention, (x, x, x)) == 4 * 5 * 16 * 16 + 2 * 5 * 5 * 16


def test_macs_of_a_fused_encoder_layer_are_not_zero() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, batch_first=True).eval()
    assert count_macs(layer, torch.randn(2, 5, 16)) == 4 * 5 * 256 + 2 * 25 * 16 + 2 * 5 * 16 * 32


@pytest.mark.parametrize(("cls", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_macs_of_recurrent_layers_count_every_step_and_direction(cls: type[nn.RNNBase], gates: int) -> None:
    layer = cls(8, 16, num_layers=2, bidirectional=True, batch_first=True)
    expected = 2 * 5 * gates * 16 * (8 + 16) + 2 * 5 * gates * 16 * (32 + 16)
    assert count_macs(layer, torch.randn(2, 5, 8)) == expected


def test_macs_of_a_matrix_times_a_vector() -> None:
    class Project(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    assert count_macs(Project(), torch.randn(4, 8)) == 8


class _Tokened(nn.Module):
    """A class token that is a view of a parameter, and an argument of a module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.inner = nn.Parameter(torch.zeros(1, 1, 8)), _Joined()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, self.token.expand(x.shape[0], -1, -1))


class _Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.linear(torch.cat([token, x], 1))


def test_macs_of_a_model_with_a_class_token() -> None:
    model = _Tokened()
    model.inner.linear.bias.requires_grad_(False)
    assert count_macs(model, torch.randn(2, 3, 8)) == 4 * 8 * 8
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, False]


def test_counting_leaves_modes_and_statistics_as_they_were(small_resnet: nn.Module) -> None:
    small_resnet.train()
    small_resnet.get_submodule("block1").eval()
    modes = [module.training for module in small_resnet.modules()]
    before = {name: value.clone() for name, value in small_resnet.state_dict().items()}
    assert count_macs(small_resnet, torch.randn(2, 1, 8, 8)) > 0
    assert [module.training for module in small_resnet.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in small_resnet.state_dict().items())


def test_published_resnet20_has_its_known_macs_and_parameters(shared_data: ModuleType) -> None:
    model = shared_data.CifarResNet(20)
    assert count_macs(model, torch.randn(2, 3, 32, 32)) == 40_551_040  # 40.55 M, He et al. 2015, section 4.2
    assert count_parameters(model) == 269_722  # 0.27 M, the same


def test_shared_parameters_count_once() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    assert count_parameters(nn.Sequential(first, second)) == 16


def test_size_of_a_file_and_of_a_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.bin").write_bytes(b"12345")
    (tmp_path / "inner" / "b.bin").write_bytes(b"123")
    assert size_bytes(tmp_path / "a.bin") == 5
    assert size_bytes(str(tmp_path)) == 8


def test_size_of_a_missing_file_is_an_error_with_its_remedy(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArtifactError, match="export it first"):
        size_bytes(tmp_path / "none.onnx")


def test_compressed_bytes_tell_a_sparse_file_from_a_dense_one_of_the_same_size(tmp_path: pathlib.Path) -> None:
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    weight = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    dense.write_bytes(weight.numpy().tobytes())
    sparse.write_bytes(weight.masked_fill(weight.abs() < weight.abs().median(), 0).numpy().tobytes())
    assert size_bytes(dense) == size_bytes(sparse) == 400_000
    assert compressed_bytes(sparse) < 0.65 * compressed_bytes(dense)
    assert compressed_bytes(tmp_path) == compressed_bytes(dense) + compressed_bytes(sparse)


def test_compressed_bytes_are_those_of_a_gzip_file(tmp_path: pathlib.Path) -> None:
    content = b"paredown " * 1000
    (tmp_path / "file").write_bytes(content)
    assert abs(compressed_bytes(tmp_path / "file") - len(gzip.compress(content, 6))) <= 8


def test_compressed_bytes_of_nothing_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArtifactError, match="export it first"):
        compressed_bytes(tmp_path / "nothing")
