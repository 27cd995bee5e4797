"""What a student is trained on: outputs, labels and hidden layers, by the weights that the config gives or by balance.

    loss = (1 - hard_weight) soft + hard_weight hard + sum of weight * feature loss

Balance: on the first batch each feature loss gets a scale that makes its gradient, over the weights of the student, as long as
that of the first two terms together (of the first feature loss, where there are none), times its weight over the default
one. A loss that has no gradient on that batch keeps its weight.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from paredown.core.errors import TaskError
from paredown.core.knowledge import OfAttention, SequenceLevel, TokenLevel
from paredown.core.steps import Distill
from paredown.distillation.attended import Attended, attended_loss
from paredown.distillation.attention import Attention, attentions
from paredown.distillation.compared import Compared, feature_loss
from paredown.distillation.features import with_features
from paredown.distillation.language import Writer, counted_tokens
from paredown.distillation.losses.language import sequence_loss, token_loss
from paredown.distillation.losses.soft_labels import blend
from paredown.distillation.outputs import hard_loss, logits_of, soft_loss
from paredown.distillation.spread import Spread
from paredown.distillation.teacher import Asked
from paredown.task.batches import Batch, Inputs, batch_size, call, fitting, tensors
from paredown.task.task import Task
from paredown.train.batchnorm import needing_two_samples
from paredown.train.state import under


@dataclass(frozen=True)
class _Seen:
    """What one model gives on a batch: its output, the features of its modules, its attentions."""

    output: Any = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    attentions: list[Attention] = field(default_factory=list)


@dataclass
class Objective:
    """A loss for the training loop. teacher: None where nothing is asked of one.

    compared, attended: the pairs of the feature losses. writer: of the text for a SequenceLevel.
    """

    task: Task
    config: Distill
    teacher: Asked | None = None
    compared: Sequence[Compared] = ()
    attended: Sequence[Attended] = ()
    writer: Writer | None = None
    scales: list[float] | None = None
    spread: Spread = field(default_factory=Spread)  # of the teacher's outputs, for soft="regression"

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor:
        if self.teacher is None:
            return self.config.hard_weight * hard_loss(self.task, student, batch, None)
        ours, theirs = self._look(student, self.teacher, batch[0])
        base = self._base(student, batch, ours.output, theirs.output)
        if not self.config.features and base is not None:
            return base
        terms = [
            attended_loss(feature, self.attended, ours.attentions, theirs.attentions)
            if isinstance(feature, OfAttention)
            else feature_loss(feature, self.compared, ours.features, theirs.features)
            for feature in self.config.features
        ]
        if self.scales is None:
            self.scales = self._scales(student, base, terms)
        scaled = [scale * term for scale, term in zip(self.scales, terms, strict=True)]
        return torch.stack([*scaled, *([] if base is None else [base])]).sum()

    def keep(self) -> dict[str, Tensor]:
        """What must be kept to go on later (`train.state.Carried`)."""
        found = {} if self.scales is None else {"scales": torch.tensor(self.scales, dtype=torch.float64)}
        for name, part in self._parts():
            found |= {} if part is None else {f"{name}/{key}": tensor for key, tensor in part.keep().items()}
        return found

    def take_up_(self, kept: Mapping[str, Tensor]) -> None:
        self.scales = kept["scales"].tolist() if "scales" in kept else None
        for name, part in self._parts():
            if part is not None:
                part.take_up_(under(f"{name}/", kept))

    def _parts(self) -> tuple[tuple[str, Asked | Writer | Spread | None], ...]:
        return ("teacher", self.teacher), ("text", self.writer), ("spread", self.spread)

    def _look(self, student: nn.Module, teacher: Asked, inputs: Inputs) -> tuple["_Seen", "_Seen"]:
        """What both give on the batch; nothing where they are compared on the teacher's text alone."""
        if self.writer is not None and not self.config.features:
            return _Seen(), _Seen()
        samples = batch_size(inputs)
        with fitting("train", inputs), needing_two_samples(), _watching(self.attended, samples) as our_attentions:
            before = [tensor._version for tensor in tensors(inputs)]
            output, ours = _seen(student, inputs, [each.pair.student for each in self.compared])
        if before != [tensor._version for tensor in tensors(inputs)]:
            raise TaskError(
                "a model must leave its inputs as they are, for the teacher gets them too",
                got="inputs that forward changed in place",
                remedy="write x = x - 1 for x -= 1 in forward, or give it x.clone()",
            )
        with _watching(self.attended, samples) as their_attentions:
            wanted, theirs = self._asked(teacher, inputs)
        return _Seen(output, ours, our_attentions), _Seen(wanted, theirs, their_attentions)

    def _base(self, student: nn.Module, batch: Batch, output: Any, wanted: Any) -> Tensor | None:
        """Soft and hard loss by their weights; None where there is neither."""
        config, base = self.config, None
        if config.soft is not None and config.hard_weight < 1:
            base = self._soft(student, batch, output, wanted)
        if config.hard_weight > 0:
            hard = hard_loss(self.task, student, batch, output)
            base = config.hard_weight * hard if base is None else blend(base, hard, config.hard_weight)
        return base

    def _soft(self, student: nn.Module, batch: Batch, output: Any, wanted: Any) -> Tensor:
        match self.config.soft:
            case SequenceLevel():
                assert self.writer is not None  # made with the objective
                text = self.writer(batch[0])
                return sequence_loss(logits_of(call(student, text.inputs)), text.tokens, text.counted)
            case TokenLevel():
                mask = counted_tokens(batch[0], self.config.soft)
                return token_loss(logits_of(output), logits_of(wanted), mask, temperature=self.config.temperature)
            case None:
                raise AssertionError("without a soft loss none is asked for")
            case kind:
                variances = self.spread(wanted) if kind == "regression" else None
                return soft_loss(kind, output, wanted, batch[1], self.config.temperature, variances)

    def _asked(self, teacher: Asked, inputs: Inputs) -> tuple[list[Tensor], dict[str, Tensor]]:
        names = [each.pair.teacher for each in self.compared]
        return teacher.features(inputs, names) if names or self.attended else (teacher(inputs), {})

    def _scales(self, student: nn.Module, base: Tensor | None, terms: list[Tensor]) -> list[float]:
        weights = [feature.weight for feature in self.config.features]
        if not self.config.balance:
            return weights
        adapters = {id(p) for each in self.compared if each.adapter is not None for p in each.adapter.parameters()}
        shared = [p for p in student.parameters() if p.requires_grad and id(p) not in adapters]
        relative = [feature.weight / type(feature)().weight for feature in self.config.features]
        return balanced(base, terms, weights, relative, shared)


def balanced(
    base: Tensor | None, terms: Sequence[Tensor], weights: Sequence[float], relative: Sequence[float], shared: Sequence[Tensor]
) -> list[float]:
    """A scale for each term: `relative` times the length of the base's gradient over its own; `weights` where that can't be."""
    lengths = [_length(term, shared) for term in terms]
    wanted = next((length for length in lengths if length > 0), 0.0) if base is None else _length(base, shared)
    return [
        share * wanted / length if length > 0 and wanted > 0 else weight
        for length, weight, share in zip(lengths, weights, relative, strict=True)
    ]


def _length(term: Tensor, shared: Sequence[Tensor]) -> float:
    """Of the gradient by the weights."""
    if not term.requires_grad:
        return 0.0
    found = torch.autograd.grad(term, shared, retain_graph=True, allow_unused=True)
    squares = [gradient.double().square().sum() for gradient in found if gradient is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _watching(attended: Sequence[Attended], samples: int) -> AbstractContextManager[list[Attention]]:
    """Attentions are watched only where some are compared: watching costs a little at every call of torch."""
    return attentions(samples) if attended else nullcontext([])


def _seen(student: nn.Module, inputs: Inputs, names: list[str]) -> tuple[Any, dict[str, Tensor]]:
    return with_features(student, inputs, names) if names else (call(student, inputs), {})
