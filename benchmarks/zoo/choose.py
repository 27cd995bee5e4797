"""Chooses timm's part of the zoo and writes timm_models.txt: `python -m benchmarks.zoo.choose`, some four minutes.

The two models with fewest parameters of each of timm's model modules, then the third of each, the fourth, until there are 200.
The same timm gives the same list.
"""

import contextlib
import itertools
import warnings

import timm
import torch

from benchmarks.zoo.models import TIMM_LIST
from paredown.measure.cost import count_parameters

COUNT = 200


def parameters(name: str) -> int:
    """Without allocating them, where the constructor doesn't read values."""
    for device in ("meta", "cpu"):
        with contextlib.suppress(Exception), torch.device(device):
            return count_parameters(timm.create_model(name, pretrained=False))
    raise RuntimeError(f"timm can't build {name}")


def choose(count: int = COUNT) -> list[str]:
    """Names, module by module, ascending by size; of models of one module with equally many parameters only the first."""
    by_module: list[list[str]] = []
    for module in timm.list_modules():
        sizes: dict[int, str] = {}
        for name in timm.list_models(module=module):
            sizes.setdefault(parameters(name), name)
        by_module.append([name for _, name in sorted(sizes.items())])
    ranked = itertools.zip_longest(*by_module)
    taken = set(itertools.islice((n for rank in ranked for n in rank if n), count))
    return [name for names in by_module for name in names if name in taken]


def main() -> None:
    warnings.simplefilter("ignore")
    TIMM_LIST.write_text("\n".join(choose()) + "\n")


if __name__ == "__main__":
    main()
