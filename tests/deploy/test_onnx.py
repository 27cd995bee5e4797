import hashlib
import logging
import pathlib

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.core.errors import ExportError, OutputError, TraceError
from paredown.core.target import Target
from paredown.deploy.onnx import export_onnx
from paredown.deploy.parity import check_parity
from paredown.deploy.session import load, recorded
from tests.conftest import SmallResNet, make_small_resnet


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, tokens: Tensor, bias: Tensor) -> dict[str, Tensor]:
        x = self.embed(tokens)
        return {"logits": self.head(x.mean(1)) + bias, "states": x}


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.relu(self.conv(x))).flatten(1))


class BiasedAttention(nn.Module):
    """A learned bias per head and pair of positions, as in BEiT and Swin; the heads are joined by a view."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.bias = nn.Linear(8, 24), nn.Linear(8, 8), nn.Parameter(torch.randn(1, 2, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)  # each (batch, heads, 5, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return self.out(y.transpose(1, 2).reshape(-1, 5, 8))


class Windowed(nn.Module):
    """Attention within windows, (batch, windows, heads, length, width), as in Hiera and NesT."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(x).reshape(x.shape[0], 3, 4, 3, 2, 4).permute(3, 0, 1, 4, 2, 5).unbind(0)
        )  # each (batch, 3, heads, 4, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(2, 3).reshape(x.shape[0], 12, 8))


class Clipped(nn.Module):
    """One tensor within two pairs of bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 3)
        for name, value in (("low", -0.5), ("high", 0.25), ("lower", -1.0), ("higher", 0.75)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return torch.clamp(h, self.low, self.high) * torch.clamp(h, self.lower, self.higher)


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x @ x.transpose(1, 2))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Variadic(nn.Module):
    """torch.export names the inputs of such a forward args_0, args_1, ..."""

    def forward(self, args_0: Tensor) -> Tensor:
        return torch.relu(args_0)


def test_artifact_states_size_digest_and_precision(floating, quantized) -> None:
    for exported, precision in ((floating, "fp32"), (quantized, "int8")):
        data = pathlib.Path(exported.path).read_bytes()
        assert exported.artifact.size_bytes == len(data)
        assert exported.artifact.digest == hashlib.sha256(data).hexdigest()
        assert exported.artifact.precision == precision


def test_float_file_is_little_more_than_its_weights(floating) -> None:
    parameters = sum(p.numel() for n, p in floating.model.named_parameters() if "bn" not in n)
    assert 4 * parameters < floating.artifact.size_bytes < 4 * parameters + 6000


def test_same_model_gives_the_same_bytes(floating, tmp_path) -> None:
    again = export_onnx(floating.model, floating.inputs, tmp_path / "again.onnx", target="onnxruntime")
    assert again.digest == floating.artifact.digest


@pytest.mark.parametrize("name", ["floating", "quantized"])
def test_file_holds_standard_operators_only_and_passes_the_checker(name, request) -> None:
    model = onnx.load(request.getfixturevalue(name).path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [entry.domain for entry in model.opset_import] == [""]
    onnx.shape_inference.infer_shapes(model, strict_mode=True)


@pytest.mark.parametrize("name", ["floating", "quantized"])
def test_file_holds_nothing_of_the_machine(name, request) -> None:
    data = pathlib.Path(request.getfixturevalue(name).path).read_bytes()
    for trace in (
        str(pathlib.Path(__file__).resolve().parents[2]).encode(),
        b".py",
        b'File "',
        b"torch.nn",
        b"site-packages",
        str(pathlib.Path.home()).encode() + b"/",
    ):
        assert trace not in data
    model = onnx.load(request.getfixturevalue(name).path)
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert {entry.key for entry in model.metadata_props} == {
        f"paredown.{key}" for key in ("version", "runtime", "batch", "threads", "precision")
    }


def test_names_and_dynamic_dimensions(tmp_path) -> None:
    torch.manual_seed(0)
    inputs = {"tokens": torch.randint(0, 11, (2, 5)), "bias": torch.randn(2, 3)}
    dynamic = {"tokens": {1: "length"}}
    model = TwoInputs().eval()
    artifact = export_onnx(model, inputs, tmp_path / "m.onnx", target="onnxruntime", dynamic=dynamic)
    session = load(artifact.path)
    assert session.input_names == ("tokens", "bias")
    assert session.output_names == ("logits", "states")
    dims = [[d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in onnx.load(artifact.path).graph.input]
    assert dims == [["batch", "length"], ["batch", 3]]
    tokens, bias = np.ones((7, 9), np.int64), np.zeros((7, 3), np.float32)
    logits, states = session(bias=bias, tokens=tokens)
    want = model(torch.from_numpy(tokens), torch.from_numpy(bias))
    np.testing.assert_allclose(logits, want["logits"].detach().numpy(), atol=1e-6)
    assert states.shape == (7, 9, 6)
    assert len(check_parity(model, inputs, artifact.path, "onnxruntime", dynamic=dynamic, precision="fp32")) == 3


def test_variadic_inputs_are_called_input(tmp_path) -> None:
    artifact = export_onnx(Variadic(), (torch.randn(2, 3),), tmp_path / "m.onnx", target="onnxruntime")
    assert load(artifact.path).input_names == ("input",)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_adaptive_pool_of_channels_last_inputs_is_right(runtime, tmp_path) -> None:
    torch.manual_seed(0)
    model = Pooled().eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    artifact = export_onnx(model, (x,), tmp_path / "m.onnx", target=runtime)
    assert max(p.error for p in check_parity(model, (x,), artifact.path, runtime, precision="fp32")) < 1e-5


def test_attention_with_a_learned_bias_is_exported(tmp_path) -> None:
    torch.manual_seed(0)
    model, x = BiasedAttention().eval(), torch.randn(3, 5, 8)
    artifact = export_onnx(model, x, tmp_path / "m.onnx", target="onnxruntime")
    assert max(p.error for p in check_parity(model, x, artifact.path, "onnxruntime", precision="fp32")) < 1e-5
    assert "Identity" not in {node.op_type for node in onnx.load(artifact.path).graph.node}


class JoinedHeads(nn.Module):
    """Attention over (batch * heads, length, width), with a mask of its own for each, as in SAM's vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.bias = nn.Linear(8, 24), nn.Linear(8, 8), nn.Parameter(torch.randn(12, 12))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 12, 3, 2, 4).permute(2, 0, 3, 1, 4).reshape(3, x.shape[0] * 2, 12, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=(q @ k.transpose(1, 2)) * self.bias)
        return self.out(y.reshape(x.shape[0], 2, 12, 4).transpose(1, 2).reshape(x.shape[0], 12, 8))


@pytest.mark.parametrize("kind", [Windowed, JoinedHeads])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_attention_in_other_than_four_dimensions_is_exported(runtime, kind, tmp_path) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(2, 12, 8)
    artifact = export_onnx(model, x, tmp_path / "m.onnx", target=runtime)
    found = check_parity(model, x, artifact.path, runtime, precision="fp32")
    assert len(found) == 3 and max(p.error for p in found) < 1e-5


def test_one_tensor_clipped_twice_keeps_both_bounds(tmp_path) -> None:
    torch.manual_seed(0)
    model, x = Clipped().eval(), torch.randn(64, 8)
    artifact = export_onnx(model, x, tmp_path / "m.onnx", target="onnxruntime")
    assert max(p.error for p in check_parity(model, x, artifact.path, "onnxruntime", precision="fp32")) < 1e-5


def test_export_leaves_the_model_as_it_was(tmp_path) -> None:
    model = make_small_resnet()
    model.train()
    model.block1.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    export_onnx(model, (torch.randn(2, 1, 8, 8),), tmp_path / "m.onnx", target="onnxruntime")
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_export_is_silent(tmp_path, capfd, caplog, recwarn) -> None:
    caplog.set_level(logging.INFO)
    export_onnx(Pooled(), (torch.randn(2, 3, 8, 8),), tmp_path / "m.onnx", target="onnxruntime")
    out, err = capfd.readouterr()
    assert out + err == ""
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert [str(w.message) for w in recwarn.list if "onnx" in str(w.filename)] == []


def test_metadata_records_the_target(floating) -> None:
    data = recorded(floating.path)
    assert data["runtime"] == "onnxruntime"
    assert data["precision"] == "fp32"
    assert data["threads"] == str(Target().threads)


def test_missing_folder_is_made_and_nothing_else_is_left(tmp_path) -> None:
    export_onnx(Variadic(), (torch.randn(2, 3),), tmp_path / "a" / "b" / "m.onnx", target="onnxruntime")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["m.onnx"]


def test_unwritable_path_is_an_output_error(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="choose another path"):
        export_onnx(Variadic(), (torch.randn(2, 3),), tmp_path / "file" / "m.onnx", target="onnxruntime")


def test_operator_without_translation_is_an_export_error_and_writes_nothing(tmp_path) -> None:
    with pytest.raises(ExportError, match="replace the operator") as caught:
        export_onnx(Inverse(), (torch.randn(2, 3, 3),), tmp_path / "m.onnx", target="onnxruntime")
    assert "eigvalsh" in str(caught.value) or "linalg" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_untraceable_model_is_a_trace_error(tmp_path) -> None:
    with pytest.raises(TraceError, match=r"test_onnx\.py"):
        export_onnx(Branching(), (torch.randn(2, 3),), tmp_path / "m.onnx", target="onnxruntime")


def test_published_resnet20_is_right_in_both_runtimes(shared_data, tmp_path) -> None:
    model = shared_data.cifar_resnet(20)
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    artifact = export_onnx(model, (x,), tmp_path / "m.onnx", target="onnxruntime")
    assert artifact.size_bytes < 1.02 * 4 * sum(p.numel() for p in model.parameters())
    for runtime in ("onnxruntime", "openvino"):
        found = check_parity(model, (x,), artifact.path, runtime, precision="fp32")
        assert [p.batch for p in found] == [5, 1, 3]
        assert max(p.error for p in found) < 1e-5


def test_functional_pool_is_written_as_a_mean(tmp_path) -> None:
    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(x, (1, 1))

    x = torch.randn(2, 8, 8, 3).permute(0, 3, 1, 2)
    artifact = export_onnx(Functional(), (x,), tmp_path / "m.onnx", target="onnxruntime")
    assert [node.op_type for node in onnx.load(artifact.path).graph.node] == ["ReduceMean"]


def test_small_resnet_fixture_keeps_its_class(floating) -> None:
    assert isinstance(floating.model, SmallResNet)
