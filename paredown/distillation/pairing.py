"""Pairs of layers for a student that was not cut from its teacher: proposed, to be looked at, and overridden where wrong.

Both models run once on a batch. Where both go through the same two or more resolutions, the largest module at each is matched
with the largest of the other: `layer2` with `layer2`. Else the student's stage ends are matched, the last modules at each
resolution and evenly spaced ones where the resolution stays. Each gets a teacher's module of the same resolution where there
is one, where both models repeat a block throughout, as transformers do, one of its blocks; among those the order is kept, and the
sum of

    cka(student, teacher) - |depth of the student's module - depth of the teacher's|,   depths from 0 to 1

is the largest that there is.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from paredown.core.errors import RecipeError, TaskError
from paredown.core.fields import count as count_of
from paredown.distillation.axes import channel_axes
from paredown.distillation.cka import alignment, centred_gram
from paredown.distillation.features import observed
from paredown.distillation.graph_lineage import descent
from paredown.distillation.lineage import Pair
from paredown.task.batches import Inputs, batch_size, call, evaluating, tensors


@dataclass(frozen=True, eq=False)
class Seen:
    """A module's output on the batch: where in the pass it came (0 to 1), its resolution, channels, and centred gram."""

    name: str
    depth: float
    space: tuple[int, ...]
    channels: int
    axis: int
    gram: Tensor


def propose(
    teacher: nn.Module,
    student: nn.Module,
    inputs: Inputs,
    *,
    count: int = 4,
    overrides: Mapping[str, str] | None = None,
) -> list[Pair]:
    """At most `count` pairs, in order of depth. Neither model is touched. Widths may differ: then the pair needs an adapter.

    inputs: a batch, the more samples the better the alignment. overrides: {the student's module: the teacher's}; these stand,
    and nothing else is proposed for the student's modules among them.
    Raises RecipeError where an override names no module, TaskError where nothing can be paired.
    """
    count_of("count", count)
    fixed = dict(overrides or {})
    stages = same_resolutions(*(see(model, inputs, grams=False) for model in (student, teacher)))
    if stages and not fixed:
        return [Pair(s.name, t.name, None, s.axis, exact=False) for s, t in stages[-count:]]
    ours, theirs = see(student, inputs), see(teacher, inputs)
    _check_overrides(fixed, ours, theirs)
    alike = repeated(student, ours), repeated(teacher, theirs)
    some, others = alike if all(alike) else (ours, theirs)
    free = [seen for seen in stage_ends(some, count) if seen.name not in fixed][: max(0, count - len(fixed))]
    chosen = [(seen, others[i]) for seen, i in zip(free, align(free, others), strict=True)]
    named = {seen.name: seen for seen in theirs}
    chosen += [(seen, named[fixed[seen.name]]) for seen in ours if seen.name in fixed]
    if not chosen:
        raise TaskError(
            "teacher and student must have modules whose outputs have the batch on dimension 0",
            got="none",
            remedy="name pairs yourself",
        )
    chosen.sort(key=lambda pair: pair[0].depth)
    return [Pair(s.name, t.name, None, s.axis, exact=False) for s, t in chosen]


def lineage_ends(teacher: nn.Module, student: nn.Module, inputs: Inputs, *, count: int = 4) -> list[Pair]:
    """Of the pairs that lineage gives those at stage ends: as much as hidden losses need, at a fraction of the cost."""
    pairs = {pair.student: pair for pair in descent(teacher, student, inputs)}
    ends = stage_ends(see(student, inputs, grams=False, names=pairs), count)
    return [pairs[seen.name] for seen in ends]


def see(model: nn.Module, inputs: Inputs, *, grams: bool = True, names: Collection[str] | None = None) -> list[Seen]:
    """Every module below the model, or of these names, in the order in which they finish, that gives features (batch, ...).

    grams: without them, which take the time, nothing can be aligned.
    """
    samples, axes = batch_size(inputs), channel_axes(model, inputs)
    found: dict[str, Seen] = {}

    def add(name: str, output: Any) -> None:
        first = next(iter(tensors(output)), None)
        if first is not None and first.is_floating_point() and first.dim() > 1 and first.shape[0] == samples:
            axis = axes.get(name, 1)
            space = tuple(first.shape[2:]) if axis == 1 else tuple(first.shape[1:-1])
            found[name] = Seen(name, len(found), space, first.shape[axis], axis, centred_gram(first if grams else first[:0]))

    if names is None:
        names = [name for name, _ in model.named_modules() if name and _gives_features(model, name)]
    with evaluating(model), torch.no_grad(), observed(model, names, add):
        call(model, inputs)
    last = max(1, len(found) - 1)
    return [dataclasses.replace(each, depth=each.depth / last) for each in found.values()]


def _gives_features(model: nn.Module, name: str) -> bool:
    """Of a quantized model, which is one graph, what stands behind an operator: its other quantizers hold weights and biases."""
    return not isinstance(model, fx.GraphModule) or not name.startswith("quantizers.") or name.endswith(":output")


def stage_ends(seen: Sequence[Seen], count: int) -> list[Seen]:
    """The last module of each run of one resolution, evenly spaced ones between where those are fewer than `count`."""
    if not seen or count < 1:
        return []
    ends = [i for i, each in enumerate(seen) if i + 1 == len(seen) or seen[i + 1].space != each.space]
    # With a resolution, where any has one: the classifier's logits have losses of their own.
    taken = [i for i, each in enumerate(seen) if each.space] or list(range(len(seen)))
    ends = [i for i in ends if i in taken][-count:]
    wanted = min(count, len(taken))
    evenly = [taken[round((i + 1) * len(taken) / wanted) - 1] for i in range(wanted)]
    for i in evenly:
        if len(ends) < wanted and i not in ends:
            ends.append(i)
    return [seen[i] for i in sorted(ends)]


def same_resolutions(ours: Sequence[Seen], theirs: Sequence[Seen]) -> list[tuple[Seen, Seen]]:
    """The largest modules of both at each resolution of more than one position; none where these differ or are fewer than two.

    Of modules at one resolution the largest count: `layer2`, and not the first
    convolution of `layer3`, which runs before the stride.
    """
    found = [_largest(seen) for seen in (ours, theirs)]
    if len(found[0]) < 2 or list(found[0]) != list(found[1]):
        return []
    return [(found[0][space], found[1][space]) for space in found[0]]


def _largest(seen: Sequence[Seen]) -> dict[tuple[int, ...], Seen]:
    """By resolution, in the order in which these come, the module with the most modules inside; of equals the last."""
    inside = Counter(name[:i] for name in (each.name for each in seen) for i, letter in enumerate(name) if letter == ".")
    found: dict[tuple[int, ...], Seen] = {}
    for each in seen:
        if math.prod(each.space) > 1:
            before = found.get(each.space)
            if before is None or inside[each.name] >= inside[before.name]:
                found[each.space] = each
    return found


def repeated(model: nn.Module, seen: Sequence[Seen]) -> list[Seen]:
    """Of the modules that were seen the blocks, of one class and with parts, that the model is a list of, if all have one
    resolution. Lists inside blocks don't count.
    """
    names = [
        f"{path}.{child}" if path else child
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for child, block in module.named_children()
        if sum(type(other) is type(block) for other in module) > 1 and next(block.children(), None) is not None
    ]
    outermost = {name for name in names if not any(name.startswith(f"{other}.") for other in names)}
    found = [each for each in seen if each.name in outermost]
    return found if len({each.space for each in found}) == 1 else []


def align(ours: Sequence[Seen], theirs: Sequence[Seen]) -> list[int]:
    """For each of ours the position of one of theirs, not descending, so that the sum of the scores is largest."""
    if not ours or not theirs:
        return []
    best = [0.0] * len(theirs)  # of all before, where the last of them has a position up to this one
    choices: list[list[int]] = []
    for each in ours:
        scores = _scores(each, theirs)
        totals = [score + before for score, before in zip(scores, best, strict=True)]
        arg, top = [], -1
        for j, total in enumerate(totals):
            top = j if top < 0 or total > totals[top] else top
            arg.append(top)
        best = [totals[j] for j in arg]
        choices.append(arg)
    found, limit = [], len(theirs) - 1
    for arg in reversed(choices):
        limit = arg[limit]
        found.append(limit)
    return found[::-1]


def _scores(student: Seen, theirs: Sequence[Seen]) -> list[float]:
    """Another resolution costs more than any alignment is worth."""
    return [
        alignment(student.gram, other.gram) - abs(student.depth - other.depth) - (0 if other.space == student.space else 10)
        for other in theirs
    ]


def _check_overrides(overrides: Mapping[str, str], ours: Sequence[Seen], theirs: Sequence[Seen]) -> None:
    for names, seen, whose in ((overrides.keys(), ours, "student"), (overrides.values(), theirs, "teacher")):
        unknown = [name for name in names if name not in {each.name for each in seen}]
        if unknown:
            raise RecipeError(
                f"overrides must name modules of the {whose} that give features of the batch",
                got=unknown[0],
                remedy="see named_modules() for the names",
            )
