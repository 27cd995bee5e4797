"""What a file beyond the tolerance of parity may still be: another rounding of the same model, and as good a one.

Of integers: in a deep net the values that two orders of summation round to different neighbours on a grid move those behind them.
Most samples have none, a few end up as far apart as two roundings of the model are. So a file that is right can be beyond 2 %,
above all on the one to three samples that parity reads. It is taken for right where

- each operator alone, fed with torch's own inputs, is what rounding explains (`divergence.py`: stricter than 2 % by far), and
- over 64 samples ||file - simulation|| <= max(2 % of ||simulation||, ||simulation - float||):
  two roundings with errors of their own lie sqrt(2) times as far apart as each from what was rounded, those of one model less.

Of floats: the last bits of a large model, or of a difference of numbers that are nearly equal, may be more than 1e-4 of what
comes out. Such a file is taken for right where no operator alone is beyond the tolerance, and it is at most five times as far as
torch from what the model gives in float64.
"""

import copy
import pathlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from paredown.core.target import Target
from paredown.deploy.divergence import FAKES, Measure, first_divergence, reference_values
from paredown.deploy.onnx import Built, build
from paredown.deploy.ports import Array
from paredown.graph.trace import Dynamic
from paredown.task.batches import Inputs, apply_tensors, batch_size, call, first_samples, tensors

SAMPLES = 64
Outputs = tuple[Array, ...]
Run = Callable[[Inputs], Outputs]
_FACTOR = 5.0  # another order of summation has errors of its own, and a largest one varies


@dataclass
class SecondLook:
    """The operators are looked at once, and the samples read once, when the first batch size asks.

    model, inputs (at least 2 samples), path, target, dynamic: of the file. more: batches that the samples are taken from.
    words: what the operators said, a sentence for the error.
    """

    model: nn.Module
    inputs: Inputs
    path: str | pathlib.Path
    target: Target
    dynamic: Dynamic | None
    measure: Measure
    more: Iterable[Inputs]
    words: str = ""
    _by_rounding: bool = False
    _known: list[tuple[Inputs, Outputs, Outputs]] = field(default_factory=list)

    def operators(self) -> bool:
        """Whether each alone is what rounding explains. Never fails: the disagreement itself is what has to be told."""
        if not self.words:
            try:
                twin = build(self.model, self.inputs, self.dynamic)
                found = first_divergence(twin, self.inputs, self.path, self.target, self.measure)
                self._by_rounding = found is not None and found.verdict == "rounding"
                self.words = "no operator of the file could be compared" if found is None else str(found)
                self._known = list(_known(twin, self.more)) if self._by_rounding and self.measure.integers else []
            except Exception as error:
                self._by_rounding, self.words = False, f"the operator could not be located ({type(error).__name__})"
        return self._by_rounding

    def against_exact(self, inputs: Inputs, got: Outputs, want: Outputs) -> tuple[float, float] | None:
        """How far the file's outputs are from those in float64, and how far they may be; None where the model doesn't run in it.

        got, want: of the file and of torch for `inputs`.
        """
        try:
            exact = _in_float64(self.model, inputs)
        except Exception:  # a type is written out in forward
            return None
        pairs = (zip(each, exact, strict=True) for each in (got, want))
        mine, of_torch = (max(self.measure.difference(a.astype(np.float64), e) for a, e in pair) for pair in pairs)
        return mine, max(self.measure.tolerance, _FACTOR * of_torch)

    def pooled(self, file: Run, size: int) -> tuple[int, float, float]:
        """Over all samples, run in batches of `size`: how many they are; ||file - simulation|| / ||simulation|| and what it may
        be, of the output that is worst off.
        """
        count, sums = 0, np.zeros((3, len(self._known[0][1])))
        for batch, simulated, exact in self._known:
            got = [file(part) for part in _parts(batch, size)]
            count += batch_size(batch)
            for i, (want, unrounded) in enumerate(zip(simulated, exact, strict=True)):
                together = np.concatenate([part[i] for part in got])[: len(want)]
                sums[:, i] += _squares(together - want), _squares(unrounded - want), _squares(want)
        errors, own = np.sqrt(sums[:2] / np.maximum(sums[2], np.finfo(np.float64).tiny))
        limits = np.maximum(own, self.measure.tolerance)
        worst = int(np.argmax(errors / limits))
        return count, float(errors[worst]), float(limits[worst])


def _in_float64(model: nn.Module, inputs: Inputs) -> Outputs:
    doubled: Inputs = apply_tensors(inputs, lambda t: t.double() if t.is_floating_point() else t)
    with torch.no_grad():
        found = tensors(call(copy.deepcopy(model).double().eval(), doubled))
    return tuple(tensor.cpu().numpy() for tensor in found)


def _known(twin: Built, batches: Iterable[Inputs]) -> Iterator[tuple[Inputs, Outputs, Outputs]]:
    """Samples with what the simulation gives for them, and what it gives where nothing is rounded."""
    skipped = (*FAKES, torch.ops.paredown.dynamic_quantize.default)
    names = [entry.name for entry in twin.model.graph.output]
    left = SAMPLES
    for batch in batches:
        few = first_samples(batch, left)
        simulated, exact = reference_values(twin, few), reference_values(twin, few, skipped)
        yield few, tuple(simulated[name] for name in names), tuple(exact[name] for name in names)
        left -= batch_size(few)
        if left <= 0:
            return


def _parts(batch: Inputs, size: int) -> Iterator[Inputs]:
    """In batches of `size`, the last one filled from the start."""
    count = batch_size(batch)
    for start in range(0, count, size):
        yield _samples(batch, torch.arange(start, start + size) % count)


def _samples(batch: Inputs, index: torch.Tensor) -> Inputs:
    chosen: Inputs = apply_tensors(batch, lambda t: t[index.to(t.device)] if t.dim() else t)
    return chosen


def _squares(x: Array) -> float:
    return float((x.astype(np.float64) ** 2).sum())
