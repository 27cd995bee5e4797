"""Kernels that can be cropped to their centre: a 5x5 convolution becomes 3x3 or 1x1 (elastic kernels, arXiv:1908.09791).

A crop keeps the middle indices of a kernel and takes as much off the padding, so that outputs stay where they were. The
cropped layer equals the original with its outer weights at zero, which is what is checked.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from paredown.core.errors import SurgeryError
from paredown.core.report import Barrier
from paredown.graph.equality import compare
from paredown.graph.manifest import Manifest
from paredown.graph.places import Dimension
from paredown.graph.surgery import Layout, cut
from paredown.graph.twin import Twin, light_twin, random_twin, runs
from paredown.task.batches import Inputs

_NEEDED = "the class can't run, or gives something else, with a smaller kernel"


@dataclass(frozen=True)
class Kernel:
    """layer: name of the convolution. tensor: of its weight. size: of its kernel, one number a dimension.

    options: sides that it may have, ascending, the last the original's; of a kernel that isn't square the longer side.
    """

    layer: str
    tensor: str
    size: tuple[int, ...]
    options: tuple[int, ...]

    def kept(self, side: int) -> dict[int, tuple[int, ...]]:
        """The indices that are left of the weight's dimensions at this side."""
        lengths = [min(side, length) for length in self.size]
        starts = [(length - left) // 2 for length, left in zip(self.size, lengths, strict=True)]
        places = enumerate(zip(self.size, lengths, starts, strict=True), start=2)
        return {d: tuple(range(start, start + left)) for d, (length, left, start) in places if left < length}


@dataclass(frozen=True)
class Kernels:
    """Those of a model, in the order of its modules, and why others can't be cropped."""

    kernels: tuple[Kernel, ...] = ()
    barriers: tuple[Barrier, ...] = ()

    def manifest(self, sides: Mapping[str, int]) -> Manifest:
        """The cut that crops the kernels of these layers to these sides."""
        kept = {k.tensor: k.kept(sides[k.layer]) for k in self.kernels if k.layer in sides}
        return Manifest({tensor: dimensions for tensor, dimensions in kept.items() if dimensions})

    def smallest(self) -> Manifest:
        return self.manifest({kernel.layer: kernel.options[0] for kernel in self.kernels})

    @property
    def readers(self) -> frozenset[Dimension]:
        """What is summed over: zeroing what a crop takes away there is masking it."""
        return frozenset((kernel.tensor, 2 + d) for kernel in self.kernels for d in range(len(kernel.size)))


def croppable_kernels(model: nn.Module, inputs: Inputs, *, protect: Collection[str] = ()) -> Kernels:
    """The convolutions of an odd size above 1, each of which was cropped as far as it goes, and the class ran and equalled the
    original with its outer weights at zero.

    inputs: at least 2 samples. protect: names of modules that stay as they are. The model is not touched.
    """
    layout, found, barriers = Layout.of(model), list[Kernel](), list[Barrier]()
    for path, module in layout.modules.items():
        if not isinstance(module, _ConvNd) or isinstance(module, _ConvTransposeNd) or max(module.kernel_size) == 1:
            continue
        protected = any(path == name or path.startswith(f"{name}.") or not name for name in protect)
        reason = "protected by the user" if protected else _reason(module, layout)
        if reason:
            barriers.append(Barrier("kernel", path, reason))
        else:
            found.append(Kernel(path, layout.names[id(module.weight)], tuple(module.kernel_size), _options(module)))
    working = _tried(model, inputs, found)
    needed = [Barrier("kernel", kernel.layer, _NEEDED) for kernel in found if kernel not in working]
    return Kernels(tuple(working), (*barriers, *needed))


def _reason(module: _ConvNd, layout: Layout) -> str:
    """Why a kernel can't be cropped; empty where it can."""
    size = "x".join(map(str, module.kernel_size))
    if any(k % 2 == 0 for k in module.kernel_size):
        return f"{size} has no centre"
    name = layout.names.get(id(module.weight))
    if name is None or len(layout.holders[name]) > 1:
        return "its weight is computed, or shared with another layer"
    if len(_options(module)) == 1:
        return f"with less than {size} needs of padding, a smaller kernel would give a larger output"
    return ""


def _options(module: _ConvNd) -> tuple[int, ...]:
    """Odd sides from 1 to the kernel's own, as far as the padding can shrink with them."""
    longest = max(module.kernel_size)
    return (*(side for side in range(1, longest, 2) if _fits(module, side)), longest)


def _fits(module: _ConvNd, side: int) -> bool:
    if isinstance(module.padding, str):
        return module.padding == "same"
    padded: Any = zip(module.kernel_size, module.padding, module.dilation, strict=True)
    return all((k - min(side, k)) // 2 * dilation <= padding for k, padding, dilation in padded)


def _tried(model: nn.Module, inputs: Inputs, kernels: Sequence[Kernel]) -> list[Kernel]:
    """Those with which the class works: all at once, or else each alone."""
    if not kernels:
        return []
    light = light_twin(model, inputs, 0, torch.float32, samples=3, side=None)
    twin = light if runs(light) else random_twin(model, inputs, 0)
    return list(kernels) if _works(twin, kernels) else [kernel for kernel in kernels if _works(twin, [kernel])]


def _works(twin: Twin, kernels: Sequence[Kernel]) -> bool:
    cropped = Kernels(tuple(kernels))
    try:
        compare(cut(twin.model, cropped.smallest()), twin, cropped.smallest(), cropped.readers)
    except SurgeryError:
        return False
    return True
