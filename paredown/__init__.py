"""Pare a trained PyTorch model down to a budget: prune, distill, quantize, measured on the file that ships.

Names are loaded when first used, so that `import paredown` costs little.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paredown.core.artifact import Artifact, Candidate
    from paredown.core.budget import Budget
    from paredown.core.effort import Effort
    from paredown.core.errors import ParedownError
    from paredown.core.measurement import Measurement
    from paredown.core.recipe import Distill, Prune, Quantize, Recipe, Training
    from paredown.core.report import Report
    from paredown.core.target import Target
    from paredown.deploy.session import load
    from paredown.pipeline.analyze import analyze
    from paredown.pipeline.apply import apply
    from paredown.pipeline.checkpoint import load_checkpoint, save_checkpoint
    from paredown.pipeline.compress import compress
    from paredown.pipeline.steps import distill, export, prune, quantize
    from paredown.task.metric import CORPUS, PER_SAMPLE, Metric, top1
    from paredown.task.task import Task

__version__ = "0.1.0"

_HOME = {
    "Artifact": "core.artifact", "Candidate": "core.artifact", "Budget": "core.budget", "Effort": "core.effort",
    "ParedownError": "core.errors", "Measurement": "core.measurement", "Report": "core.report", "Target": "core.target",
    "Distill": "core.recipe", "Prune": "core.recipe", "Quantize": "core.recipe", "Recipe": "core.recipe",
    "Training": "core.recipe", "CORPUS": "task.metric", "PER_SAMPLE": "task.metric", "Metric": "task.metric",
    "top1": "task.metric", "Task": "task.task", "load": "deploy.session", "analyze": "pipeline.analyze",
    "apply": "pipeline.apply", "load_checkpoint": "pipeline.checkpoint", "save_checkpoint": "pipeline.checkpoint",
    "compress": "pipeline.compress", "distill": "pipeline.steps", "export": "pipeline.steps", "prune": "pipeline.steps",
    "quantize": "pipeline.steps",
}  # fmt: skip

__all__ = [
    "CORPUS",
    "PER_SAMPLE",
    "Artifact",
    "Budget",
    "Candidate",
    "Distill",
    "Effort",
    "Measurement",
    "Metric",
    "ParedownError",
    "Prune",
    "Quantize",
    "Recipe",
    "Report",
    "Target",
    "Task",
    "Training",
    "analyze",
    "apply",
    "compress",
    "distill",
    "export",
    "load",
    "load_checkpoint",
    "prune",
    "quantize",
    "save_checkpoint",
    "top1",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'paredown' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"paredown.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
