"""How far a training got, on disk: weights, optimizer, average, generators, the place in the batches, and what the loss carries.

One safetensors file; what is no tensor stands as JSON in its header. It is written under another name and then renamed, so that
it is there whole or not at all, whenever the process is killed. Nothing in it is executed.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from paredown.core.errors import ArtifactError, OutputError
from paredown.core.training import Resume, Training
from paredown.train.average import Average
from paredown.train.passes import Passes
from paredown.train.seeds import RandomState

_FORMAT, _VERSION = "paredown training", 1
_FILE = "training.safetensors"
_PAUSE = 20  # times as long as a write took, until the next one


@runtime_checkable
class Carried(Protocol):
    """What a loss knows beside the model, and learns while the training goes on."""

    def keep(self) -> dict[str, Tensor]:
        """What must be kept to go on later; what the loss has on disk itself is complete when this returns."""

    def take_up_(self, kept: Mapping[str, Tensor]) -> None:
        """Goes on from what `keep` gave."""


@dataclass(frozen=True)
class Keeping:
    """Where and how often a training is kept. key: of all that it depends on; a file of another key is refused."""

    resume: Resume
    key: str = ""
    carried: Carried | None = None

    def within(self, name: str, carried: Carried | None = None) -> "Keeping":
        """The same for one training of several, in a folder of its own."""
        return replace(self, resume=self.resume.within(name), carried=carried)


@dataclass(frozen=True)
class Point:
    """How far a training got. step: the next one. spent: seconds. last: the loss before. finished: nothing is left to do."""

    step: int = 0
    spent: float = 0.0
    last: float = float("nan")
    finished: bool = False


class State:
    """The parts of one training that change, written and read."""

    def __init__(
        self, keeping: Keeping, model: nn.Module, training: Training, optimizer: Any, average: Average | None, passes: Passes
    ) -> None:
        self._file, self._resume, self._carried = keeping.resume.folder / _FILE, keeping.resume, keeping.carried
        self._model, self._optimizer, self._average, self._passes = model, optimizer, average, passes
        self._key = hashlib.sha256(f"{keeping.key} {training!r}".encode()).hexdigest()
        self._next = time.monotonic() + self._resume.seconds

    def save_if_due(self, point: Point) -> None:
        """Writes where it is time for it. Raises OutputError where the folder can't be written to."""
        steps = self._resume.steps
        if (time.monotonic() < self._next) if steps is None else point.step % steps:
            return
        began = time.monotonic()
        self._write(point, self._changing())
        ended = time.monotonic()
        self._next = ended + max(self._resume.seconds, _PAUSE * (ended - began))

    def finish(self) -> None:
        """Writes the weights that the training ended with, and that it did."""
        self._write(Point(finished=True), {})

    def restore_(self) -> Point:
        """Everything as it was written; the beginning, where nothing was.

        Raises OutputError for the file of another training, ArtifactError for one that can't be read.
        """
        if not self._file.exists():
            return Point()
        try:
            header, tensors = _read(self._file)
            self._check(header, tensors)
            point = Point(**header["point"])
            with torch.no_grad():
                for name, tensor in named_tensors(self._model).items():
                    tensor.copy_(tensors[f"model/{name}"])
            if not point.finished:
                self._take_up_(header, tensors)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                "how far a training got must be readable", got=f"{type(error).__name__}: {error}", remedy="delete its folder"
            ) from None
        return point

    def _changing(self) -> dict[str, Tensor]:
        found = {f"optimizer/{i}/{key}": tensor for i, _, values in self._moments() for key, tensor in values.items()}
        for name, part in (("average", self._average), ("carried", self._carried)):
            found |= {} if part is None else {f"{name}/{key}": tensor for key, tensor in part.keep().items()}
        return found

    def _write(self, point: Point, tensors: dict[str, Tensor]) -> None:
        header: dict[str, Any] = {"format": _FORMAT, "version": _VERSION, "key": self._key, "point": asdict(point)}
        header |= {"epoch": self._passes.epoch, "taken": self._passes.taken, "random": {}}
        for name, state in (("began", self._passes.began), ("now", RandomState.now())):
            if state is not None:
                header["random"][name] = state.plain
                tensors |= {f"random/{name}/{i}": tensor for i, tensor in enumerate(state.tensors)}
        tensors |= {f"model/{name}": tensor for name, tensor in named_tensors(self._model).items()}
        write_tensors(self._file, tensors, {"state": json.dumps(header)})

    def _check(self, header: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        own = {f"model/{name}": tensor.shape for name, tensor in named_tensors(self._model).items()}
        found = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("model/")}
        if header["key"] != self._key or own != found:
            raise OutputError(
                "resume must name the folder of this very training",
                got=f"{self._file.parent.name} of another model, config or seed",
                remedy="name another folder, or delete that one",
            )

    def _take_up_(self, header: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        for i, weight, values in self._moments():
            prefix = f"optimizer/{i}/"
            kept = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            values.update({key: _like(weight, tensor) for key, tensor in kept.items()})
            if values:
                self._optimizer.state[weight] = values
        for name, part in (("average", self._average), ("carried", self._carried)):
            if part is not None:
                part.take_up_(under(f"{name}/", tensors))
        began, now = (
            RandomState(header["random"][name], tuple(under(f"random/{name}/", tensors).values())) for name in ("began", "now")
        )
        self._passes.go_on_(header["epoch"], header["taken"], began, now)

    def _moments(self) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
        """(number, weight, its tensors) of everything that the optimizer trains."""
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        for i, weight in enumerate(weights):
            values = self._optimizer.state.get(weight, {})
            yield i, weight, {key: value for key, value in values.items() if isinstance(value, Tensor)}


def _like(weight: Tensor, tensor: Tensor) -> Tensor:
    """In the weight's memory format, which fused optimizers rely on; numbers of steps as they are."""
    return torch.empty_like(weight).copy_(tensor) if tensor.shape == weight.shape else tensor.clone()


def _numbered(name: str) -> tuple[int, str]:
    return len(name), name


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin so, without it; numbers in order."""
    return {name.removeprefix(prefix): tensors[name] for name in sorted(tensors, key=_numbered) if name.startswith(prefix)}


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those too that no state_dict holds."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def model_digest(model: nn.Module) -> str:
    """Of a model's class, of what it prints of its layers, and of its parameters and buffers."""
    printed = re.sub(r"0x[0-9a-f]+", "", repr(model))  # an address is another one in the next process
    digest = hashlib.sha256(f"{type(model).__qualname__} {printed}".encode())
    for name, tensor in sorted(named_tensors(model).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_tensors(file: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    """A safetensors file, whole or not at all. Raises OutputError where it can't be written."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        safetensors.torch.save_file(plain, unfinished, metadata=header)
        unfinished.replace(file)
    except (OSError, SafetensorError) as error:
        raise OutputError("the folder must be one that can be written to", got=str(error), remedy="name another") from None


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(file, framework="pt") as opened:
        header = json.loads((opened.metadata() or {}).get("state", "{}"))
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (no mapping)
    if not isinstance(header, dict) or (header.get("format"), header.get("version")) != (_FORMAT, _VERSION):
        raise ValueError(f"not a {_FORMAT} of version {_VERSION}")
    return header, tensors
