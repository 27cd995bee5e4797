"""Sparsity that stays in shape on stories260K: what each method costs, and what the sparse file is worth.

    python -m benchmarks.sparsity        about 3 minutes on one core, the stories not yet told included

Each method sees 64 rows of one text and is measured on 64 that it has not seen, of that text and of another: perplexity, and
the error of the layers (relative norm of the change of each linear layer's output on the original's inputs, mean over layers).
"""

import itertools
import pathlib
import tempfile
from typing import Any, get_args

import torch
from torch import Tensor, nn

import paredown
from benchmarks import stories
from benchmarks.record import row, write
from paredown.core.measurement import Measurement
from paredown.core.steps import SparseMethod
from paredown.core.target import Target
from paredown.measure.cost import compressed_bytes, size_bytes
from paredown.pipeline.evaluate import compare_latency

METHODS: tuple[SparseMethod, ...] = get_args(SparseMethod)
GOALS: tuple[dict[str, Any], ...] = ({"ratio": 0.5}, {"pattern": "2:4"}, {"pattern": "4:8"})
_ROWS = 64


def texts(llama: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each text the rows that methods see, and the rows that they are measured on."""
    halves = [stories.text_rows("tinyshakespeare", _ROWS, skip=skip) for skip in (0, 500_000)]
    return {
        "stories": (stories.told(llama, _ROWS, 1), stories.told(llama, _ROWS, 2)),
        "shakespeare": (halves[0], halves[1]),
    }


def layer_error(llama: nn.Module, sparse: nn.Module, tokens: Tensor) -> float:
    """The mean over linear layers of |x (w - w')^T| / |x w^T|, x the inputs in the original model."""
    changed, errors = dict(sparse.named_modules()), []

    def compare(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            errors.append(float((changed[name](args[0]) - output).norm() / output.norm()))

        return hook

    handles = [m.register_forward_hook(compare(name)) for name, m in llama.named_modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        llama(tokens)
    for handle in handles:
        handle.remove()
    return sum(errors) / len(errors)


def quality(llama: nn.Module, found: dict[str, tuple[Tensor, Tensor]]) -> list[dict[str, Any]]:
    rows = [_perplexity("dense", llama, text, unseen) for text, (_, unseen) in found.items()]
    for seen_text, goal, method in itertools.product(found, GOALS, METHODS):
        task = stories.task(llama, found[seen_text][0], found[seen_text][1][:32])
        sparse = paredown.sparsify(task, paredown.Sparsify(method=method, scope="uniform", samples=_ROWS, **goal))
        (key, value), case = next(iter(goal.items())), {"method": method, "calibrated_on": seen_text}
        name = f"{method} {key} {value}"
        rows += [_perplexity(name, sparse, text, unseen, **case) for text, (_, unseen) in found.items()]
        error = layer_error(llama, sparse, found[seen_text][1][:32])
        rows.append(row(name, Measurement("layer error", error, "", 32), text=seen_text, **case))
        write("sparsity.csv", rows)  # what a killed run leaves
    return rows


def worth(llama: nn.Module, found: dict[str, tuple[Tensor, Tensor]]) -> list[dict[str, Any]]:
    """Bytes, packed bytes and latency of the sparse file in both runtimes, against the dense one."""
    seen, unseen = found["stories"]
    task, rows = stories.task(llama, seen, unseen[:32]), []
    for runtime, goal in itertools.product(("onnxruntime", "openvino"), ({"ratio": 0.8}, {"pattern": "2:4"})):
        target = Target(runtime, threads=1)  # type: ignore[arg-type]  # one of its two values
        sparse = paredown.sparsify(task, paredown.Sparsify(scope="uniform", **goal))  # type: ignore[arg-type]  # its fields
        with tempfile.TemporaryDirectory() as folder:
            files = [pathlib.Path(folder) / f"{name}.onnx" for name in ("dense", "sparse")]
            for model, file in zip((llama, sparse), files, strict=True):
                paredown.export(model, task, target=target, path=file)
            ratios = {f.__name__: f(files[1]) / f(files[0]) for f in (size_bytes, compressed_bytes)}
            latency = compare_latency(task, *files, target, pairs=60).ratio
        name = f"{runtime} magnitude {next(iter(goal.values()))}"
        rows += [row(name, Measurement(f"{metric}_ratio", value, "x")) for metric, value in ratios.items()]
        rows.append(row(name, latency))
    return rows


def _perplexity(name: str, llama: nn.Module, text: str, tokens: Tensor, **extra: Any) -> dict[str, Any]:
    return row(name, Measurement("perplexity", stories.perplexity(llama, tokens), "", len(tokens)), text=text, **extra)


def main() -> None:
    llama = stories.model()
    found = texts(llama)
    print(write("sparsity.csv", [*quality(llama, found), *worth(llama, found)]))


if __name__ == "__main__":
    main()
