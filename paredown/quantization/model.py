"""A model with fake-quantizers in its exported graph: what it computes is what an int8 file of it computes, to rounding.

Its parameters are its own, under their original names; batch norms are folded into the operator before them, and one that
can't be folded keeps its running statistics, in training too. Dropouts follow `train()` and `eval()`. Parameters train by
the straight-through estimator (quantization-aware training); scales and zero points are buffers, fixed by calibration.
"""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from paredown.core.report import BitsSensitivity
from paredown.core.steps import Quantize
from paredown.graph import fake_quantize as _operator  # noqa: F401 (importing it registers the operator)
from paredown.graph import stored_weight as _operators  # noqa: F401 (likewise)
from paredown.graph import two_sided as _two_sided  # noqa: F401 (likewise)
from paredown.graph.manifest import Manifest
from paredown.graph.trace import Dynamic
from paredown.quantization.grid import Grid, scale_and_zero_point, two_sided_scales
from paredown.quantization.scheme import Scheme
from paredown.task.batches import Inputs
from paredown.train.masks import mark_sparse_, sparse_names


class FakeQuantizer(nn.Module):
    """Rounds a tensor to a grid and back. NaN and 0 until calibrated.

    scale, zero_point: (1,), or (channels,) along `axis`, or (rows, blocks) with one scale for `block` numbers of a row.
    negative: the scale below 0, of a two-sided grid alone; there `scale` is that of the rest, and zero points are 0.

    While `enabled` is False it passes its input through, so that calibration sees the float model.
    """

    scale: Tensor
    zero_point: Tensor
    negative: Tensor

    def __init__(self, grid: Grid, shape: tuple[int, ...] = (1,), axis: int = -1, block: int = 0) -> None:
        super().__init__()
        self.grid, self.axis, self.block, self.enabled = grid, axis, block, True
        self.register_buffer("scale", torch.full(shape, torch.nan))
        self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))
        if grid.two_sided:
            self.register_buffer("negative", torch.full(shape, torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        if self.grid.two_sided:
            return self._two_sided(x)
        grid, more = self.grid, (self.block,) if self.block else ()
        result: Tensor = torch.ops.paredown.fake_quantize(x, self.scale, self.zero_point, self.axis, grid.low, grid.high, *more)
        return result

    def set_(self, scale: Tensor, zero_point: Tensor, negative: Tensor | None = None) -> None:
        """Takes over scale and zero point, of its own shape; negative: of a two-sided grid."""
        self.scale.copy_(scale.reshape_as(self.scale))
        self.zero_point.copy_(zero_point.reshape_as(self.zero_point))
        if negative is not None:
            self.negative.copy_(negative.reshape_as(self.negative))

    def between_(self, low: Tensor, high: Tensor) -> None:
        """Takes over the scales of a range, of its own shape."""
        if self.grid.two_sided:
            below, above = two_sided_scales(low, high, self.grid)
            self.set_(above, torch.zeros_like(self.zero_point), below)
        else:
            self.set_(*scale_and_zero_point(low, high, self.grid))

    def take_(self, other: "FakeQuantizer") -> None:
        """Takes over grid and scales of another quantizer of the same tensor."""
        self.grid = other.grid
        self.set_(other.scale, other.zero_point, other.negative if other.grid.two_sided else None)

    def _two_sided(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.paredown.fake_quantize_two_sided(
            x, self.negative, self.scale, self.axis, self.grid.low, self.grid.high
        )
        return result

    def extra_repr(self) -> str:
        return f"[{self.grid.low}, {self.grid.high}], axis={self.axis}"


class HalfFloat(nn.Module):
    """Stands for a weight that is stored as a 16-bit float. exponent_bits: 5 for fp16, 8 for bf16."""

    def __init__(self, exponent_bits: int) -> None:
        super().__init__()
        self.exponent_bits = exponent_bits

    def forward(self, weight: Tensor) -> Tensor:
        result: Tensor = torch.ops.paredown.round_float(weight, self.exponent_bits)
        return result


class Codebook(nn.Module):
    """Stands for a weight that is stored as indices into `codes` (codes,), ascending; NaN until they are found."""

    codes: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.full((2**bits,), torch.nan))

    def forward(self, weight: Tensor) -> Tensor:
        result: Tensor = torch.ops.paredown.look_up(weight, self.codes)
        return result

    def set_(self, codes: Tensor) -> None:
        """Takes over at most as many codes as there is room for; the last one fills the rest."""
        self.codes.copy_(torch.cat([codes, codes[-1:].expand(len(self.codes) - len(codes))]))


class QuantizedModel(fx.GraphModule):
    """Takes and returns what the original model does. Made by `prepare` or `quantize_model`.

    quantizers: FakeQuantizer by module path, call index and role: "layer1/0/conv1@0:weight"; of the kinds "fp16" and "bf16"
    HalfFloat, of "palette" Codebook.
    config, reduced (7-bit weights), example_inputs, dynamic: what it was made with. manifest: of the pruned model it was
    made from; source_class: its class. scheme: the bits of each layer; evidence: by module path, what those were chosen from.
    learned: whether its scales were trained, where the config says that they are to be.
    prunable is False: pruning comes before quantization.
    """

    prunable: ClassVar[bool] = False
    config: Quantize
    reduced: bool
    example_inputs: Inputs
    dynamic: Dynamic | None
    manifest: Manifest | None
    source_class: str
    scheme: Scheme
    evidence: Mapping[str, BitsSensitivity]
    learned: bool
    quantizers: nn.ModuleDict
    dropouts: nn.ModuleDict

    def __init__(self, root: nn.Module, graph: fx.Graph, about: dict[str, Any]) -> None:
        """root: holds what the graph reads, `quantizers` and `dropouts` among it; about: the attributes that ABOUT names."""
        super().__init__(root, graph, QuantizedModel.__name__)
        for name in ("quantizers", "dropouts"):
            setattr(self, name, getattr(root, name))
        for name in ABOUT:
            setattr(self, name, about[name])

    def quantizer(self, key: str) -> FakeQuantizer:
        """The quantizer of a key, of a model on integer grids. Raises KeyError."""
        found = self.quantizers[key]
        assert isinstance(found, FakeQuantizer)  # the other kinds don't come here
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuantizedModel":
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, QuantizedModel)  # GraphModule keeps the class
        for name in ABOUT:
            setattr(copied, name, copy.deepcopy(getattr(self, name), memo))
        type(copied).__name__ = QuantizedModel.__name__
        return mark_sparse_(copied, sparse_names(self))


ABOUT = ("config", "reduced", "example_inputs", "dynamic", "manifest", "source_class", "scheme", "evidence", "learned")
