"""Each layer of a cut model, solved for the output that its original gives: least squares, no labels, no gradient.

He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks" (arXiv:1707.06168), section 3.1; as here with the
error of the layers before it in the input, and pulled towards the weights that the layer has:

    min over D   || Y - X (W + D) ||^2 + ridge mean(diag(X^T X)) || D ||^2

X: (rows, fan-in), what reaches the cut layer, a row a position of its output. Y: (rows, kept channels), what the original's layer
gives there, of the channels that were kept. W: (fan-in, kept channels), with the bias as one more row where there is one.

One pass of the original and one of the cut model suffice: a layer is solved at the moment its input arrives, and goes on with its
new weights. ResNet-20 at half of its MACs, without training: 84.0 % top-1 against 68.0 % with batch norms recalibrated; after an
epoch of training 88.4 against 88.6 (`benchmarks/results/reconstruction.csv`, 5,000 validation images).
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paredown.core.errors import TaskError
from paredown.distillation.features import observed
from paredown.distillation.lineage import Pair, lineage
from paredown.graph.manifest import manifest_of
from paredown.task.batches import Batches, Inputs, apply_tensors, batch_size, call, device_of, each, evaluating, tensors
from paredown.train.masks import sparse_names

_ROWS = 20_000  # of X at most
_FAN_IN = 5_000  # of a layer that is solved at most: memory and time grow with its square and its cube
_RIDGE = 1e-3
_VALUES = 10_000_000  # of the inputs together: activations of a whole network are held at once


def reconstruct_(
    student: nn.Module, teacher: nn.Module, batches: Batches, *, frozen: Collection[str] = (), samples: int = 1024, seed: int = 0
) -> int:
    """Solves convolutions and linear layers of a student that was cut from the teacher. -> how many changed.

    Left alone: a student that was not cut; convolutions that are grouped, depthwise or not in two dimensions; layers that run
    several times or share their weight, that need no gradient, that are sparse (a solution has no zeros), or have more than 5,000
    inputs. Where the outputs get no closer to the teacher's on samples that were not used, everything stays as it was, and 0 is
    returned.
    frozen: names of modules that stay as they are. samples: of the batches, about as many. seed: of the choice of positions,
    20,000 of a layer at most.
    """
    kept, sparse = tuple(f"{name}." for name in frozen), set(sparse_names(student))
    pairs = [
        pair
        for pair in _solvable(student, teacher)
        if not f"{pair.student}.".startswith(kept)
        and f"{pair.student}.weight" not in sparse
        and all(parameter.requires_grad for parameter in _layer(student, pair).parameters())
    ]
    if not pairs:
        return 0
    solving, judging = _samples(batches, samples, device_of(student))
    before = {pair.student: {n: p.detach().clone() for n, p in _layer(student, pair).named_parameters()} for pair in pairs}
    with evaluating(student), evaluating(teacher), torch.no_grad():
        start = _distance(student, teacher, judging)
        wanted = _targets(teacher, pairs, solving, seed)
        solved = _solve(student, [pair for pair in pairs if pair.teacher in wanted], wanted, solving)
        if _distance(student, teacher, judging) < start:
            return solved
        for name, values in before.items():
            for parameter, value in values.items():
                student.get_submodule(name).get_parameter(parameter).copy_(value)
    return 0


@dataclass(frozen=True)
class _Target:
    """values: (rows, kept channels). at: the rows of the whole output, flattened over everything but channels, that these are."""

    values: Tensor
    at: Tensor


def _solvable(student: nn.Module, teacher: nn.Module) -> list[Pair]:
    manifest = manifest_of(student)
    if manifest is None or not manifest.kept:
        return []
    try:
        pairs = lineage(teacher, student)
    except TaskError:  # another teacher than the model it was cut from
        return []
    owners = Counter(id(p) for module in student.modules() for p in module.parameters(recurse=False))
    return [pair for pair in pairs if _takes(_layer(student, pair)) and owners[id(_layer(student, pair).weight)] == 1]


def _takes(layer: nn.Module) -> bool:
    match layer:
        case nn.Conv2d():
            plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
            return plain and layer.weight[0].numel() <= _FAN_IN
        case nn.Linear():
            return layer.in_features <= _FAN_IN
        case _:
            return False


def _samples(batches: Batches, samples: int, device: torch.device) -> tuple[Inputs, Inputs]:
    """What is solved with, several batches as one large one; and what is judged by, the first batch, which is all if alone."""
    taken, size, values = list[Inputs](), 0, 0
    for inputs, _ in each(batches, "train", device):
        taken.append(inputs)
        size, values = size + batch_size(inputs), values + sum(t.numel() for t in tensors(inputs))
        if len(taken) > 1 and (size >= samples or values >= _VALUES):
            break
    return _joined(taken[1:] or taken), taken[0]


def _joined(batches: list[Inputs]) -> Inputs:
    """One batch of those that have the shapes of the first but for the number of samples."""
    flat = [(batch_size(inputs), tensors(inputs)) for inputs in batches]
    form = [t.shape[1:] for t in flat[0][1]]
    alike = [(n, ts) for n, ts in flat if [t.shape[1:] for t in ts] == form]
    columns = zip(*(ts for _, ts in alike), strict=True)
    whole = [
        torch.cat(column) if all(t.dim() and len(t) == n for (n, _), t in zip(alike, column, strict=True)) else column[0]
        for column in columns
    ]
    parts = iter(whole)
    joined: Inputs = apply_tensors(batches[0], lambda _: next(parts))
    return joined


def _targets(teacher: nn.Module, pairs: list[Pair], inputs: Inputs, seed: int) -> dict[str, _Target]:
    """What the teacher's layers give at a random choice of positions; of a layer that runs several times, nothing."""
    found: dict[str, _Target] = {}
    runs: Counter[str] = Counter()
    by_name = {pair.teacher: pair for pair in pairs}
    generator = torch.Generator().manual_seed(seed)

    def see(name: str, output: Any) -> None:
        runs[name] += 1
        if isinstance(output, Tensor):
            pair = by_name[name]
            values = pair.like(output).movedim(pair.axis, -1).flatten(0, -2)  # (rows, kept channels)
            at = torch.randperm(len(values), generator=generator)[:_ROWS].to(values.device)
            found[name] = _Target(values[at], at)

    with observed(teacher, by_name, see):
        call(teacher, inputs)
    return {name: target for name, target in found.items() if runs[name] == 1}


def _solve(student: nn.Module, pairs: list[Pair], wanted: dict[str, _Target], inputs: Inputs) -> int:
    """One pass of the student, in which each layer is solved before it runs. -> how many were."""
    by_name, solved = {pair.student: pair for pair in pairs}, 0

    def see(name: str, given: Any) -> None:
        nonlocal solved
        layer, x = student.get_submodule(name), next(iter(tensors(given)), None)
        if x is not None:
            solved += _solve_layer_(
                layer, _rows(layer, x, wanted[by_name[name].teacher].at), wanted[by_name[name].teacher].values
            )

    with observed(student, by_name, see, of="input"):
        call(student, inputs)
    return solved


def _rows(layer: nn.Module, x: Tensor, at: Tensor) -> Tensor:
    """(rows, fan-in): what the layer multiplies its weight with, at some positions of its output."""
    if not isinstance(layer, nn.Conv2d):
        return x.flatten(0, -2)[at]
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    ph, pw = (int(p) for p in layer.padding)
    padded = nn.functional.pad(x, (pw, pw, ph, ph))
    rows, columns = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1, (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    sample, row, column = at // (rows * columns), at // columns % rows, at % columns
    down = (row * sh)[:, None, None] + (torch.arange(kh, device=x.device) * dh)[:, None]  # (rows, kh, 1)
    across = (column * sw)[:, None, None] + torch.arange(kw, device=x.device) * dw  # (rows, 1, kw)
    return padded[sample[:, None, None], :, down, across].permute(0, 3, 1, 2).flatten(1)  # from (rows, kh, kw, channels)


def _solve_layer_(layer: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Adds the best change to the layer's weight and bias. -> whether there is one."""
    weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
    flat = weight.flatten(1)  # (channels, fan-in)
    residual = y - x @ flat.T - (0 if bias is None else bias)
    if bias is not None:
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    gram = (x.T @ x).double()
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed or not bool(torch.isfinite(gram).all()):
        return False
    change = torch.cholesky_solve((x.T @ residual).double(), factor).to(weight.dtype)  # (fan-in, channels)
    weight.add_(change[: flat.shape[1]].T.reshape(weight.shape))
    if bias is not None:
        bias.add_(change[-1])
    return True


def _distance(student: nn.Module, teacher: nn.Module, inputs: Inputs) -> float:
    """Mean squared difference of the outputs."""
    pairs = zip(tensors(call(student, inputs)), tensors(call(teacher, inputs)), strict=True)
    return sum(float((a - b).square().mean()) for a, b in pairs if a.is_floating_point())


def _layer(model: nn.Module, pair: Pair) -> nn.Module:
    return model.get_submodule(pair.student)
