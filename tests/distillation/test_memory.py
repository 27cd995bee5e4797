"""What a teacher gave, kept on disk: read back as it was, by another process, and never another model's."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Distill, Task, Training
from paredown.core.effort import Effort
from paredown.core.errors import ArtifactError, RecipeError
from paredown.distillation.teacher import Teacher
from paredown.distillation.teachers import Cached
from tests.conftest import make_small_resnet

X = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def filled(model: nn.Module, folder: Path) -> Teacher:
    teacher = Teacher(model, folder=folder)
    for rows in (slice(0, 5), slice(5, 12)):
        teacher(X[rows])
    teacher.keep()
    return teacher


def test_another_teacher_of_the_same_weights_reads_what_was_kept_bit_for_bit(small_resnet: nn.Module, tmp_path: Path) -> None:
    first = filled(small_resnet, tmp_path)
    again = Teacher(make_small_resnet(), folder=tmp_path)
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(X[shuffled])[0], first(X)[0][shuffled])
    assert first.computed == 12 and again.computed == 12  # the first batch, which is held against the file


def test_other_weights_have_a_folder_of_their_own(small_resnet: nn.Module, tmp_path: Path) -> None:
    filled(small_resnet, tmp_path)
    other = Teacher(make_small_resnet(seed=1), folder=tmp_path)
    other(X)
    other.keep()
    assert other.computed == 12 and len(list(tmp_path.iterdir())) == 2


def test_samples_that_are_new_are_computed_and_added(small_resnet: nn.Module, tmp_path: Path) -> None:
    filled(small_resnet, tmp_path)
    more = torch.cat([X[:3], X[:3] + 1])
    for expected in (3 + 3, 6):
        teacher = Teacher(small_resnet, folder=tmp_path)
        assert torch.allclose(teacher(more)[0], small_resnet(more), atol=1e-5)
        assert teacher.computed == expected
        teacher.keep()


def test_what_never_comes_again_is_not_left_on_disk(small_resnet: nn.Module, tmp_path: Path) -> None:
    teacher = Teacher(small_resnet, folder=tmp_path, batches_per_pass=2)
    for call in range(4):
        teacher(X + call)
        teacher.keep()
    assert not teacher.remembers and not list(tmp_path.rglob("*.safetensors"))


def test_what_is_kept_for_others_is_given_up_only_when_the_next_training_finds_nothing(
    small_resnet: nn.Module, tmp_path: Path
) -> None:
    """Each training sees other samples in each pass, the second one those of the first."""

    def trained(shift: int) -> Teacher:
        teacher = Teacher(small_resnet, folder=tmp_path, batches_per_pass=2, lasting=True)
        for call in range(6):
            teacher(X + call + shift)
            teacher.keep()
        return teacher

    first, second, third = trained(0), trained(0), trained(100)
    assert first.remembers and first.computed == 6 * 12
    assert second.remembers and second.computed == 12
    assert not third.remembers
    assert trained(0).computed == 12


class Scaled(nn.Module):
    """Its code can change while its weights don't."""

    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layer(x) * self.scale, "rows": x.sum(1)}


def test_outputs_of_code_that_has_changed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Scaled(), torch.randn(4, 3)
    first = Teacher(model, folder=tmp_path)
    first(x)
    first.keep()
    assert [tuple(t.shape) for t in Teacher(model, folder=tmp_path)(x)] == [(4, 2), (4,)]
    monkeypatch.setattr(Scaled, "scale", 2.0)
    with pytest.raises(ArtifactError, match="the model's code has changed"):
        Teacher(model, folder=tmp_path)(x)


def test_a_broken_file_is_an_error_with_its_remedy(small_resnet: nn.Module, tmp_path: Path) -> None:
    filled(small_resnet, tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="delete their folder"):
        Teacher(small_resnet, folder=tmp_path)


def test_no_more_is_kept_than_there_is_room_for(small_resnet: nn.Module, tmp_path: Path) -> None:
    for _ in range(2):
        teacher = Teacher(small_resnet, folder=tmp_path, bytes_at_most=4 * (300 + 40))  # 4 samples of 10 classes
        teacher(X[:4])
        teacher(X[4:8])
        teacher.keep()
    known = Teacher(small_resnet, folder=tmp_path)
    known(X[:8])
    assert known.computed == 4 + 4


def test_the_next_student_asks_the_teacher_nothing(tmp_path: Path) -> None:
    teacher, calls = make_small_resnet(), []
    config = Distill(hard_weight=0, training=Training(effort=Effort(4, "steps")))
    task = Task(teacher, (X[:2],), [(X[:6], None), (X[6:], None)], [(X, torch.zeros(12).long())])
    teacher.register_forward_hook(lambda *_: calls.append(1))
    students = []
    for _ in range(2):
        students.append(paredown.distill(task, config, model=make_small_resnet(seed=2), teacher=Cached(teacher, tmp_path)))
        calls.append(0)
    assert calls == [1, 1, 0, 1, 0]  # two batches; then one sample to hold against the file
    assert all(torch.equal(a, b) for a, b in zip(*(s.state_dict().values() for s in students), strict=True))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Cached("resnet", "runs"), r"got str; write Cached\(model, folder\)"),  # type: ignore[arg-type]  # bad on purpose
        (lambda: Cached(nn.Linear(1, 1), ""), "kept in a folder"),
        (lambda: Cached(nn.Linear(1, 1), "runs", bytes_at_most=0), "got 0"),
    ],
)
def test_a_cache_that_cannot_be_is_an_error(make: object, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        make()  # type: ignore[operator]  # a function
