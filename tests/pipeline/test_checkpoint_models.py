"""Checkpoints of a convnet, a transformer-like MLP and a sparse model: cut twice, saved, loaded, trained and cut again."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import paredown
from paredown import Distill, Prune, Sparsify, Task, Training
from paredown.core.effort import Effort
from paredown.train.masks import sparse_names, sparse_weights
from tests.conftest import SmallResNet, make_small_resnet, pattern_batches

SHORT = Distill(training=Training(effort=Effort(2, "steps")))


class Mlp(nn.Module):
    """A residual stream with a gated feed-forward block, as transformers have it. Inputs (batch, 1, 8, 8); 10 classes."""

    def __init__(self, width: int = 32, hidden: int = 48) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.gates = nn.ModuleList([nn.Linear(width, hidden, bias=False) for _ in range(2)])
        self.ups = nn.ModuleList([nn.Linear(width, hidden) for _ in range(2)])
        self.downs = nn.ModuleList([nn.Linear(hidden, width) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1))
        for norm, gate, up, down in zip(self.norms, self.gates, self.ups, self.downs, strict=True):
            h = norm(x)
            x = x + down(nn.functional.silu(gate(h)) * up(h))
        logits: Tensor = self.head(x)
        return logits


FRESH: dict[str, Callable[[], nn.Module]] = {"convnet": lambda: SmallResNet(16), "mlp": Mlp}


@pytest.fixture(params=list(FRESH))
def case(request: pytest.FixtureRequest) -> tuple[Task, Callable[[], nn.Module]]:
    torch.manual_seed(0)
    model = make_small_resnet(16) if request.param == "convnet" else Mlp().eval()
    batches = pattern_batches(128, seed=1, batch=32)
    return Task(model=model, example_inputs=(batches[0][0][:4],), train=batches, validation=batches), FRESH[request.param]


def twice_pruned(task: Task) -> nn.Module:
    once = paredown.distill(task, SHORT, model=paredown.prune(task, Prune(ratio=0.3)))
    return paredown.prune(task, Prune(ratio=0.3), model=once)


def round_trip(model: nn.Module, folder: Path, fresh: Callable[[], nn.Module]) -> nn.Module:
    return paredown.load_checkpoint(paredown.save_checkpoint(model, folder), fresh())


def same_output(one: nn.Module, other: nn.Module, task: Task) -> bool:
    with torch.no_grad():
        return torch.equal(one.eval()(*task.inputs), other.eval()(*task.inputs))


def test_two_cuts_load_as_one_and_can_be_trained_and_cut_again(
    case: tuple[Task, Callable[[], nn.Module]], tmp_path: Path
) -> None:
    task, fresh = case
    model = twice_pruned(task)
    loaded = round_trip(model, tmp_path / "a", fresh)
    assert same_output(loaded, model, task) and type(loaded) is type(model)
    assert same_output(copy.deepcopy(loaded), model, task)
    again = paredown.distill(task, SHORT, model=paredown.prune(task, Prune(ratio=0.2), model=loaded))
    assert same_output(round_trip(again, tmp_path / "b", fresh), again, task)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (task.model, model, again)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_loads_in_a_clean_process(case: tuple[Task, Callable[[], nn.Module]], tmp_path: Path) -> None:
    task, _ = case
    model = twice_pruned(task)
    paredown.save_checkpoint(model, tmp_path / "a")
    inputs = torch.ones(2, 1, 8, 8)
    code = (
        "import sys, torch, paredown; from tests.pipeline.test_checkpoint_models import FRESH; "
        "model = paredown.load_checkpoint(sys.argv[1], FRESH[sys.argv[2]]()); "
        "print(model(torch.ones(2, 1, 8, 8)).double().sum().item())"
    )
    name = "convnet" if isinstance(model, SmallResNet) else "mlp"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a", name], capture_output=True, text=True, check=True)
    with torch.no_grad():
        assert float(done.stdout) == pytest.approx(model(inputs).double().sum().item(), rel=1e-6)


def test_widths_and_weights_rebuild_every_layer_without_paredown(
    case: tuple[Task, Callable[[], nn.Module]], tmp_path: Path
) -> None:
    """What a user without paredown does: torch's own layers made anew with the widths, then a strict load_state_dict."""
    task, fresh = case
    model = twice_pruned(task)
    paredown.save_checkpoint(model, tmp_path / "a")
    widths, state = json.loads((tmp_path / "a" / "widths.json").read_text()), load_file(tmp_path / "a" / "model.safetensors")
    plain = fresh()
    for name, attributes in widths["modules"].items():
        old = plain.get_submodule(name)
        owner, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(owner), leaf, remade(old, attributes))
    plain.load_state_dict(state, strict=True)
    assert same_output(plain, model, task)


def remade(old: nn.Module, widths: dict[str, Any]) -> nn.Module:
    if isinstance(old, nn.LayerNorm):
        return nn.LayerNorm(widths["normalized_shape"])
    if isinstance(old, nn.Linear):
        return nn.Linear(widths["in_features"], widths["out_features"], bias=old.bias is not None)
    if isinstance(old, nn.BatchNorm2d):
        return nn.BatchNorm2d(widths["num_features"])
    assert isinstance(old, nn.Conv2d)
    return nn.Conv2d(
        widths["in_channels"], widths["out_channels"], old.kernel_size, old.stride, old.padding, groups=widths["groups"],
        bias=old.bias is not None,
    )  # type: ignore[arg-type]  # sizes are tuples of two  # fmt: skip


NET = """
import torch
from torch import nn

class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim))

class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

class Encoder(nn.Module):
    def __init__(self, width=32, heads=4):
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, width), nn.Embedding(16, width)
        self.layers = nn.Sequential(Layer(width, heads), Layer(width, heads))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.layers(x)).mean(1))
"""
WITHOUT_PAREDOWN = """
import json, sys, torch
from net_of_the_test import Encoder
from safetensors.torch import load_file
folder, model = sys.argv[1], Encoder()
widths = json.load(open(folder + "/widths.json"))
for path, numbers in widths["modules"].items():
    for name, value in numbers.items():
        setattr(model.get_submodule(path), name, tuple(value) if isinstance(value, list) else value)
for name, shape in widths["shapes"].items():
    path, _, leaf = name.rpartition(".")
    owner, old = model.get_submodule(path), model.get_submodule(path).state_dict()[leaf]
    new = torch.empty(shape, dtype=old.dtype)
    setattr(owner, leaf, torch.nn.Parameter(new) if leaf in dict(owner.named_parameters()) else new)
model.load_state_dict(load_file(folder + "/model.safetensors"))
assert "paredown" not in sys.modules
torch.save(model.eval()(torch.arange(24).view(2, 12)), folder + "/output.pt")
"""


def test_a_transformer_is_made_from_widths_and_weights_in_a_process_without_paredown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings, norms, heads and hidden widths: the residual stream, the heads and the MLPs all lose something."""
    (tmp_path / "net_of_the_test.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    from net_of_the_test import Encoder  # type: ignore[import-not-found]  # written above

    torch.manual_seed(0)
    model, tokens = Encoder().eval(), torch.randint(0, 50, (8, 12))
    batches = [(tokens, torch.arange(8) % 3)]
    task = Task(model=model, example_inputs=(tokens,), train=batches, validation=batches)
    pruned = paredown.prune(task, Prune(ratio=0.5, scope="uniform", widths=paredown.Widths(round_to=1)))
    assert pruned.tokens.embedding_dim < 32 and pruned.layers[0].up.out_features < 128
    assert pruned.layers[0].attention.num_heads < 4 or pruned.layers[0].attention.head_dim < 8
    paredown.save_checkpoint(pruned, tmp_path / "a")
    code = [sys.executable, "-c", WITHOUT_PAREDOWN, str(tmp_path / "a")]
    subprocess.run(code, check=True, env={"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]})
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "a" / "output.pt"), pruned(torch.arange(24).view(2, 12)))


def test_sparse_and_pruned_model_keeps_its_zeros_through_a_checkpoint_and_training(
    case: tuple[Task, Callable[[], nn.Module]], tmp_path: Path
) -> None:
    task, fresh = case
    sparse = paredown.sparsify(task, Sparsify(ratio=0.5, scope="uniform"), model=paredown.prune(task, Prune(ratio=0.3)))
    loaded = round_trip(sparse, tmp_path / "a", fresh)
    assert same_output(loaded, sparse, task)
    assert sparse_names(loaded) == sparse_names(sparse) != ()
    masks = sparse_weights(sparse)
    trained = paredown.distill(task, SHORT, model=loaded)
    assert all(torch.equal(mask, masks[name]) for name, mask in sparse_weights(trained).items())
    assert not same_output(trained, sparse, task)
