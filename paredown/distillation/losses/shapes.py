"""What the losses ask of the tensors that they compare."""

from torch import Tensor

from paredown.core.errors import TaskError


def same_shape(student: Tensor, teacher: Tensor, remedy: str) -> None:
    """Raises TaskError where the shapes differ."""
    if student.shape != teacher.shape:
        raise TaskError(
            "teacher and student must give tensors of one shape",
            got=f"{tuple(teacher.shape)} and {tuple(student.shape)}",
            remedy=remedy,
        )


def same_batch(student: Tensor, teacher: Tensor, dimensions: int = 1) -> None:
    """Raises TaskError where one has fewer dimensions than `dimensions` + 1, or the batches differ, or hold one sample only."""
    if min(student.dim(), teacher.dim()) <= dimensions or student.shape[0] != teacher.shape[0]:
        raise TaskError(
            f"teacher and student must give features of one batch, with at least {dimensions + 1} dimensions",
            got=f"{tuple(teacher.shape)} and {tuple(student.shape)}",
            remedy="capture both on the same inputs",
        )


def relations_between(student: Tensor, teacher: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Both as (batch, features), the teacher's without history. Raises TaskError for fewer than `samples`."""
    same_batch(student, teacher)
    if len(student) < samples:
        raise TaskError(
            f"relations between samples need batches of at least {samples}",
            got=len(student),
            remedy="use larger batches, and drop a last one that is too small",
        )
    return student.flatten(1), teacher.detach().flatten(1)


def class_axis(student: Tensor, teacher: Tensor) -> int:
    """Where the classes of logits lie: on the last of three dimensions (batch, sequence, classes), else on dimension 1.

    Raises TaskError where the shapes differ, or where there are fewer than 2 classes.
    """
    if student.shape != teacher.shape:
        raise TaskError(
            "teacher and student must give outputs of one shape",
            got=f"{tuple(teacher.shape)} and {tuple(student.shape)}",
            remedy="pass a teacher with the student's classes",
        )
    if not has_classes(student):
        raise TaskError(
            "soft labels need logits of at least 2 classes", got=tuple(student.shape),
            remedy='set soft="regression" for outputs that are numbers, "multi_label" for yes-or-no logits, or hard_weight=1',
        )  # fmt: skip
    return classes_at(student)


def has_classes(output: Tensor) -> bool:
    """Whether an output can be logits: at least 2 numbers where classes lie."""
    return output.dim() >= 2 and output.shape[classes_at(output)] >= 2


def classes_at(output: Tensor) -> int:
    """The dimension on which the classes of logits lie: the last of three, else dimension 1."""
    return 2 if output.dim() == 3 else 1
