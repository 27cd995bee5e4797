"""Language models: token by token, on text that the teacher writes, with and without labels, masks and padding."""

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paredown
from paredown import Distill, Task, Training
from paredown.core.effort import Effort
from paredown.core.errors import RecipeError, TaskError
from paredown.core.knowledge import SequenceLevel, TokenLevel
from paredown.distillation.language import Writer, counted_tokens, tokens_of
from paredown.distillation.losses.language import sequence_loss, token_loss
from paredown.distillation.objective import Objective
from paredown.distillation.teacher import Teacher

VOCABULARY = 12
TOKENS = torch.randint(1, VOCABULARY, (16, 10), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(TOKENS).tril(6)
LONGER = Training(effort=Effort(30, "steps"), learning_rate=0.5, weight_decay=0)


class Causal(nn.Module):
    """tokens (batch, sequence) -> logits (batch, sequence, vocabulary), each from the tokens up to there."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, width), nn.Linear(2 * width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        before = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return self.head(torch.cat([x, before], 2))


class Masked(Causal):
    """Inputs by name, and a second output as caches of keys and values are."""

    def forward(self, attention_mask: Tensor, input_ids: Tensor) -> Any:  # type: ignore[override]  # other inputs
        return {"logits": super().forward(input_ids), "cache": attention_mask * 1.0}


def model(kind: type[Causal] = Causal, seed: int = 0) -> Causal:
    torch.manual_seed(seed)
    made = kind().eval()
    with torch.no_grad():
        made.head.weight.mul_(4)
    return made


def next_token(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:])


def agreement(logits: Tensor, tokens: Tensor) -> Tensor:
    return (logits[:, :-1].argmax(-1) == tokens[:, 1:]).double().mean(1)


def task_of(teacher: nn.Module, *, labels: bool = False) -> Task:
    train = [(part, part if labels else None) for part in TOKENS.split(8)]
    return Task(teacher, (TOKENS[:2],), train, [(TOKENS, TOKENS)], loss=next_token, metric=agreement)


@pytest.mark.parametrize(("labels", "hard_weight"), [(False, 0.0), (True, 0.2)])
def test_a_language_model_learns_token_by_token_with_and_without_labels(labels: bool, hard_weight: float) -> None:
    teacher, student = model(), model(seed=1)
    config = Distill(hard_weight=hard_weight, temperature=1.0, soft=TokenLevel(), training=LONGER)
    found = paredown.distill(task_of(teacher, labels=labels), config, model=student)
    with torch.no_grad():
        before, after = (float(token_loss(each(TOKENS), teacher(TOKENS))) for each in (student, found))
    assert after < 0.5 * before


def test_tokens_that_do_not_count_change_nothing() -> None:
    teacher, student = model(Masked), model(Masked, seed=1)
    inputs = {"attention_mask": MASK, "input_ids": TOKENS}
    config = Distill(hard_weight=0, temperature=2.0, soft=TokenLevel(mask="attention_mask"))
    validation = [(inputs, TOKENS)]
    task = Task(teacher, inputs, [(inputs, None)], validation, metric=lambda out, y: agreement(out["logits"], y))
    found = Objective(task, config, Teacher(teacher))(student, (inputs, None))
    expected = token_loss(student(**inputs)["logits"], teacher(**inputs)["logits"], MASK, temperature=2.0)
    assert torch.allclose(found, expected)
    assert not torch.allclose(found, token_loss(student(**inputs)["logits"], teacher(**inputs)["logits"], temperature=2.0))


def test_padding_and_mask_are_both_heeded() -> None:
    padded = TOKENS.masked_fill(TOKENS == 3, 0)
    assert counted_tokens(padded, TokenLevel()) is None
    by_token = counted_tokens(padded, TokenLevel(padding=0))
    both = counted_tokens((padded, MASK), TokenLevel(mask=1, padding=0))
    assert by_token is not None and torch.equal(by_token, padded != 0)
    assert both is not None and torch.equal(both, (padded != 0) & (MASK != 0))


def greedy(teacher: nn.Module, tokens: Tensor, prompt: int) -> Tensor:
    text = tokens[:, :prompt]
    while text.shape[1] < tokens.shape[1]:
        text = torch.cat([text, teacher(text)[:, -1:].argmax(-1)], 1)
    return text


def test_the_teacher_goes_on_from_each_prompt_and_writes_it_once() -> None:
    asked = Teacher(model())
    writer = Writer(asked, SequenceLevel(prompt=3))
    written = writer(TOKENS)
    assert torch.equal(written.tokens, greedy(asked.model, TOKENS, 3))
    assert torch.equal(written.counted, (torch.arange(10) >= 3).expand(16, 10))
    computed = asked.computed
    again = writer(TOKENS.flip(0))
    assert asked.computed == computed and torch.equal(again.tokens, written.tokens.flip(0))


def test_what_is_drawn_of_a_sample_does_not_hang_on_the_rest_of_the_batch() -> None:
    config = SequenceLevel(prompt=3, sampling=1.0)
    whole, part = (Writer(Teacher(model()), config)(tokens).tokens for tokens in (TOKENS, TOKENS[5:7]))
    assert torch.equal(whole[5:7], part)
    assert not torch.equal(whole, greedy(model(), TOKENS, 3))


def test_text_counts_up_to_its_end() -> None:
    tokens = greedy(model(), TOKENS, 3)
    end = int(tokens[0, 5])
    counted = Writer(Teacher(model()), SequenceLevel(prompt=3, end=end))(TOKENS).counted
    first = int((tokens[0, 3:] == end).nonzero()[0]) + 3
    assert counted[0].tolist() == [3 <= i <= first for i in range(10)]


def test_the_mask_of_written_text_is_one_and_cut_along() -> None:
    inputs = {"attention_mask": MASK, "input_ids": TOKENS}
    teacher = model(Masked)
    written = Writer(Teacher(teacher), SequenceLevel(prompt=3, mask="attention_mask"))(inputs)
    assert isinstance(written.inputs, dict) and bool((written.inputs["attention_mask"] == 1).all())
    assert torch.equal(written.inputs["input_ids"], written.tokens)


@pytest.mark.parametrize("hard_weight", [0.0, 0.2])
def test_the_student_learns_to_tell_what_the_teacher_writes(hard_weight: float) -> None:
    teacher, student, level = model(), model(seed=1), SequenceLevel(prompt=3)
    config = Distill(hard_weight=hard_weight, soft=level, training=LONGER)
    found = paredown.distill(task_of(teacher, labels=hard_weight > 0), config, model=student)
    text = Writer(Teacher(teacher), level)(TOKENS)
    with torch.no_grad():
        before, after = (float(sequence_loss(each(text.tokens), text.tokens, text.counted)) for each in (student, found))
    assert after < 0.5 * before


@pytest.mark.parametrize(
    ("soft", "error", "match"),
    [
        (TokenLevel(mask="attention_mask"), RecipeError, r"'attention_mask'; inputs are 0"),
        (SequenceLevel(prompt=10), TaskError, r"longer than the prompt of 10 tokens, got 10; write prompt=1"),
    ],
)
def test_inputs_that_do_not_fit_are_errors(soft: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        paredown.distill(task_of(model()), Distill(hard_weight=0, soft=soft, training=LONGER), model=model(seed=1))


def test_the_students_own_average_cannot_write() -> None:
    with pytest.raises(RecipeError, match="its own moving average; write soft=TokenLevel"):
        paredown.distill(task_of(model()), Distill(hard_weight=0, soft=SequenceLevel()), teacher="ema")


def test_outputs_of_another_form_are_an_error(small_resnet: nn.Module) -> None:
    x = torch.randn(4, 1, 8, 8)
    task = Task(small_resnet, (x,), [(x, None)], [(x, torch.zeros(4).long())])
    with pytest.raises(TaskError, match=r"first output, got \(4, 10\)"):
        paredown.distill(task, Distill(hard_weight=0, soft=TokenLevel()))


@pytest.mark.parametrize("soft", [TokenLevel(), SequenceLevel(prompt=4)], ids=lambda soft: soft.kind)
def test_stories260k_takes_both_levels(shared_data: ModuleType, soft: Any) -> None:
    llama = shared_data.TinyLlama().eval()
    tokens = torch.randint(3, 512, (8, 8), generator=torch.Generator().manual_seed(0))
    task = Task(llama, (tokens[:2],), [(tokens, tokens)], [(tokens, tokens)], loss=next_token, metric=agreement)
    student = copy.deepcopy(llama)
    with torch.no_grad():
        for layer in student.layers:
            layer["w2"].weight.zero_()
    training = Training(effort=Effort(15, "steps"), optimizer="adamw", learning_rate=3e-4)
    config = Distill(temperature=1.0, hard_weight=0, soft=soft, training=training)
    found = paredown.distill(task, config, model=student)
    teacher = Teacher(llama)
    writer = Writer(teacher, soft) if isinstance(soft, SequenceLevel) else None
    objective = Objective(task, config, teacher, writer=writer)
    with torch.no_grad():
        before, after = (float(objective(each, (tokens, None))) for each in (student, found))
    assert after < before


class Conditioned(nn.Module):
    """(tokens, number of the sample) -> logits in which that number is the next token."""

    def forward(self, tokens: Tensor, number: Tensor) -> Tensor:
        return F.one_hot(number, VOCABULARY)[:, None].expand(-1, tokens.shape[1], -1).float()


def test_text_hangs_on_everything_that_is_given() -> None:
    writer = Writer(Teacher(Conditioned()), SequenceLevel(prompt=1))
    tokens = torch.zeros(3, 4, dtype=torch.int64)
    assert writer((tokens, torch.tensor([2, 4, 6]))).tokens[:, 1:].tolist() == [[2] * 3, [4] * 3, [6] * 3]
    assert writer((tokens[:1], torch.tensor([1]))).tokens[:, 1:].tolist() == [[1] * 3]


def test_tokens_are_called_input_ids_where_a_mask_comes_first() -> None:
    found = tokens_of({"attention_mask": MASK, "input_ids": TOKENS}, None)
    assert found is TOKENS
