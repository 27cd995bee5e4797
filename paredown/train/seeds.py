"""One seed for every source of randomness of a training, the user's own state back afterwards, and that state as plain data."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch (all devices), numpy's global generator and Python's start from `seed`; afterwards each goes on from where it was."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


@dataclass(frozen=True)
class RandomState:
    """Where every global generator stands: `plain` of Python's and numpy's, as JSON holds it; torch's, the CPU's first."""

    plain: dict[str, Any]
    tensors: tuple[Tensor, ...]

    @classmethod
    def now(cls) -> "RandomState":
        version, numbers, gauss = random.getstate()
        name, keys, *rest = np.random.get_state(legacy=True)
        plain = {"python": [version, list(numbers), gauss], "numpy": [name, np.asarray(keys).tolist(), *rest]}
        devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(plain, (torch.get_rng_state(), *devices))

    def restore(self) -> None:
        version, numbers, gauss = self.plain["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = self.plain["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(self.tensors[0])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(list(self.tensors[1:]))
