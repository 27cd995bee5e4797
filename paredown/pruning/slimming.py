"""Network Slimming (Liu et al., arXiv:1708.06519, eq. 1): train with an L1 penalty on the scales of batch norms, prune by them.

    minimize  loss + penalty * sum |gamma|,   gamma: every batch-norm scale of a channel that may be removed
The penalty drives the scales of channels that the loss can do without towards 0; the trained copy is what is cut then, by
`importance/bn_scale.py`. Scales of channels that can't be removed are left alone: shrinking them would gain nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paredown.core.errors import NotTrainableError, RecipeError
from paredown.core.progress import Progress, silent
from paredown.core.steps import Slimming
from paredown.graph.groups import Groups
from paredown.graph.manifest import Manifest
from paredown.graph.surgery import cut
from paredown.pruning.importance.gradients import task_loss
from paredown.pruning.scores import batch_norm_scales
from paredown.task.batches import Batch
from paredown.task.task import Task
from paredown.train.freeze import require_modules
from paredown.train.loop import fit_
from paredown.train.state import Keeping


def slim(
    model: nn.Module,
    task: Task,
    groups: Groups,
    config: Slimming,
    *,
    seed: int = 0,
    progress: Progress = silent,
    keeping: Keeping | None = None,
) -> nn.Module:
    """A copy of the model, trained with the penalty, in evaluation mode. The model is not touched. keeping: as `fit_` takes it.

    Raises RecipeError where no channel that may be removed has a batch norm with a scale, NotTrainableError where all those
    scales are frozen, BatchError where targets are missing, TrainingDivergedError.
    """
    require_modules(model, config.training)
    copy = cut(model, Manifest())
    names = _penalized(copy, groups)
    objective = task_loss(task, "Slimming")

    def loss(trained: nn.Module, batch: Batch) -> Tensor:
        value = objective(trained, batch)
        return value + config.penalty * l1_norm([copy.get_parameter(name) for name in names])

    return fit_(
        copy,
        task.train,
        loss,
        config.training,
        frozen=task.protect,
        seed=seed,
        progress=lambda _, done: progress("slimming", done),
        keeping=keeping,
    )


def l1_norm(scales: Sequence[Tensor]) -> Tensor:
    """Each (channels,) -> scalar."""
    return torch.stack([scale.abs().sum() for scale in scales]).sum()


def _penalized(model: nn.Module, groups: Groups) -> list[str]:
    """Names of the batch-norm scales that lie in a dependency group and train."""
    inside = {s.tensor for group in groups.groups for s in group.slices}
    scales = [name for name in batch_norm_scales(model) if name in inside]
    if not scales:
        raise RecipeError(
            "Slimming needs batch norms with scales on the channels that may be removed",
            got="a model without them",
            remedy='write importance="taylor", or ChannelAttention()',
        )
    training = [name for name in scales if model.get_parameter(name).requires_grad]
    if not training:
        raise NotTrainableError(
            "Slimming trains the scales of batch norms", got="all of them frozen", remedy="call model.requires_grad_(True)"
        )
    return training
