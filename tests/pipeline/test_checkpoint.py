"""Checkpoints: what is loaded equals what was saved, from the user's own class, and damage is a clear error."""

import copy
import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Prune, Quantize, Task
from paredown.core.errors import CheckpointError, OutputError
from tests.conftest import SmallResNet


@pytest.fixture
def pruned(pattern_task: Task) -> nn.Module:
    return paredown.prune(pattern_task, Prune(ratio=0.4))


def same(one: nn.Module, other: nn.Module, task: Task) -> bool:
    with torch.no_grad():
        return torch.equal(one.eval()(*task.inputs), other.eval()(*task.inputs))


def test_pruned_model_loads_into_its_own_class(pattern_task: Task, pruned: nn.Module, tmp_path: Path) -> None:
    paredown.save_checkpoint(pruned, tmp_path / "c")
    loaded = paredown.load_checkpoint(tmp_path / "c", SmallResNet(16))
    assert type(loaded) is SmallResNet and same(loaded, pruned, pattern_task)


def test_a_full_disk_is_an_error_with_its_remedy_and_leaves_nothing(
    pruned: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match="No space left on device; make room there"):
        paredown.save_checkpoint(pruned, tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_loaded_model_trains_and_prunes_again(pattern_task: Task, pruned: nn.Module, tmp_path: Path) -> None:
    paredown.save_checkpoint(pruned, tmp_path / "c")
    loaded = paredown.load_checkpoint(tmp_path / "c", SmallResNet(16))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    twice = paredown.prune(pattern_task, Prune(ratio=0.3), model=loaded)
    paredown.save_checkpoint(twice, tmp_path / "d")
    assert same(paredown.load_checkpoint(tmp_path / "d", SmallResNet(16)), twice, pattern_task)


def test_pruned_and_quantized_model_loads(pattern_task: Task, pruned: nn.Module, tmp_path: Path) -> None:
    quantized = paredown.quantize(pattern_task, Quantize(samples=128), model=pruned)
    paredown.save_checkpoint(quantized, tmp_path / "c")
    assert same(paredown.load_checkpoint(tmp_path / "c", SmallResNet(16)), quantized, pattern_task)


def test_checkpoint_loads_in_a_clean_process(pattern_task: Task, pruned: nn.Module, tmp_path: Path) -> None:
    paredown.save_checkpoint(pruned, tmp_path / "c")
    code = (
        "import sys, paredown; from tests.conftest import SmallResNet; "
        "print(sum(p.numel() for p in paredown.load_checkpoint(sys.argv[1], SmallResNet(16)).parameters()))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "c"], capture_output=True, text=True, check=True)
    assert int(done.stdout) == sum(parameter.numel() for parameter in pruned.parameters())


def test_widths_and_plain_weights_are_enough_without_paredown(pruned: nn.Module, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    paredown.save_checkpoint(pruned, tmp_path / "c")
    widths = json.loads((tmp_path / "c" / "widths.json").read_text())
    state = load_file(tmp_path / "c" / "model.safetensors")
    assert widths["shapes"] == {name: list(tensor.shape) for name, tensor in state.items()}
    assert (
        widths["modules"]["block1.conv1"]["out_channels"]
        == state["block1.conv1.weight"].shape[0]
        == pruned.block1.conv1.out_channels
    )


def test_widths_say_which_modules_do_nothing_after_branches_were_dropped(pattern_task: Task, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    class Zeros(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros(1, 1, 1, 1)

    shallow = paredown.prune(pattern_task, paredown.Prune(ratio=0.2, scope="depth"))
    paredown.save_checkpoint(shallow, tmp_path / "c")
    widths = json.loads((tmp_path / "c" / "widths.json").read_text())
    fresh = copy.deepcopy(pattern_task.model)
    for name, what in widths["dropped"].items():
        assert what in ({"returns": "input"}, {"returns": "zeros", "dimensions": 4})
        fresh.set_submodule(name, nn.Identity() if what["returns"] == "input" else Zeros())
    fresh.load_state_dict(load_file(tmp_path / "c" / "model.safetensors"))
    assert widths["dropped"] and same(fresh, shallow, pattern_task)


def test_state_that_is_no_tensor_is_an_error(tmp_path: Path) -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"seen": 1}

    with pytest.raises(CheckpointError, match="state must be tensors"):
        paredown.save_checkpoint(Counting(2, 2), tmp_path / "c")
    assert not any(tmp_path.iterdir())


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def flip_a_byte(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 0xFF
    weights.write_bytes(bytes(content))


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))


def edit(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = folder / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))

    return change


QUANTIZED = {"step": {"step": "quantize"}, "reduced": True, "inputs": [[0, [2, 1, 8, 8], "float32"]], "dynamic": None}
DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("truncated weights", truncate, "corrupt or truncated"),
    ("flipped byte", flip_a_byte, "corrupt or truncated"),
    ("pickled weights", pickle_weights, "corrupt or truncated"),
    ("no weights", lambda folder: (folder / "model.safetensors").unlink(), "copy the whole folder"),
    ("no manifest", lambda folder: (folder / "manifest.json").unlink(), "what save_checkpoint wrote"),
    ("manifest is no JSON", lambda folder: (folder / "manifest.json").write_text("{"), "valid JSON"),
    ("another format", edit(format="other"), "what save_checkpoint wrote"),
    ("a later version", edit(version=99), "reads version 1"),
    ("indices out of range", edit(kept={"block1.conv1.weight": {"0": [0, 999]}}), "build the model as it was"),
    ("quantized with inputs of no type", edit(quantized=QUANTIZED | {"inputs": [[0, [2, 1, 8, 8], "float3"]]}), "as it was"),
    ("quantized with dynamic lengths that are none", edit(quantized=QUANTIZED | {"dynamic": "length"}), "as it was"),
    ("unknown parameter", edit(kept={"nothing.weight": {"0": [0]}}), "build the model as it was"),
]


@pytest.mark.parametrize(("damage", "message"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE])
def test_damaged_checkpoint_is_a_clear_error(
    pruned: nn.Module, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    paredown.save_checkpoint(pruned, tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(CheckpointError, match=message):
        paredown.load_checkpoint(tmp_path / "c", SmallResNet(16))


@pytest.mark.parametrize("fresh", [nn.Linear(3, 3), SmallResNet(8)], ids=["another class", "another width"])
def test_wrong_fresh_model_is_a_clear_error(pruned: nn.Module, tmp_path: Path, fresh: nn.Module) -> None:
    paredown.save_checkpoint(pruned, tmp_path / "c")
    with pytest.raises(CheckpointError, match="SmallResNet"):
        paredown.load_checkpoint(tmp_path / "c", fresh)


def test_saving_replaces_a_checkpoint_but_no_other_folder(pruned: nn.Module, tmp_path: Path) -> None:
    paredown.save_checkpoint(pruned, tmp_path / "c")
    paredown.save_checkpoint(pruned, tmp_path / "c")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("kept")
    with pytest.raises(OutputError):
        paredown.save_checkpoint(pruned, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "other"]
    assert (tmp_path / "other" / "file").read_text() == "kept"
