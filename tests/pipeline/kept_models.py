"""Models of other tests and of the zoo whose checkpoints are tested, each with inputs, and what a process does without paredown.

Only `two_inputs`, `tied` and `densenet` import paredown, when they are called.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.graph import attention_nets, nets

Case = tuple[nn.Module, Any]


def lstm() -> Case:
    return attention_nets.recurrent("LSTM", num_layers=2, bidirectional=True)


def llama() -> Case:
    """Two queries to each key, rotary positions, gated feed-forward blocks, a head that is the table of tokens."""
    return attention_nets.real("llama")


def bert() -> Case:
    return attention_nets.real("bert")


def swin() -> Case:
    return attention_nets.real("swin")


def shuffled() -> Case:
    """Grouped convolutions and a channel shuffle."""
    return nets.shuffled()


def dense() -> Case:
    """Concatenations of concatenations."""
    return nets.dense()


def densenet() -> Case:
    from tests.graph import test_zoo

    model, x = test_zoo.dense()
    return model.eval(), x


def two_inputs() -> Case:
    from benchmarks.zoo import own

    model, x = own.two_inputs()
    return model.eval(), x


def tied() -> Case:
    from benchmarks.zoo import own

    model, x = own.tied()
    return model.eval(), x


WITHOUT_PAREDOWN: dict[str, Callable[[], Case]] = {make.__name__: make for make in (lstm, llama, bert, swin, shuffled, dense)}
MODELS = WITHOUT_PAREDOWN | {make.__name__: make for make in (densenet, two_inputs, tied)}


def stepped(model: nn.Module, inputs: Any) -> nn.Module:
    """The model after one step of an optimizer, in evaluation mode: no weight is what it was."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    _output(model, inputs).square().mean().backward()
    optimizer.step()
    return model.eval()


def output_of(model: nn.Module, inputs: Any) -> np.ndarray:
    with torch.no_grad():
        return _output(model, inputs).numpy()


def _output(model: nn.Module, inputs: Any) -> Tensor:
    found = model(**inputs) if isinstance(inputs, dict) else model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    output: Tensor = getattr(found, "logits", found)
    return output


def forbid_paredown() -> None:
    """From here on importing it is an error, in a process that never did."""
    assert not any(name.partition(".")[0] == "paredown" for name in sys.modules)
    sys.modules["paredown"] = None  # type: ignore[assignment]  # how Python itself spells it
    torch.set_num_threads(1)


def rebuilt_output(name: str, folder: Path) -> np.ndarray:
    """The output of a model made from widths.json and the weights alone, as the docstring of pipeline/checkpoint.py says."""
    model, _ = MODELS[name]()
    widths = json.loads((folder / "widths.json").read_text())
    for path, numbers in widths["modules"].items():
        for attribute, value in numbers.items():
            setattr(model.get_submodule(path), attribute, tuple(value) if isinstance(value, list) else value)
    made: dict[int, Tensor] = {}  # what is tied stays tied
    for key, shape in widths["shapes"].items():
        path, _, leaf = key.rpartition(".")
        owner = model.get_submodule(path)
        old = getattr(owner, leaf)
        new = torch.empty(shape, dtype=old.dtype)
        setattr(owner, leaf, made.setdefault(id(old), nn.Parameter(new) if isinstance(old, nn.Parameter) else new))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return output_of(model.eval(), torch.load(folder.with_name("inputs.pt")))
