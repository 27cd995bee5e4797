"""Architecture, bits of each layer and sparsity of each layer, judged together: the evaluator of a `product` of spaces.

    space = product(net=elastic_space(task).space, bits=per_layer(layers, (4, 8)), sparsity=per_layer(layers, (0.0, 0.5)))
    paredown.search(space, JointEvaluator(subnets.subnet, task), limits=(Limit("bytes", high=50_000),), objectives=...)

The network of the part `net` is made sparse, then quantized, and scored on validation as the simulation of its file.
"""

import copy
import functools
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from paredown.core.errors import SearchError
from paredown.core.steps import Quantize
from paredown.measure.cost import count_macs, count_parameters
from paredown.measure.quality import score
from paredown.nas.composite import split
from paredown.nas.evaluators.evaluator import Job, Outcome, Values, named
from paredown.nas.evaluators.training import standard_error
from paredown.nas.problem import Source
from paredown.pipeline.steps import reduces_weights
from paredown.quantization.bits import layer_bits
from paredown.quantization.model import QuantizedModel
from paredown.quantization.scheme import FLOAT, BitWidths, Scheme, scheme_of
from paredown.quantization.static import quantize_model
from paredown.task.batches import call, evaluating
from paredown.task.task import Task
from paredown.train.masks import mark_sparse_
from paredown.train.seeds import seeded

_PARTS = ("net", "bits", "sparsity")


@dataclass(frozen=True, eq=False)
class JointEvaluator:
    """network: values of the part "net" -> its network with weights, `SupernetEvaluator(...).subnet` or
    `TrainingEvaluator(...).module`; without such a part it gets none. task: batches to calibrate with and to score on.

    Parts "bits" and "sparsity" name layers of the network: 2 to 16 bits of the weight, or 32 for a layer in float; the share of
    the weight's numbers, the smallest ones, that become zero. Layers that an architecture skips are passed over.
    config: everything else about the quantization, which is static; its bits are those of layers that the space doesn't name.
    Metrics: the task's own by its name; "macs"; "bits", the mean over the numbers of the layers' weights; "bytes", of weights as
    they are stored, and everything else in float; "nonzero", numbers of parameters that aren't zero.
    """

    network: Callable[[Values], nn.Module]
    task: Task
    config: Quantize = field(default_factory=Quantize)
    source: Source = "supernet"
    fidelities: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.config.kind != "static" or not isinstance(self.config.bits, int):
            raise SearchError(
                "bits that are searched are those of static quantization", got=f"{self.config.kind}, {self.config.bits}",
                remedy="leave kind and bits out of config"
            )  # fmt: skip

    @functools.cached_property
    def name(self) -> str:
        owner = getattr(self.network, "__self__", None)  # of a method of another evaluator, which tells itself apart
        network = str(getattr(owner, "name", "")) or named(self.network)
        digest = hashlib.blake2b(repr(self.config).encode(), digest_size=4).hexdigest()
        return f"joint, {network}, {self.task.name} {digest}"

    def evaluate(self, job: Job) -> Outcome:
        start = time.perf_counter()
        with seeded(job.seed):
            made, scheme = self._sparse(job.values)
            quantized = self._quantized(made, scheme)
        costs = {"macs": float(count_macs(made, self.task.inputs)), **_costs(made, quantized)}
        with evaluating(quantized):
            quality = score(functools.partial(call, quantized), self.task, "validation")
        noise = {} if quality.values is None else {quality.name: standard_error(quality.values)}
        return Outcome({quality.name: quality.value, **costs}, time.perf_counter() - start, noise)

    def module(self, values: Values) -> QuantizedModel:
        """The quantized network of a found architecture: what to distill further, or to export."""
        return self._quantized(*self._sparse(values))

    def _sparse(self, values: Values) -> tuple[nn.Module, Scheme]:
        parts = split(values)
        odd = [part for part in parts if part not in _PARTS]
        if odd:
            raise SearchError("a joint space has the parts net, bits and sparsity", got=odd[0], remedy="write product(net=...)")
        model = copy.deepcopy(self.network(parts.get("net", {})))  # which may be the user's own
        layers = {name for name, module in model.named_modules() if isinstance(getattr(module, "weight", None), nn.Parameter)}
        known = layers | {name for name, _ in self.task.model.named_modules()}
        unknown = [name for part in ("bits", "sparsity") for name in parts.get(part, {}) if name not in known]
        if unknown:
            raise SearchError("bits and sparsity name layers of the network", got=unknown[0], remedy="see its named_modules()")
        bits = {name: int(value) for name, value in parts.get("bits", {}).items() if name in layers}
        default = scheme_of(self.config).default
        scheme = Scheme(default, {name: _widths(default, each) for name, each in bits.items()})
        shares = {name: float(value) for name, value in parts.get("sparsity", {}).items() if name in layers}
        return _with_zeros_(model, shares), scheme

    def _quantized(self, model: nn.Module, scheme: Scheme) -> QuantizedModel:
        return quantize_model(model, self.task, self.config, reduced=reduces_weights(self.config), scheme=scheme)


@torch.no_grad()
def _with_zeros_(model: nn.Module, shares: Mapping[str, float]) -> nn.Module:
    """Of each named layer's weight so large a share, the smallest numbers, is zero, and marked to stay so."""
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise SearchError("sparsity is a share of the weight's numbers in [0, 1)", got=share, remedy="write 0.5")
        weight = model.get_parameter(f"{name}.weight")
        kept = torch.ones(weight.numel(), device=weight.device, dtype=weight.dtype)
        kept[weight.abs().flatten().argsort()[: int(share * weight.numel())]] = 0
        weight.mul_(kept.view(weight.shape))
    return mark_sparse_(model, [f"{name}.weight" for name, share in shares.items() if share > 0])


def _widths(default: BitWidths, bits: int) -> BitWidths:
    """A layer's, by the default for all but the bits of its weight; in float it reads floats."""
    return replace(default, weight_bits=bits, activation_bits=FLOAT if bits == FLOAT else default.activation_bits)


def _costs(model: nn.Module, quantized: QuantizedModel) -> dict[str, float]:
    """By what the layers ended with: one that is protected, or has no place for a quantizer, is in float."""
    rows = layer_bits(quantized)
    stored = sum(row.parameters for row in rows)
    bits = sum(row.parameters * row.weight_bits for row in rows)
    others = max(0, count_parameters(model) - stored)
    nonzero = sum(int((parameter != 0).sum()) for parameter in model.parameters())
    mean = bits / stored if stored else float(FLOAT)
    return {"bits": mean, "bytes": (bits + FLOAT * others) / 8, "nonzero": float(nonzero)}
