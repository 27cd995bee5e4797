"""A task checks its parts against one another; each misfit is a typed error with a remedy."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown.core.errors import (
    BatchError,
    MetricError,
    NotFiniteError,
    NotTrainableError,
    ParedownError,
    TaskError,
)
from paredown.task.batches import apply_tensors, call, each, tensors
from paredown.task.metric import CORPUS, Metric
from paredown.task.task import Task

X, Y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


def task(**changes: Any) -> Task:
    fields: dict[str, Any] = {"model": nn.Linear(4, 3), "example_inputs": (X[:2],), "train": [(X, Y)], "validation": [(X, Y)]}
    return Task(**(fields | changes))


class NanModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] * self.weight * float("nan")


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"logits": self.linear(a + b)}


def with_value(value: float) -> Tensor:
    x = X.clone()
    x[3, 1] = value
    return x


def one_shot() -> Iterator[Any]:
    yield X, Y


BAD: list[tuple[str, type[ParedownError], dict[str, Any], str]] = [
    ("model is a class", TaskError, {"model": nn.Linear}, "pass the module itself"),
    ("example is a bare tensor", TaskError, {"example_inputs": X}, "example_inputs=(x,)"),
    ("example has one sample", TaskError, {"example_inputs": (X[:1],)}, "stack two samples"),
    ("example does not fit", BatchError, {"example_inputs": (torch.randn(2, 5),)}, "what forward takes"),
    ("example holds NaN", NotFiniteError, {"example_inputs": (with_value(float("nan")),)}, "missing value"),
    ("output is NaN", NotFiniteError, {"model": NanModel()}, "division by zero"),
    ("train is empty", BatchError, {"train": []}, "path and split"),
    ("train is one-shot", BatchError, {"train": one_shot()}, "not a generator"),
    ("validation is one-shot", BatchError, {"validation": iter([(X, Y)])}, "not a generator"),
    ("train is no iterable", BatchError, {"train": 3}, "a list or a DataLoader"),
    ("batch is no pair", BatchError, {"train": [X]}, "(inputs, None)"),
    ("batch is a triple", BatchError, {"train": [(X, Y, Y)]}, "(inputs, None)"),
    ("inputs are a string", BatchError, {"train": [("text", Y)]}, "torch.as_tensor"),
    ("inputs are a scalar", BatchError, {"train": [(torch.tensor(1.0), Y)]}, "batch dimension"),
    ("batch of no samples", BatchError, {"train": [(X[:0], Y[:0])]}, "batch dimension"),
    ("batch does not fit", BatchError, {"validation": [(torch.randn(6, 5), Y)]}, "what forward takes"),
    ("inputs hold infinity", NotFiniteError, {"train": [(with_value(float("inf")), Y)]}, "missing value"),
    ("validation has no target", BatchError, {"validation": [(X, None)]}, "only train"),
    ("loss is per sample", TaskError, {"loss": nn.CrossEntropyLoss(reduction="none")}, "mean over the batch"),
    ("loss does not fit", TaskError, {"loss": lambda output: output}, "call it on"),
    ("loss is NaN", NotFiniteError, {"loss": lambda output, target: output.sum() * float("nan")}, "log(0)"),
    (
        "metric is a mean",
        MetricError,
        {"metric": lambda output, target: (output.argmax(1) == target).double().mean()},
        "kind=CORPUS",
    ),
    ("metric raises", MetricError, {"metric": lambda output: 1}, "call it on"),
    ("metric is NaN", MetricError, {"metric": lambda output, target: torch.full((6,), float("nan"))}, "guard its division"),
    ("metric is no function", MetricError, {"metric": "top1"}, "paredown.top1"),
    ("corpus metric gives a tensor", MetricError, {"metric": Metric(lambda output, target: output, CORPUS)}, "kind=PER_SAMPLE"),
    ("model is scripted", TaskError, {"model": torch.jit.script(nn.Linear(4, 3))}, "made from"),
    (
        "an input has its batch elsewhere",
        BatchError,
        {"model": nn.Bilinear(4, 4, 3), "example_inputs": (X[:2], X[:3])},
        "transpose in forward",
    ),
    ("model has no weights yet", TaskError, {"model": nn.Linear(4, 3, device="meta")}, "load them"),
    ("dynamic names no input", TaskError, {"dynamic": {"x": {1: "length"}}}, "its inputs are input"),
    ("dynamic without dimensions", TaskError, {"dynamic": {"input": 1}}, 'write dynamic={"input": {1: "length"}}'),
    ("dynamic beyond the input", TaskError, {"dynamic": {"input": {2: "length"}}}, "count them from 0"),
    ("protect names nothing", TaskError, {"protect": ("head",)}, "named_modules"),
]


@pytest.mark.parametrize(("error", "changes", "remedy"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_a_typed_error_with_its_remedy(error: type[ParedownError], changes: dict[str, Any], remedy: str) -> None:
    with pytest.raises(error) as caught:
        task(**changes)
    assert remedy in caught.value.remedy
    assert caught.value.rule in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "remedy"), [({"kind": "per sample"}, "kind=paredown.CORPUS"), ({"higher_is_better": "no"}, "=False")]
)
def test_metric_whose_kind_or_direction_is_a_word_is_refused(fields: dict[str, Any], remedy: str) -> None:
    with pytest.raises(MetricError, match=remedy):
        Metric(paredown.top1.fn, **fields)


def needing_all_classes(output: Tensor, target: Tensor) -> float:
    if len(target.unique()) < 3:
        raise ValueError("a class is missing")
    return float((output.argmax(1) == target).double().mean())


def test_corpus_metric_that_one_batch_is_too_little_for_is_tried_on_the_whole_split() -> None:
    by_class = [(X[i : i + 1], Y[i : i + 1]) for i in range(3)]
    assert task(metric=Metric(needing_all_classes, CORPUS), validation=by_class).validation == by_class
    with pytest.raises(MetricError, match="a class is missing"):
        task(metric=Metric(needing_all_classes, CORPUS), validation=by_class[:2])


def test_a_good_task_is_taken_and_its_model_keeps_its_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout())
    model[1].eval()
    made = task(model=model)
    assert made.name == "Sequential" and model.training and not model[1].training


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: torch.compile(nn.DataParallel(model))])
def test_wrapped_model_is_taken_for_the_module_within(wrap: Any) -> None:
    model = nn.Linear(4, 3)
    made = task(model=wrap(model))
    assert made.model is model and made.name == "Linear"


def test_inputs_may_be_a_dict_and_outputs_any_nest() -> None:
    batch = ({"a": X, "b": X}, Y)
    metric = Metric(lambda output, target: (output["logits"].argmax(1) == target).double())
    made = task(
        model=TwoInputs(), example_inputs={"a": X[:2], "b": X[:2]}, train=[batch], validation=[batch], metric=metric,
        loss=lambda output, target: nn.functional.cross_entropy(output["logits"], target),
    )  # fmt: skip
    assert call(made.model, made.inputs)["logits"].shape == (2, 3)


def test_a_list_of_inputs_is_positional() -> None:
    (inputs, _), *_ = each([([X, X], Y)], "train")
    assert isinstance(inputs, tuple)


def test_train_may_go_without_targets() -> None:
    assert task(train=[(X, None)]).train == [(X, None)]


def test_a_frozen_model_makes_a_task_but_can_not_train() -> None:
    frozen = task(model=nn.Linear(4, 3).requires_grad_(False))
    with pytest.raises(NotTrainableError, match="requires_grad_"):
        frozen.require_trainable()


def test_nothing_trains_in_inference_mode() -> None:
    with torch.inference_mode(), pytest.raises(NotTrainableError, match="outside of inference mode"):
        task().require_trainable()


def test_top1_is_one_where_the_largest_logit_is_the_label() -> None:
    values = paredown.top1.per_sample(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([1, 1]), 2)
    assert values.tolist() == [1.0, 0.0]


@dataclasses.dataclass
class _Answer:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    note: str = "kept"


def test_tensors_of_a_dataclass_are_its_fields_in_order() -> None:
    answer = _Answer(torch.tensor([1.0]), (torch.tensor([2.0]), torch.tensor([3.0])))
    assert [float(tensor) for tensor in tensors({"a": answer, "b": torch.tensor(4.0)})] == [1, 2, 3, 4]
    doubled = apply_tensors(answer, lambda tensor: 2 * tensor)
    assert [float(tensor) for tensor in tensors(doubled)] == [2, 4, 6]
    assert isinstance(doubled, _Answer) and doubled.note == "kept"


@dataclasses.dataclass
class _Moved:
    """Made from what it is given, once."""

    corner: Tensor
    far: Tensor = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.corner = self.corner + 1
        self.far = self.corner + 1


def test_a_dataclass_is_not_made_anew_for_its_tensors() -> None:
    moved = apply_tensors(_Moved(torch.tensor([1.0])), lambda tensor: 10 * tensor)
    assert [float(tensor) for tensor in tensors(moved)] == [20, 30]
