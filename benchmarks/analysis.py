"""What analysing a model costs: our dependency groups against Torch-Pruning's, in CPU seconds of one thread.

    python -m benchmarks.analysis [NAME ...]      about 10 minutes on one core; names: of the models, else all of them

Models of the zoo with random weights and the smallest input that they take (benchmarks/zoo/models.py). Per model, the least of
RUNS runs each: ours without the seconds of torch.export, torch.export's, and both; Torch-Pruning's graph and the listing of its
groups. Ours includes cutting the model and comparing it with the masked original, which Torch-Pruning doesn't do.
"""

import gc
import importlib.metadata
import signal
import sys
import time
from typing import Any

import torch
from torch import nn

from benchmarks.record import write
from benchmarks.zoo.child import analysed
from benchmarks.zoo.models import build
from paredown.core.target import Target
from paredown.task.batches import Inputs

RUNS = 1
_PATIENCE = 60  # seconds for one run of Torch-Pruning, which doesn't end on every model
TORCHVISION = (
    "resnet18", "resnet50", "vgg16_bn", "densenet121", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny",
    "vit_b_16", "swin_t", "inception_v3", "shufflenet_v2_x1_0", "regnet_y_400mf",
)  # fmt: skip
TIMM = ("deit_tiny_patch16_224", "resnest14d", "mobilevit_xxs", "densenet121", "dla46_c", "edgenext_xx_small")
_PACKAGES = ("torch", "torchvision", "timm", "torch-pruning")


def main(names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    models = [("torchvision", name) for name in TORCHVISION] + [("timm", name) for name in TIMM]
    wanted = [(source, name) for source, name in models if not names or name in names]
    _warm_up()
    rows = []
    for source, name in wanted:
        rows.append({"source": source, "model": name} | measured(source, name))
        print(rows[-1], flush=True)
    if not names:
        versions = "; ".join(f"{package}={importlib.metadata.version(package)}" for package in _PACKAGES)
        write("analysis.csv", [{**row, "versions": versions} for row in rows], Target(threads=1))


def measured(source: str, name: str) -> dict[str, Any]:
    """The row of one model. Where a tool fails, the error stands in place of its seconds."""
    model, inputs = build(source, name)
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "runs": RUNS}
    try:
        runs = [_ours(model, inputs) for _ in range(RUNS)]
        row |= {key: min(run[key] for run in runs) for key in runs[0]}
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:200]
    try:
        runs = [_peer(*build(source, name)) for _ in range(RUNS)]
        row |= {key: min(run[key] for run in runs) for key in runs[0]}
    except Exception as error:
        row["tp_error"] = f"{type(error).__name__}: {error}"[:200]
    if "analysis_seconds" in row and "tp_seconds" in row:
        row["analysis_ratio"] = row["analysis_seconds"] / row["tp_seconds"]
        row["total_ratio"] = row["total_seconds"] / row["tp_seconds"]
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def _ours(model: nn.Module, inputs: Inputs) -> dict[str, float]:
    gc.collect()
    groups, own, traced = analysed(model, inputs)
    return {"groups": len(groups.groups), "analysis_seconds": own, "export_seconds": traced, "total_seconds": own + traced}


def _peer(model: nn.Module, inputs: Inputs) -> dict[str, float]:
    import torch_pruning as tp

    gc.collect()
    signal.signal(signal.SIGALRM, _expired)
    signal.alarm(_PATIENCE)
    last = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1:]
    start = time.process_time()
    try:
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
        found = len(list(graph.get_all_groups(ignored_layers=last)))
    finally:
        signal.alarm(0)
    return {"tp_groups": found, "tp_seconds": time.process_time() - start}


def _expired(*_: object) -> None:
    raise TimeoutError(f"not finished after {_PATIENCE} s")


def _warm_up() -> None:
    """Both tools import much at their first call."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    inputs = torch.randn(3, 3, 8, 8)
    _ours(model, inputs)
    _peer(model, inputs)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
