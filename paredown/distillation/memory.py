"""What a teacher gave, by the digest of each sample: in memory, or in files that are mapped into it, so that another process,
or this one after it was killed, need not compute it again.

A folder holds safetensors files, each written under another name and then renamed. Of each question a file has the digests,
(samples, 16) bytes, and the outputs, (samples, ...).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from paredown.core.errors import ArtifactError, OutputError
from paredown.train.state import write_tensors

_BYTES_PER_SAMPLE = 300  # of a dictionary's entry, beside the outputs themselves
_BYTES_UNWRITTEN = 64 << 20
_DIGEST = 16  # bytes


@dataclass(frozen=True)
class Known:
    """One row of the outputs that were computed together."""

    outputs: list[Tensor]
    row: int


class Memory:
    """bytes_at_most: of what is remembered; what is more is not. folder: where it is kept; None: nowhere.

    known: by digest. inherited: something was in the folder already.
    Raises ArtifactError where a file of the folder can't be read, OutputError where it can't be made or written to.
    """

    def __init__(self, bytes_at_most: int, folder: Path | None = None) -> None:
        self.known: dict[bytes, Known] = {}
        self._room, self._folder = bytes_at_most, folder
        self._unwritten: list[tuple[list[bytes], list[Tensor]]] = []
        self._written: list[Path] = []
        if folder is not None:
            _make(folder)
        for file in sorted(folder.glob("*.safetensors")) if folder is not None else []:
            self._room -= self._read(file)
        self.inherited = bool(self.known)

    def add(self, fresh: Mapping[bytes, Known], keys: list[bytes], outputs: list[Tensor]) -> None:
        """Remembers what was computed together, where there is room. keys: of the rows, in order."""
        size = _size(outputs)
        if size > self._room:
            return
        self._room -= size
        self.known.update(fresh)
        if self._folder is not None:
            self._unwritten.append((keys, outputs))
            if sum(_size(each) for _, each in self._unwritten) > _BYTES_UNWRITTEN:
                self.flush()

    def flush(self) -> None:
        """Everything that is known is on disk, and memory holds it no more. Raises OutputError."""
        if self._folder is None or not self._unwritten:
            return
        file = self._folder / f"{uuid4().hex}.safetensors"
        tensors: dict[str, Tensor] = {}
        for i, (keys, outputs) in enumerate(self._unwritten):
            tensors[f"{i}.keys"] = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, _DIGEST)
            tensors |= {f"{i}.{j}": output for j, output in enumerate(outputs)}
        write_tensors(file, tensors, {})
        self._written.append(file)
        self._unwritten = []
        self._read(file)

    def forget(self) -> None:
        """Nothing is known any more, and the files that this process wrote are gone."""
        self.known, self._unwritten = {}, []
        for file in self._written:
            file.unlink(missing_ok=True)

    def _read(self, file: Path) -> int:
        """Maps a file. -> bytes"""
        size = 0
        try:
            with safe_open(file, framework="pt") as opened:
                names = set(opened.keys())
                for prefix in sorted(name.removesuffix("keys") for name in names if name.endswith(".keys")):
                    count = sum(name.startswith(prefix) for name in names) - 1
                    outputs = [opened.get_tensor(f"{prefix}{j}") for j in range(count)]
                    keys = opened.get_tensor(f"{prefix}keys").numpy()
                    self.known.update({key.tobytes(): Known(outputs, row) for row, key in enumerate(keys)})
                    size += _size(outputs)
        except (SafetensorError, OSError, ValueError) as error:
            raise ArtifactError(
                "outputs that a teacher gave must be readable", got=f"{file.name}: {error}", remedy="delete their folder"
            ) from None
        return size


def _make(folder: Path) -> None:
    """Before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder.name} can't be written to")
    except OSError as error:
        raise OutputError(
            "what a teacher gives is kept in a folder that can be written to", got=str(error), remedy="name another"
        ) from None


def _size(outputs: list[Tensor]) -> int:
    samples = len(outputs[0]) if outputs else 0
    return sum(tensor.numel() * tensor.element_size() for tensor in outputs) + _BYTES_PER_SAMPLE * samples
