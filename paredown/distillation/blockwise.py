"""Blocks of a student, each trained by itself for what the same block of the teacher gives: no labels, all blocks in one pass.

    L = sum over blocks of |f_s(x) - f_t(x_t)|^2 / |f_t(x_t)|^2

f_t(x_t): what the teacher's block gives on the teacher's input, of it the indices that the student kept. Gradients stay within a
block, so that no block waits for another, and a pass costs what one of plain distillation costs.

x, the block's input: the student's own by default, so that a block also makes up for what the blocks before it lost, as in
channel pruning by reconstruction (He et al., arXiv:1707.06168) and in AdaRound (Nagel et al., arXiv:2004.10568). The
teacher's (Li et al., arXiv:1911.13053) makes blocks independent of each other, but none ever sees the error that it will get, and
errors add up with depth.

A block whose error on held-out samples has not fallen afterwards keeps the weights that it had. They come from the validation
batches, of which no target is read.

ResNet-20 at half of its MACs, without labels, on one thread, top-1 of 2,000 validation images, one seed: batch norms recalibrated
65.7, solved by least squares 81.8; blocks trained for 20 s from the first 69.3, from the second 81.7 (80.0 on the teacher's
inputs); soft labels for 20 s from the first 80.5, from the second 81.6. There it gains nothing on what is solved already.

Blocks come from the teacher's graph (`graph/blocks.py`), kept indices from the manifest of the cut. A quantized model is one
graph without modules: there a block is what the same module's operators have become.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from paredown.core.errors import TaskError
from paredown.core.knowledge import Blocks
from paredown.core.progress import Progress, silent
from paredown.distillation.features import fed, observed
from paredown.distillation.lineage import lineage, relative
from paredown.distillation.taps import tapped
from paredown.distillation.teacher import frozen as frozen_copy
from paredown.distillation.teacher import placed
from paredown.graph.blocks import Block, Kept, blocks_of, shared
from paredown.graph.manifest import Manifest, manifest_of
from paredown.graph.surgery import take
from paredown.task.batches import Batch, Inputs, apply_tensors, batch_size, call, device_of, each, evaluating, tensors, unfused
from paredown.task.task import Task
from paredown.train.freeze import require_modules
from paredown.train.loop import fit_
from paredown.train.state import Keeping, named_tensors

_SMALLEST = 1e-12  # of a mean square that is divided by
_HELD_OUT = 256  # samples that tell whether a block is better


def learn_blocks_(
    student: nn.Module,
    teacher: nn.Module,
    task: Task,
    config: Blocks,
    *,
    frozen: Collection[str] = (),
    seed: int = 0,
    progress: Progress = silent,
    keeping: Keeping | None = None,
) -> tuple[str, ...]:
    """Trains the blocks where they stand, in place. -> the names of those that are better now, in the order in which they run.

    student: cut from the teacher, or quantized, or sparse. Left alone: what `task.protect` and `frozen` name, what lies
    outside of blocks, and blocks that share a weight with another. As before: blocks whose error on held-out samples didn't
    fall. The teacher is not touched. keeping: as `fit_` takes it.
    Raises TaskError for a student that doesn't descend from the teacher, or where nothing is a block; TraceError where
    torch.export can't follow the teacher; what training raises.
    """
    still = (*task.protect, *frozen)
    blocks = _learning(student, teacher, task, still)
    require_modules(student, config.training)
    local = _Local(blocks, frozen_copy(teacher), config.inputs == "teacher")
    with local.listening(student) as trained:
        guard = _Guard(local, trained, student, _held_out(task, student))
        fit_(trained, task.train, local, config.training, frozen=still, seed=seed, progress=progress, keeping=keeping)
        better = guard.restore_()
    student.eval()
    return better


def _learning(student: nn.Module, teacher: nn.Module, task: Task, still: Sequence[str]) -> list[Block]:
    if isinstance(student, fx.GraphModule):
        manifest = getattr(student, "manifest", None)
    else:
        lineage(teacher, student)
        manifest = manifest_of(student)
    cut = relative(manifest_of(teacher) or Manifest(), manifest or Manifest())
    found = blocks_of(teacher, task.inputs, cut, dynamic=task.dynamic)
    names = {block.name for block in found} & {name for name, _ in student.named_modules()}
    names -= shared(names, student)
    kept = tuple(f"{name}." for name in still)
    blocks = [b for b in found if b.name in names and not f"{b.name}.".startswith(kept) and _trains(student, b.name)]
    if not blocks:
        raise TaskError(
            "blocks of the teacher must be blocks of the student that can be trained",
            got="none",
            remedy="protect less, or leave reconstruct out",
        )
    return blocks


def _trains(model: nn.Module, name: str) -> bool:
    return any(p.requires_grad for p in model.get_submodule(name).parameters())


@dataclass(eq=False)
class _Local:
    """The loss for the training loop. feeds: the student's blocks get the teacher's inputs."""

    blocks: Sequence[Block]
    teacher: nn.Module
    feeds: bool
    given: dict[str, Tensor] = field(default_factory=dict)  # to the teacher's blocks, kept indices
    ours: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor:
        return torch.stack(list(self.errors(student, batch[0]).values())).sum()

    def errors(self, student: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        """Of each block by name, in order; scalars."""
        theirs = self._ask(inputs)
        self.ours = {}
        with evaluating(student), unfused():
            call(student, inputs)
        missing = [block.name for block in self.blocks if block.name not in self.ours]
        if missing:
            raise TaskError("every block must run on every batch", got=f"nothing from {missing[0]}", remedy="protect it")
        return {block.name: relative_error(self.ours[block.name], theirs[block.name]) for block in self.blocks}

    @torch.no_grad()
    def _ask(self, inputs: Any) -> dict[str, Tensor]:
        """What the teacher's blocks give. What comes after them in place doesn't reach it."""
        leaving = {block.name: block.leaving for block in self.blocks}
        entering = {block.name: block.entering for block in self.blocks}
        found: dict[str, Tensor] = {}

        def note(name: str, output: Any) -> None:
            found[name] = _part(tensors(output)[0], leaving[name])

        def note_input(name: str, given: Any) -> None:
            self.given[name] = _part(tensors(given)[0], entering[name])

        with ExitStack() as stack:
            stack.enter_context(unfused())
            stack.enter_context(observed(self.teacher, leaving, note))
            if self.feeds:
                stack.enter_context(observed(self.teacher, entering, note_input, of="input"))
            call(placed(self.teacher, inputs), inputs)
        return found

    @contextmanager
    def listening(self, student: nn.Module) -> Iterator[nn.Module]:
        """The student, or a view of its graph, whose blocks get inputs without history and whose outputs are noted."""
        names = [block.name for block in self.blocks]
        if isinstance(student, fx.GraphModule):
            yield tapped(student, names, lambda _, given: given.detach(), self._leave)
            return
        with fed(student, names, self._enter), observed(student, names, self._leave):
            yield student

    def _enter(self, name: str, given: Any) -> Any:
        if not self.feeds:
            return apply_tensors(given, lambda t: t.detach().clone() if t.requires_grad else t)
        first = iter([self.given[name]])
        return apply_tensors(given, lambda t: next(first, t))

    def _leave(self, name: str, output: Any) -> None:
        self.ours[name] = tensors(output)[0]


class _Guard:
    """The blocks as they are now, with their errors, to go back to where training makes them no better.

    trained: what `listening` gives of the student. batches: inputs that aren't trained on.
    """

    def __init__(self, local: _Local, trained: nn.Module, student: nn.Module, batches: Sequence[Inputs]) -> None:
        self._local, self._trained, self._batches = local, trained, batches
        self._tensors = {b.name: list(named_tensors(student.get_submodule(b.name)).values()) for b in local.blocks}
        self._values = {name: [tensor.detach().clone() for tensor in tensors] for name, tensors in self._tensors.items()}
        self._errors = self._measured()

    @torch.no_grad()
    def restore_(self) -> tuple[str, ...]:
        """Blocks that are no better get their old values. -> the names of the others.

        One at a time, the first one first: the blocks after it may be worse only for what it hands them.
        """
        better = list(self._errors)
        while True:
            now = self._measured()
            worse = [name for name in better if not now[name] < self._errors[name]]  # a NaN is no better
            if not worse:
                return tuple(better)
            for tensor, value in zip(self._tensors[worse[0]], self._values[worse[0]], strict=True):
                tensor.copy_(value)
            better.remove(worse[0])

    @torch.no_grad()
    def _measured(self) -> dict[str, float]:
        """The mean over the batches."""
        found = [self._local.errors(self._trained, inputs) for inputs in self._batches]
        return {name: float(torch.stack([errors[name] for errors in found]).mean()) for name in found[0]}


def _held_out(task: Task, student: nn.Module) -> list[Inputs]:
    """Some validation batches, at least _HELD_OUT samples where there are as many."""
    found, samples = list[Inputs](), 0
    for inputs, _ in each(task.validation, "validation", device_of(student)):
        found.append(inputs)
        samples += batch_size(inputs)
        if samples >= _HELD_OUT:
            break
    return found


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Outputs of one shape -> scalar: the mean squared difference over the mean square of the teacher's."""
    return (student - teacher).square().mean() / teacher.square().mean().clamp_min(_SMALLEST)


def _part(tensor: Tensor, kept: Kept) -> Tensor:
    """A copy of the kept indices."""
    return take(tensor, kept) if kept else tensor.clone()
