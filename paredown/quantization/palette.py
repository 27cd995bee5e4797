"""A palette: a weight as indices into a codebook of 2^b values (Han et al., "Deep Compression", arXiv:1510.00149, section 3).

Lloyd's k-means in one dimension, exact in its assignment: sorted values are cut at the midpoints between sorted codes.
It makes files smaller, and nothing faster: a runtime looks every weight up before it computes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paredown.core.errors import RecipeError
from paredown.core.progress import Progress, silent
from paredown.core.steps import Quantize
from paredown.graph.stored_weight import nearest_code
from paredown.graph.trace import path_of
from paredown.quantization.model import Codebook, QuantizedModel
from paredown.quantization.static import prepare_for, stored_weights
from paredown.task.task import Task

_PASSES = 100


@dataclass(frozen=True, eq=False)
class Palette:
    """codebook (codes,) float32, ascending; indices int64 in the weight's shape."""

    codebook: Tensor
    indices: Tensor

    @property
    def bits(self) -> int:
        return max(1, (len(self.codebook) - 1).bit_length())

    @property
    def size_bytes(self) -> int:
        """Indices packed to `bits`, and the codebook in float32."""
        return -(-self.indices.numel() * self.bits // 8) + 4 * len(self.codebook)

    def weight(self) -> Tensor:
        return self.codebook[self.indices]


def palettize(weight: Tensor, bits: int, importance: Tensor | None = None) -> Palette:
    """weight: any shape, finite. bits: 1 to 8. importance: weights of the squared errors, weight's shape (None: all 1).

    Deterministic: codes start at quantiles. Raises RecipeError on other bits.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise RecipeError("a palette has 1 to 8 bits", got=bits, remedy="4 is a codebook of 16 values")
    values, order = weight.detach().double().flatten().sort()
    mass = torch.ones_like(values) if importance is None else importance.detach().double().flatten()[order].clamp(min=1e-30)
    codes = values[torch.linspace(0, len(values) - 1, 2 * 2**bits + 1).round().long()[1::2]].unique()  # type: ignore[no-untyped-call]  # torch has no types here
    sums, masses = _cumulative(values * mass), _cumulative(mass)
    for _ in range(_PASSES):
        moved = _means(values, codes, sums, masses)
        if torch.equal(moved, codes):
            break
        codes = moved
    codebook = codes.float().unique()
    return Palette(codebook, nearest_code(weight, codebook))


def quantize_palette(model: nn.Module, task: Task, config: Quantize, *, progress: Progress = silent) -> QuantizedModel:
    """The simulation of `model`, which is left untouched, each weight with a codebook of its own. Reads no data.

    What task.protect names stays in float. Raises NothingToQuantizeError, RecipeError, TraceError.
    """
    quantized = prepare_for(task, model, config, reduced=False)
    weights = list(stored_weights(quantized))
    for done, (key, weight) in enumerate(weights):
        progress("choosing codes", done / len(weights))
        codebook = quantized.quantizers[key]
        assert isinstance(codebook, Codebook)  # that is what this kind puts there
        codebook.set_(palettize(weight, quantized.scheme.of(path_of(key)).weight_bits).codebook)
    progress("choosing codes", 1.0)
    return quantized


def _means(values: Tensor, codes: Tensor, sums: Tensor, masses: Tensor) -> Tensor:
    """The weighted mean of the values nearest to each code; codes that none is nearest to stay."""
    cuts = torch.searchsorted(values, (codes[1:] + codes[:-1]) / 2)
    edges = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), len(values))])
    mass = masses[edges[1:]] - masses[edges[:-1]]
    return torch.where(mass > 0, (sums[edges[1:]] - sums[edges[:-1]]) / mass.clamp(min=1e-300), codes)


def _cumulative(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.cumsum(0)])
