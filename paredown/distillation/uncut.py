"""Which layers of a student compute what the teacher's compute, and so need no training: those before the first that differs.

Freezing them changes what the student can still learn by little, and the backward pass ends behind the last of them.
"""

from collections import Counter

import torch
from torch import nn

from paredown.distillation.features import observed
from paredown.graph.manifest import manifest_of
from paredown.task.batches import Inputs, call, evaluating, unfused
from paredown.train.state import named_tensors


def before_the_cut(teacher: nn.Module, student: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Names of layers, in the order in which they run in the teacher, up to the first one whose weights or statistics are not the
    teacher's own, bit for bit; none for a student of other layers.

    Left out are layers that run more than once, or share a weight: a later use of them has to be trained.
    """
    order = _order(teacher, inputs)
    ours, theirs = dict(student.named_modules()), dict(teacher.named_modules())
    runs, owners = Counter(order), Counter(id(p) for _, p in student.named_parameters(remove_duplicate=False))
    found: list[str] = []
    for name in dict.fromkeys(order):
        if name not in ours or not _same(ours[name], theirs[name]):
            break
        alone = runs[name] == 1 and all(owners[id(p)] == 1 for p in ours[name].parameters())
        if alone and not any(True for _ in ours[name].children()):
            found.append(name)
    return tuple(found)


def has_layers_of(teacher: nn.Module, student: nn.Module) -> bool:
    """Whether a student was cut, or has a module with tensors of the name, class and widths that it has in the teacher."""

    def described(model: nn.Module) -> set[tuple[object, ...]]:
        found = ((name, type(module), _own(module)) for name, module in model.named_modules())
        return {(name, kind, *(tensor.shape for tensor in own.values())) for name, kind, own in found if own}

    return manifest_of(student) is not None or not described(teacher).isdisjoint(described(student))


def _order(model: nn.Module, inputs: Inputs) -> list[str]:
    """Modules with tensors of their own, as they begin to run."""
    own = [name for name, module in model.named_modules() if module._parameters or module._buffers]
    order: list[str] = []
    with evaluating(model), torch.no_grad(), unfused(), observed(model, own, lambda name, _: order.append(name), of="input"):
        call(model, inputs)
    return order


def _same(student: nn.Module, teacher: nn.Module) -> bool:
    """Of a container the tensors of its own alone; its parts come in their turn."""
    first, second = (_own(module) for module in (student, teacher))
    return (
        type(student) is type(teacher)
        and first.keys() == second.keys()
        and all(map(torch.equal, first.values(), second.values()))
    )


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in named_tensors(module).items() if "." not in name}
