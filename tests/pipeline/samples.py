"""Candidates made by hand, for the tests of gate, front and planner."""

from paredown.core.artifact import Artifact, Candidate
from paredown.core.measurement import Measurement
from paredown.core.recipe import Recipe
from paredown.core.steps import Quantize
from paredown.core.target import Target


def ratio(value: float, low: float | None = None, high: float | None = None) -> Measurement:
    """A latency ratio with its interval, by default 2 % to either side."""
    return Measurement("latency_ratio", value, "x", 60, low or value * 0.98, high or value * 1.02)


def candidate(
    name: str = "one", *, drop: float = 0.0, drop_high: float | None = None, latency: float = 1.0, size: float = 1.0
) -> Candidate:
    """Its drop in metric units with an upper bound; latency and size as ratios to a baseline of 10 ms and 1,000 bytes."""
    high = drop + 0.002 if drop_high is None else drop_high
    return Candidate(
        name=name,
        recipe=Recipe((Quantize(),)) if name != "baseline" else Recipe(),
        artifact=Artifact(f"{name}.onnx", Target(), "fp32", round(1000 * size), f"digest of {name}"),
        quality=Measurement("top-1", 0.9 - drop, "", 1000, 0.88 - drop, 0.92 - drop),
        drop=Measurement("drop", drop, "", 1000, drop - 0.002, high),
        latency=Measurement("latency_ms", 10 * latency, "ms", 60, 9.8 * latency, 10.2 * latency),
        latency_ratio=ratio(latency),
        size_ratio=size,
        macs=1000,
        parameters=100,
    )
