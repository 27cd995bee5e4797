"""What the machine is fast at, measured once and remembered: latencies of a model group by group, and of a layer width by width.

    <cache>/paredown/<key>.json     key: machine, versions, runtime, batch, threads, and the shapes of what was measured

A remembered file is data; one that can't be read, or has another form, is measured anew.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from pathlib import Path

import torch
from torch import nn

from paredown.core.errors import MeasurementError
from paredown.core.progress import Progress, silent
from paredown.core.steps import MixedBits, Precision, Prune, Quantize
from paredown.core.target import Target
from paredown.deploy.capabilities import environment, has_vnni
from paredown.measure.latency_table import LatencyTable
from paredown.pipeline.evaluate import latency_of
from paredown.pruning.prune import Latency, latency_table
from paredown.pruning.widths import preferred_multiple, widths_to_measure
from paredown.quantization.assign import WHOLE
from paredown.quantization.costs import READS
from paredown.quantization.layers import layers_of
from paredown.quantization.placement import key_before
from paredown.quantization.scheme import FLOAT, MOST_INTEGER, BitWidths, Scheme
from paredown.quantization.static import quantize_model
from paredown.task.batches import tensors
from paredown.task.task import Task
from paredown.train.seeds import seeded

_SIDE = 16  # pixels of the layer that widths are compared on


def group_latencies(
    task: Task,
    model: nn.Module,
    config: Prune,
    target: Target,
    latency: Latency,
    progress: Progress = silent,
) -> LatencyTable:
    """The latency of `model` with each dependency group alone at a few widths; what is remembered of it isn't measured again."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    inputs = [tuple(tensor.shape[1:]) for tensor in tensors(task.inputs)]
    file = _file(target, "groups", config.precision, type(model).__qualname__, shapes, inputs, task.protect, config.protect)
    table = latency_table(model, task, config, latency, known=_read_table(file), progress=progress)
    _write(file, table.to_json())
    return table


def latency_at(precision: Precision, task: Task, target: Target, own: Latency, *, upper: bool = False) -> Latency:
    """ms of a float model's file of that precision. own: ms of a model's own file. upper: as for `latency_of`, where own is so.

    int8 files are held against the task's model in int8, and that once against float.
    """
    if precision == "fp32":
        return own
    whole = _in_int8(task.model, task, target)
    among = latency_of(task, target, baseline=whole, ms=own(whole), upper=upper)
    return lambda model: among(_in_int8(model, task, target))


def _in_int8(model: nn.Module, task: Task, target: Target) -> nn.Module:
    """Calibrated on one batch: the values of scales take no time."""
    return quantize_model(model, task, Quantize(target=target.runtime, samples=1), reduced=not has_vnni())


def layer_latencies(
    task: Task, model: nn.Module, config: Quantize, target: Target, *, reduced: bool, progress: Progress = silent
) -> LatencyTable:  # fmt: skip
    """The latency of `model` in int8, with each layer alone in float (32 bits, by its path) or reading fewer bits (by its path
    and READS), and of all of it in float (WHOLE).

    What stands between int8 and float layers is in the file, and so in the time. Remembered; only what the config has a choice of
    is measured.
    """
    variants = _variants(config.bits)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    inputs = [tuple(tensor.shape[1:]) for tensor in tensors(task.inputs)]
    key = ("layers", variants, reduced, type(model).__qualname__, shapes, inputs, task.protect, config.protect)
    file = _file(target, *key)
    known = _read_table(file)
    if known is not None:
        return known
    step = dataclasses.replace(config, bits=8, refine=(), samples=1, target=target.runtime)
    base = quantize_model(model, task, step, reduced=reduced)
    among = latency_of(task, target, baseline=base)
    table = LatencyTable(among(base)).with_entry(WHOLE, FLOAT, among(model))
    layers = layers_of(base)
    for done, (layer, (name, bits)) in enumerate(itertools.product(layers, variants)):
        progress("latency of layers at other widths", done / (len(layers) * len(variants)))
        alike = {other.path for other in layers if name and key_before(other.node) == key_before(layer.node)} | {layer.path}
        scheme = Scheme(base.scheme.default, {**base.scheme.layers, **dict.fromkeys(alike, variants[name, bits])})
        ms = among(quantize_model(model, task, step, reduced=reduced, scheme=scheme))
        table = table.with_entry(layer.path + name, bits, table.base_ms + (ms - table.base_ms) / len(alike))
    _write(file, table.to_json())
    return table


def _variants(bits: object) -> dict[tuple[str, int], BitWidths]:
    """What is measured of each layer: what stands behind its path in the table, under which bits, and the widths. What layers
    read together takes its time once: each bears a part.
    """
    if not isinstance(bits, MixedBits):
        return {}
    read: dict[tuple[str, int], BitWidths] = {(READS, a): BitWidths(8, a) for a in bits.activations if a < 8}
    wide = sorted({width for width in (*bits.choices, *bits.activations) if width > MOST_INTEGER})
    return read | {("", width): BitWidths(width, width) for width in wide}


def preferred_width(target: Target) -> int:
    """The multiple that widths are best rounded to: for float and for int8 layers measured apart, the larger of the two."""
    return max(_preferred(target, quantized) for quantized in (False, True))


def _preferred(target: Target, quantized: bool) -> int:
    file = _file(target, "widths", quantized)
    known = _read_widths(file)
    for width in widths_to_measure():
        if width not in known:
            known[width] = _layer_latency(width, target, quantized)
    _write(file, json.dumps(known))
    return preferred_multiple(known)


def _layer_latency(width: int, target: Target, quantized: bool) -> float:
    """ms of three 3x3 convolutions of so many channels."""
    with seeded(0):
        layers = [nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(3)]
        x = torch.randn(2, width, _SIDE, _SIDE)
    batches = [(x, torch.zeros(2, dtype=torch.long))]
    task = Task(nn.Sequential(*layers, nn.Flatten()).eval(), (x,), batches, batches)
    return latency_of(task, target)(_in_int8(task.model, task, target) if quantized else task.model)


def _file(target: Target, *what: object) -> Path:
    key = hashlib.sha256(repr((sorted(environment(target).items()), *what)).encode()).hexdigest()[:24]
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "paredown" / f"{key}.json"


def _read_table(file: Path) -> LatencyTable | None:
    try:
        return LatencyTable.from_json(file.read_text())
    except (OSError, UnicodeDecodeError, MeasurementError):
        return None


def _read_widths(file: Path) -> dict[int, float]:
    try:
        found = {int(width): float(ms) for width, ms in json.loads(file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return found if all(0 < ms < float("inf") for ms in found.values()) else {}


def _write(file: Path, text: str) -> None:
    """Whole or not at all; where nothing can be written, it is measured again another time."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text)
        unfinished.replace(file)
    except OSError:
        unfinished.unlink(missing_ok=True)
