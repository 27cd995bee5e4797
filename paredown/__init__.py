"""Pare a trained PyTorch model down to a budget: prune, distill, quantize, measured on the file that ships.

Names are loaded when first used, so that `import paredown` costs little. What a step's config holds (`Widths`, `Schedule`, ...)
and what a run returns (`Candidate`, ...) is here too, though `__all__` leaves it out. What `search` takes is in `paredown.nas`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paredown.core.artifact import Artifact as Artifact
    from paredown.core.artifact import Candidate as Candidate
    from paredown.core.budget import Budget
    from paredown.core.effort import Effort
    from paredown.core.errors import ParedownError
    from paredown.core.knowledge import DKD as DKD
    from paredown.core.knowledge import AttentionMaps as AttentionMaps
    from paredown.core.knowledge import AttentionTransfer as AttentionTransfer
    from paredown.core.knowledge import Blocks as Blocks
    from paredown.core.knowledge import BoundedRegression as BoundedRegression
    from paredown.core.knowledge import Contrastive as Contrastive
    from paredown.core.knowledge import Embedding as Embedding
    from paredown.core.knowledge import Hint as Hint
    from paredown.core.knowledge import Relational as Relational
    from paredown.core.knowledge import SequenceLevel as SequenceLevel
    from paredown.core.knowledge import Similarity as Similarity
    from paredown.core.knowledge import TokenLevel as TokenLevel
    from paredown.core.knowledge import ValueRelations as ValueRelations
    from paredown.core.measurement import Measurement as Measurement
    from paredown.core.recipe import Recipe
    from paredown.core.report import Report as Report
    from paredown.core.steps import Activations as Activations
    from paredown.core.steps import ChannelAttention as ChannelAttention
    from paredown.core.steps import Distill, Prune, Quantize, Sparsify
    from paredown.core.steps import MixedBits as MixedBits
    from paredown.core.steps import Schedule as Schedule
    from paredown.core.steps import Slimming as Slimming
    from paredown.core.steps import Weights as Weights
    from paredown.core.steps import Widths as Widths
    from paredown.core.subnets import Subnets as Subnets
    from paredown.core.subnets import SubnetSpace as SubnetSpace
    from paredown.core.target import Target
    from paredown.core.training import Resume as Resume
    from paredown.core.training import Training
    from paredown.deploy.session import load
    from paredown.distillation.compared import propose_pairs as propose_pairs
    from paredown.distillation.teachers import Cached as Cached
    from paredown.distillation.teachers import MovingAverage as MovingAverage
    from paredown.pipeline.after_quantization import AfterQuantization as AfterQuantization
    from paredown.pipeline.analyze import analyze
    from paredown.pipeline.apply import apply
    from paredown.pipeline.architecture import elastic_space as elastic_space
    from paredown.pipeline.architecture import search_subnets
    from paredown.pipeline.chain import distill_chain
    from paredown.pipeline.checkpoint import load_checkpoint, save_checkpoint
    from paredown.pipeline.compress import compress
    from paredown.pipeline.joint import JointEvaluator as JointEvaluator
    from paredown.pipeline.search import search
    from paredown.pipeline.steps import distill, export, prune, quantize, sparsify
    from paredown.quantization.bits import layer_bits as layer_bits
    from paredown.task.metric import CORPUS, PER_SAMPLE, Metric, top1
    from paredown.task.task import Task
    from paredown.train.masks import keep_sparse_ as keep_sparse_

__version__ = "0.1.0"

_HOME = {
    "Artifact": "core.artifact", "Candidate": "core.artifact", "Budget": "core.budget", "Effort": "core.effort",
    "ParedownError": "core.errors", "Measurement": "core.measurement", "Report": "core.report", "Target": "core.target",
    "Distill": "core.steps", "Prune": "core.steps", "Quantize": "core.steps", "Sparsify": "core.steps",
    "Training": "core.training", "Resume": "core.training", "Cached": "distillation.teachers",
    "MovingAverage": "distillation.teachers", "DKD": "core.knowledge", "BoundedRegression": "core.knowledge",
    "ChannelAttention": "core.steps", "Schedule": "core.steps", "Slimming": "core.steps",
    "Widths": "core.steps", "MixedBits": "core.steps", "Activations": "core.steps", "Weights": "core.steps",
    "Recipe": "core.recipe",
    "AttentionMaps": "core.knowledge", "ValueRelations": "core.knowledge", "Blocks": "core.knowledge",
    "Hint": "core.knowledge", "AttentionTransfer": "core.knowledge", "Similarity": "core.knowledge",
    "Embedding": "core.knowledge", "Contrastive": "core.knowledge", "TokenLevel": "core.knowledge",
    "SequenceLevel": "core.knowledge", "Relational": "core.knowledge", "propose_pairs": "distillation.compared",
    "CORPUS": "task.metric", "PER_SAMPLE": "task.metric", "Metric": "task.metric",
    "top1": "task.metric", "Task": "task.task", "load": "deploy.session", "analyze": "pipeline.analyze",
    "apply": "pipeline.apply", "load_checkpoint": "pipeline.checkpoint", "save_checkpoint": "pipeline.checkpoint",
    "compress": "pipeline.compress", "distill": "pipeline.steps", "distill_chain": "pipeline.chain",
    "export": "pipeline.steps", "prune": "pipeline.steps",
    "quantize": "pipeline.steps", "layer_bits": "quantization.bits", "sparsify": "pipeline.steps",
    "keep_sparse_": "train.masks",
    "search": "pipeline.search",
    "AfterQuantization": "pipeline.after_quantization", "JointEvaluator": "pipeline.joint", "SubnetSpace": "core.subnets",
    "Subnets": "core.subnets", "search_subnets": "pipeline.architecture", "elastic_space": "pipeline.architecture",
}  # fmt: skip

__all__ = [
    "CORPUS",
    "PER_SAMPLE",
    "Budget",
    "Distill",
    "Effort",
    "Metric",
    "ParedownError",
    "Prune",
    "Quantize",
    "Recipe",
    "Sparsify",
    "Target",
    "Task",
    "Training",
    "analyze",
    "apply",
    "compress",
    "distill",
    "distill_chain",
    "export",
    "load",
    "load_checkpoint",
    "prune",
    "quantize",
    "save_checkpoint",
    "search",
    "search_subnets",
    "sparsify",
    "top1",
]


def __getattr__(name: str) -> Any:
    if name == "nas":
        return importlib.import_module("paredown.nas")
    if name not in _HOME:
        raise AttributeError(f"module 'paredown' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"paredown.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
