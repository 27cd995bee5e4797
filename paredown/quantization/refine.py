"""What lowers the error of a static quantization, in the one order that is right.

smooth, equalization   move ranges between layers; the float model's function stays, so they come before calibration
adaround, brecq        round weights on the scales that calibration found, by layers or by blocks
bias_correction        takes off what the rounding, learned or not, shifts the means by, where that brings the output nearer: last
"""

import copy
from collections.abc import Callable

from torch import nn

from paredown.core.errors import RecipeError
from paredown.core.progress import Progress
from paredown.quantization.bias_correction import correct_where_nearer_
from paredown.quantization.equalization import equalize_
from paredown.quantization.model import QuantizedModel
from paredown.quantization.reconstruction import named_blocks, reconstruct_
from paredown.quantization.rounding import adaround_
from paredown.quantization.smooth import smooth_
from paredown.task.batches import Inputs, apply_tensors, batch_size, device_of, each
from paredown.task.task import Task

_SAMPLES = 256  # that refinements hold in memory, at most


def refine_(
    quantized: QuantizedModel, task: Task, source: nn.Module, calibrate_: Callable[[], None], progress: Progress
) -> None:  # fmt: skip
    """Calibrates, and does what `quantized.config.refine` names around it.

    source: the float model. calibrate_: sets all scales of `quantized`. Raises RecipeError where a refinement finds nothing to
    change.
    """
    wanted = quantized.config.refine
    batches = held_batches(quantized, task, quantized.config.samples) if set(wanted) - {"equalization"} else []
    blocks = named_blocks(source, task.inputs, task.dynamic) if "brecq" in wanted else ()
    if "brecq" in wanted:
        _changed("brecq", len(blocks), "a block that everything passes through")
    if "smooth" in wanted:
        _changed("smooth", smooth_(quantized, batches), "a norm that linear layers alone read")
    if "equalization" in wanted:
        _changed("equalization", equalize_(quantized), "two layers with nothing but a relu between")
    calibrate_()
    learned = {"adaround", "brecq"}.intersection(wanted)
    reference = copy.deepcopy(quantized) if learned and "bias_correction" in wanted else None
    if learned:
        progress("rounding", 0.0)
        reconstruct_(quantized, batches, blocks) if blocks else adaround_(quantized, batches)
        progress("rounding", 1.0)
    if "bias_correction" in wanted:
        added = correct_where_nearer_(quantized, batches, reference=reference)
        _changed("bias_correction", 1 if added is None else len(added), "a layer with a bias")


def held_batches(quantized: QuantizedModel, task: Task, samples: int) -> list[Inputs]:
    """Batches of task.train's inputs, the last cut short, until `samples` (0, or above 256: 256) were taken."""
    wanted, found, seen = min(samples or _SAMPLES, _SAMPLES), list[Inputs](), 0
    for inputs, _ in each(task.train, "train", device_of(quantized)):
        found.append(_first(inputs, wanted - seen))
        seen += batch_size(inputs)
        if seen >= wanted:
            break
    return found


def _first(inputs: Inputs, count: int) -> Inputs:
    kept: Inputs = apply_tensors(inputs, lambda tensor: tensor[:count] if tensor.dim() else tensor)
    return kept


def _changed(name: str, count: int, wanted: str) -> None:
    if not count:
        raise RecipeError(f"{name} must find {wanted}", got="none in this model", remedy=f"leave {name} out of refine")
