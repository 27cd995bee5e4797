"""Which models are in the zoo, and how each is built: random weights, the smallest input that it takes."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.zoo import own
from paredown.task.batches import Inputs

SAMPLES = 3  # an odd batch: an even one may be taken for a number of heads or of groups
SIZES = (64, 96, 128, 160, 192, 224, 256, 299, 384, 448, 512)  # of images, pixels; the first that a model takes
TIMM_LIST = pathlib.Path(__file__).parent / "timm_models.txt"
_IMAGE_SIZES = {"vit_": "image_size", "maxvit": "input_size"}  # torchvision's names for a size that is fixed at construction
# torchvision's ViTs and MaxViT at 64 pixels would have a handful of tokens, fewer than a window; these keep a few rows of each.
_TORCHVISION = {"maxvit_t": 224, "vit_b_16": 64, "vit_l_16": 64, "vit_b_32": 96, "vit_l_32": 96, "vit_h_14": 56}


class Entry(NamedTuple):
    """source: "torchvision", "timm" or "own"."""

    source: str
    name: str


def entries() -> list[Entry]:
    """All of the zoo, in the order in which it runs."""
    import torchvision

    vision = torchvision.models.list_models(module=torchvision.models)
    return [
        *(Entry("own", name) for name in own.MODELS),
        *(Entry("torchvision", name) for name in vision),
        *(Entry("timm", line) for line in TIMM_LIST.read_text().split()),
    ]


def build(source: str, name: str) -> tuple[nn.Module, Inputs]:
    """The model in evaluation mode and inputs of SAMPLES samples."""
    torch.manual_seed(0)
    match source:
        case "own":
            model, inputs = own.MODELS[name]()
        case "torchvision":
            model, inputs = _torchvision(name)
        case "timm":
            model, inputs = _timm(name)
        case _:
            raise ValueError(f"source must be own, torchvision or timm, got {source!r}")
    return model.eval(), inputs


def _torchvision(name: str) -> tuple[nn.Module, Tensor]:
    from torchvision.models import get_model

    fixed = _TORCHVISION.get(name)
    option = next((keyword for prefix, keyword in _IMAGE_SIZES.items() if name.startswith(prefix)), None)
    value = (fixed, fixed) if option == "input_size" else fixed
    model = get_model(name, weights=None, **({option: value} if option else {})).eval()
    return model, _first_that_runs(model, [fixed] if fixed else SIZES)


def _timm(name: str) -> tuple[nn.Module, Tensor]:
    """At a size of its choice where its class takes one, else at the first that it runs with."""
    import timm

    model = timm.create_model(name, pretrained=False).eval()
    own_size = tuple(model.pretrained_cfg.get("input_size", (3, 224, 224)))[-1]
    sizes = [size for size in SIZES if size < own_size] + [own_size]
    try:
        return model, _first_that_runs(model, sizes[:-1] if len(sizes) > 1 else sizes)
    except ValueError:
        pass
    for size in sizes:
        try:
            resized = timm.create_model(name, pretrained=False, img_size=size).eval()
            return resized, _first_that_runs(resized, [size])
        except Exception:  # it doesn't take that size, or no size at all
            continue
    return model, _first_that_runs(model, [own_size])


def _first_that_runs(model: nn.Module, sizes: Any) -> Tensor:
    """An image batch of the smallest of these sizes at which the model gives a finite output."""
    for size in sizes:
        x = torch.randn(SAMPLES, 3, size, size, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                model(x)
        except Exception:  # too small for it
            continue
        return x
    raise ValueError(f"the model runs at none of the sizes {list(sizes)}")


def named(pattern: str) -> Iterator[Entry]:
    """Entries whose "source/name" contains the pattern, or matches it where it has wildcards."""
    import fnmatch

    test: Callable[[str], bool] = (
        (lambda s: fnmatch.fnmatchcase(s, pattern)) if any(c in pattern for c in "*?[") else (lambda s: pattern in s)
    )
    return (entry for entry in entries() if test(f"{entry.source}/{entry.name}"))
