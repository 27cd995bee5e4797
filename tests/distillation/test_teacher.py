import pytest
import torch
from torch import Tensor, nn

from paredown.core.errors import NotFiniteError, TaskError
from paredown.distillation.teacher import Teacher
from paredown.task.batches import digests
from paredown.train.state import model_digest

X = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_outputs_are_the_models_own(small_resnet: nn.Module) -> None:
    teacher = Teacher(small_resnet)
    expected = small_resnet(X)
    for rows in (slice(0, 6), slice(6, 12), slice(3, 9), slice(0, 12)):
        assert torch.allclose(teacher(X[rows])[0], expected[rows], atol=1e-5)


def test_each_sample_is_computed_once_however_the_batches_are_made_up(small_resnet: nn.Module) -> None:
    teacher = Teacher(small_resnet, batches_per_pass=2)
    for _ in range(4):
        for rows in torch.randperm(12).split(6):
            teacher(X[rows])
    assert teacher.computed == 12


def test_only_the_missing_samples_of_a_batch_are_computed(small_resnet: nn.Module) -> None:
    teacher = Teacher(small_resnet)
    teacher(X[:8])
    assert torch.allclose(teacher(X)[0], small_resnet(X), atol=1e-5)
    assert teacher.computed == 12


def test_memory_format_of_the_inputs_does_not_matter(small_resnet: nn.Module) -> None:
    teacher = Teacher(small_resnet)
    x = torch.randn(4, 1, 8, 8)
    teacher(x)
    teacher(x.contiguous(memory_format=torch.channels_last))
    assert teacher.computed == 4


def test_remembering_ends_after_a_pass_without_hits(small_resnet: nn.Module) -> None:
    teacher = Teacher(small_resnet, batches_per_pass=3)
    for call in range(6):
        assert teacher.remembers
        teacher(torch.randn(4, 1, 8, 8) + call)
    assert not teacher.remembers
    assert torch.allclose(teacher(X)[0], small_resnet(X), atol=1e-5)


def test_no_more_is_remembered_than_there_is_room_for(small_resnet: nn.Module) -> None:
    teacher = Teacher(small_resnet, bytes_at_most=4 * (300 + 40))  # 4 samples of 10 classes
    for _ in range(3):
        teacher(X[:4])
        teacher(X[4:8])
    assert teacher.computed == 4 + 3 * 4


def test_the_model_is_neither_changed_nor_shared(small_resnet: nn.Module) -> None:
    small_resnet.train()
    before = {name: value.clone() for name, value in small_resnet.state_dict().items()}
    teacher = Teacher(small_resnet)
    expected = teacher(X)[0]
    assert small_resnet.training and all(parameter.requires_grad for parameter in small_resnet.parameters())
    assert all(torch.equal(value, before[name]) for name, value in small_resnet.state_dict().items())
    assert all(parameter.is_contiguous() for parameter in small_resnet.parameters())
    with torch.no_grad():
        small_resnet.get_submodule("head").bias += 100
    assert torch.allclose(teacher(X + 0.0)[0], expected)
    assert not teacher(torch.randn(2, 1, 8, 8))[0].requires_grad
    assert float(teacher(torch.randn(2, 1, 8, 8))[0].max()) < 50


class Nest(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, object]:
        x = ids.double() * mask
        return {"logits": x, "rest": (x.sum(1), ids)}


def test_named_inputs_and_nested_outputs() -> None:
    teacher = Teacher(Nest())
    inputs = {"ids": torch.arange(12).view(4, 3), "mask": torch.tensor([[1, 1, 0]] * 4)}
    first, again = teacher(inputs), teacher(inputs)
    assert [tuple(t.shape) for t in again] == [(4, 3), (4,)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert teacher.computed == 4


def test_outputs_without_a_row_per_sample_are_not_remembered() -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(0)

    teacher = Teacher(Pooled())
    x = torch.randn(4, 3)
    assert torch.equal(teacher(x)[0], x.mean(0))
    assert torch.equal(teacher(x)[0], x.mean(0))
    assert not teacher.remembers


@pytest.mark.parametrize(
    "other",
    [X + 1e-6, X.double(), X.view(12, 1, 64), {"x": X, "mask": torch.zeros(12)}, (X, torch.ones(1))],
)
def test_digests_tell_different_samples_apart(other: object) -> None:
    assert len(set(digests(X))) == 12
    assert not set(digests(X)) & set(digests(other))  # type: ignore[arg-type]  # each is a form of inputs


def test_a_hit_in_the_call_that_ends_the_remembering_is_still_served(small_resnet: nn.Module) -> None:
    teacher = Teacher(small_resnet, batches_per_pass=200)
    x = torch.randn(401, 1, 8, 8)
    for index in range(399):
        teacher(x[index : index + 1])
    last = torch.cat([x[:1], x[400:]])  # the second pass ends here, with one hit in 201 samples
    assert torch.allclose(teacher(last)[0], small_resnet(last), atol=1e-5)
    assert not teacher.remembers


def test_what_is_no_tensor_tells_samples_apart() -> None:
    class Switched(nn.Module):
        def forward(self, x: Tensor, flip: bool) -> Tensor:
            return -x if flip else x

    teacher, x = Teacher(Switched()), torch.randn(4, 3)
    assert torch.equal(teacher({"x": x, "flip": False})[0], x)
    assert torch.equal(teacher({"x": x, "flip": True})[0], -x)
    assert set(digests({"a": x, "b": -x})).isdisjoint(digests({"b": x, "a": -x}))


def test_a_model_that_looks_at_its_whole_batch_is_asked_each_time() -> None:
    teacher = Teacher(nn.BatchNorm1d(3, track_running_stats=False))
    x = torch.randn(6, 3) * torch.arange(1, 7)[:, None]
    teacher(x)
    rows = torch.tensor([5, 0, 3])
    assert torch.allclose(teacher(x[rows])[0], nn.BatchNorm1d(3, track_running_stats=False)(x[rows]), atol=1e-5)


def test_outputs_as_long_as_their_batch_are_computed_where_they_differ() -> None:
    class Padded(nn.Module):
        def forward(self, x: Tensor, length: Tensor) -> Tensor:
            return x[:, : int(length.max())]

    teacher, x, lengths = Teacher(Padded()), torch.randn(4, 5), torch.tensor([2, 2, 5, 5])
    teacher((x[:2], lengths[:2]))
    teacher((x[2:], lengths[2:]))
    rows = torch.tensor([0, 3])
    assert torch.equal(teacher((x[rows], lengths[rows]))[0], x[rows])


def test_inputs_without_a_row_for_each_sample_are_asked_each_time() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, factor: Tensor) -> Tensor:
            return x * factor

    teacher, x = Teacher(Scaled()), torch.randn(4, 3)
    for _ in range(2):
        assert torch.equal(teacher((x, torch.tensor(2.0)))[0], 2 * x)
    assert teacher.computed == 8 and teacher.remembers


def test_a_teacher_of_other_inputs_or_of_nan_is_told_as_such() -> None:
    with pytest.raises(TaskError, match="a teacher must take the batches that the student is trained on"):
        Teacher(nn.Conv2d(3, 4, 3))(X)
    with pytest.raises(NotFiniteError, match="outputs of a teacher must be finite, got NaN"):
        Teacher(nn.Threshold(0, float("nan")))(X)


def test_activations_tell_models_apart() -> None:
    layer = nn.Linear(3, 3)
    assert model_digest(nn.Sequential(layer, nn.ReLU())) != model_digest(nn.Sequential(layer, nn.ReLU6()))
    assert model_digest(nn.Sequential(layer, nn.ReLU())) == model_digest(nn.Sequential(layer, nn.ReLU()))
