"""How many bits each layer gets: a decision, as plain data that a manifest can hold.

A layer is named by its module path; what holds for a module holds for all inside it that aren't named themselves.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from paredown.core.errors import RecipeError
from paredown.core.steps import Activations, MixedBits, Quantize, Weights
from paredown.quantization.grid import FEWEST_BITS, MOST_BITS, WEIGHTS, WEIGHTS_REDUCED, Grid, linear_grid

FLOAT = 32
MOST_INTEGER = 8  # bits that a runtime computes in integers


@dataclass(frozen=True)
class BitWidths:
    """weight_bits: 2 to 16, or 32 for a layer that stays in float. activation_bits: of what the layer reads, 2 to 16, or 32
    where its weight alone is on a grid. group: how many consecutive numbers of a row share a scale (0: the whole row, that is
    one scale per output channel). symmetric: of the weight; else it has zero points.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    group: int = 0
    symmetric: bool = True

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not (FEWEST_BITS <= value <= MOST_BITS or value == FLOAT):
                raise RecipeError(f"{name} must be in [2, 16], or 32 for float", got=value, remedy="8 runs in integers")
        if isinstance(self.group, bool) or not isinstance(self.group, int) or not (self.group == 0 or self.group >= 8):
            raise RecipeError("group must be 0 or at least 8", got=self.group, remedy="32, 64 and 128 are the usual choices")

    @property
    def is_float(self) -> bool:
        return self.weight_bits == FLOAT

    @property
    def wide(self) -> bool:
        """Whether it computes in float since integer operators take fewer bits."""
        return max(self.weight_bits, self.activation_bits) > MOST_INTEGER

    @property
    def weight_only(self) -> bool:
        return self.weight_bits < FLOAT and self.activation_bits == FLOAT


@dataclass(frozen=True)
class Scheme:
    """default: of every layer that `layers` doesn't name. embeddings: whether embedding tables go on a grid too."""

    default: BitWidths = field(default_factory=BitWidths)
    layers: Mapping[str, BitWidths] = field(default_factory=dict)
    embeddings: bool = False

    def of(self, path: str) -> BitWidths:
        """The widths of a module, by its dotted path or that of the nearest module around it which is named."""
        current = path
        while current and current not in self.layers:
            current = current.rpartition(".")[0]
        return self.layers.get(current, self.default)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        layers = {name: asdict(widths) for name, widths in self.layers.items()}
        return {"default": asdict(self.default), "layers": layers, "embeddings": self.embeddings}

    @classmethod
    def from_dict(cls, data: Any) -> "Scheme":
        """The inverse. Raises RecipeError on anything else."""
        try:
            layers = {str(name): BitWidths(**widths) for name, widths in data["layers"].items()}
            return cls(BitWidths(**data["default"]), layers, bool(data["embeddings"]))
        except (TypeError, KeyError, AttributeError) as error:
            raise RecipeError(
                "a scheme is a mapping of default, layers and embeddings", got=str(error), remedy="write what to_dict gave"
            ) from None


def scheme_of(config: Quantize, edges: Collection[str] = ()) -> Scheme:
    """The bits that a step asks for; those that are chosen by layer begin at 8. edges: layers that keep 8 whatever it asks."""
    if config.kind in ("fp16", "bf16"):
        return Scheme(BitWidths(16, FLOAT), embeddings=True)
    bits = 8 if isinstance(config.bits, MixedBits) else config.bits
    if config.kind == "weight_only":
        return Scheme(BitWidths(bits, FLOAT, config.weights.group), embeddings=config.weights.embeddings)
    if config.kind in ("dynamic", "palette"):
        return Scheme(BitWidths(bits, FLOAT), embeddings=config.weights.embeddings)
    widths = BitWidths(bits, config.activations.bits, symmetric=config.weights.symmetric)
    edge = replace(widths, weight_bits=8, activation_bits=8)
    return Scheme(widths, dict.fromkeys(edges, edge) if widths != edge else {}, embeddings=config.weights.embeddings)


def weight_grid(widths: BitWidths, config: Weights | None = None, *, reduced: bool) -> Grid:
    """8 bits symmetric: [-127, 127], reduced [-63, 63]. Otherwise the whole n-bit range, signed where symmetric or two-sided."""
    config = config or Weights()
    if widths.weight_bits == 8 and widths.symmetric and not config.two_sided:
        grid = WEIGHTS_REDUCED if reduced else WEIGHTS
    else:
        grid = linear_grid(widths.weight_bits, symmetric=widths.symmetric, signed=widths.symmetric)
    return replace(grid, power_of_two=config.power_of_two, two_sided=config.two_sided)


def activation_grid(bits: int, config: Activations | None = None) -> Grid:
    """[0, 2^bits - 1] with a zero point; two-sided [-2^(bits - 1), 2^(bits - 1) - 1]."""
    config = config or Activations()
    grid = linear_grid(bits, symmetric=config.two_sided, signed=config.two_sided)
    return replace(grid, power_of_two=config.power_of_two, two_sided=config.two_sided)
