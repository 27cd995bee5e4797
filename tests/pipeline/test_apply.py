"""A recipe that was interrupted goes on with the step, and in the step, where it stopped."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paredown
from paredown import Distill, Prune, Recipe, Sparsify, Task, Training
from paredown.core.effort import Effort
from paredown.core.training import Resume
from paredown.pipeline import apply as doing
from paredown.pipeline.steps import prune_resumable

SHORT = Training(effort=Effort(12, "steps"))
RECIPE = Recipe((Prune(ratio=0.4), Distill(training=SHORT), Sparsify(ratio=0.3), Distill(hard_weight=1.0, training=SHORT)))


class Interrupting:
    """The task's loss; it stops the run in one of the steps that train."""

    def __init__(self, at: int = 10**9) -> None:
        self.at, self.steps = at, 0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        self.steps += output.requires_grad
        if self.steps > self.at:
            raise KeyboardInterrupt
        return F.cross_entropy(output, target)


def test_an_interrupted_recipe_ends_with_the_same_model(
    pattern_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, cut = torch.get_num_threads(), []
    torch.set_num_threads(1)

    def run(loss: Interrupting, resume: Resume | None) -> nn.Module:
        return paredown.apply(dataclasses.replace(pattern_task, loss=loss), RECIPE, resume=resume)

    def counted(*given: Any, **options: Any) -> nn.Module:
        cut.append(1)
        return prune_resumable(*given, **options)

    try:
        whole = run(Interrupting(), None).state_dict()
        with pytest.raises(KeyboardInterrupt):
            run(Interrupting(at=20), Resume(tmp_path, steps=5))
        monkeypatch.setattr(doing, "prune_resumable", counted)
        rest = Interrupting()
        resumed = run(rest, Resume(tmp_path, steps=5)).state_dict()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert not cut and rest.steps == 12 - 5  # of the second training, which was stopped in its ninth


def test_what_is_finished_is_not_done_again(pattern_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe((Prune(ratio=0.4),))
    first = paredown.apply(pattern_task, recipe, resume=tmp_path)
    monkeypatch.setattr(doing, "prune_resumable", lambda *_, **__: pytest.fail("cut again"))
    again = paredown.apply(pattern_task, recipe, resume=tmp_path)
    assert [tuple(p.shape) for p in again.parameters()] == [tuple(p.shape) for p in first.parameters()]
