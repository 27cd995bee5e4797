"""What a model costs on paper: multiply-accumulates, parameters, bytes on disk. 1 MAC = 2 FLOPs.

MACs are those of convolutions, matrix products, attention and recurrent layers, dense, as the operators run;
elementwise work, normalizations and pooling count nothing. They are not latency: see `latency.py`.
"""

import math
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from paredown.core.errors import ArtifactError
from paredown.task.batches import Inputs, batch_size, call, evaluating, unfused, without_gradient

Shape = tuple[int, ...]


def count_macs(model: nn.Module, inputs: Inputs) -> int:
    """MACs of one sample: those of the batch `inputs`, divided by its size.

    The model runs once, in evaluation mode; it is left as it was.
    """
    formulas: Any = _FORMULAS  # torch types the mapping's values by its own registry
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    # Without gradients: torch's counter fails on a module whose argument is a view of a parameter that requires one.
    with evaluating(model), unfused(), without_gradient([model]), torch.no_grad(), counter:
        call(model, inputs)
    return round(int(counter.get_total_flops()) / 2 / batch_size(inputs))


def count_parameters(model: nn.Module) -> int:
    """Parameters, each shared one counted once. Buffers are not parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_bytes(path: str | pathlib.Path) -> int:
    """Bytes on disk of a file, or of all files in a folder. Raises ArtifactError where there is none."""
    target = pathlib.Path(path)
    if not target.exists():
        raise ArtifactError("a file whose size is measured must exist", got=str(path), remedy="export it first")
    return sum(file.stat().st_size for file in ([target] if target.is_file() else target.rglob("*")) if file.is_file())


def compressed_bytes(path: str | pathlib.Path) -> int:
    """Bytes of a file, or of all files in a folder, each packed by gzip: what it takes to store or to send it.

    Sparse weights are as large on disk as dense ones, and smaller only so. Memory doesn't grow with the file.
    Raises ArtifactError where there is none.
    """
    target = pathlib.Path(path)
    size_bytes(target)  # complains where there is nothing
    return sum(_packed(file) for file in ([target] if target.is_file() else target.rglob("*")) if file.is_file())


def _packed(file: pathlib.Path) -> int:
    packer, total = zlib.compressobj(6, wbits=31), 0  # 31: with gzip's header
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            total += len(packer.compress(part))
    return total + len(packer.flush())


def _attention(query: Shape, key: Shape, value: Shape, *_rest: Any, **_options: Any) -> int:
    """query (..., l, d), key (..., s, d), value (..., s, e): q k^T and its product with v, in FLOPs."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(inputs: Shape, from_input: Shape, from_hidden: Shape, *_rest: Any, **_options: Any) -> int:
    """inputs (time, batch, in), weights (gates * hidden, in) and (gates * hidden, hidden), in FLOPs."""
    return 2 * math.prod(inputs[:-1]) * (math.prod(from_input) + math.prod(from_hidden))


def _vector(matrix: Shape, _vector: Shape, *_rest: Any, **_options: Any) -> int:
    """matrix (m, k) times vector (k,), or two vectors (k,), in FLOPs."""
    return 2 * math.prod(matrix)


_aten = torch.ops.aten
# The operators with products that run on CPUs and that torch's own table (torch 2.14) leaves out.
_FORMULAS: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_fused_attention_overrideable: _attention,
    _aten.mkldnn_rnn_layer: _recurrent,
    _aten.mv: _vector,
    _aten.dot: _vector,
}
