"""A search as it could have come out, small enough to read."""

import math

from paredown.core.measurement import Measurement
from paredown.core.search_report import CurvePoint, Evaluated, Goal, Recovered, SearchReport, Source, Within


def evaluated(i: int) -> Evaluated:
    accuracy, latency = 94 - 20 / (1 + i) + math.sin(i), 3 + 9 * ((7 * i) % 40) / 40
    values = {"operator": ("conv", "pool")[i % 2], "width": 16 * (1 + i % 3)}
    return Evaluated(values, {"accuracy": accuracy, "latency_ms": latency}, kept=latency <= 10)


def sample_search(source: Source = "table", *, recovered: bool = False, name: str = "operator") -> SearchReport:
    """40 evaluations, one of them failed, under a limit of latency. name: of a dimension and of much else."""
    everything = [evaluated(i) for i in range(39)]
    curve, best = [], None
    for i, each in enumerate(everything):
        if each.kept:
            best = max(best or 0.0, each.validation["accuracy"])
        curve.append(CurvePoint(i + 1, 10.0 * i, best))
    ranked = sorted((each for each in everything if each.kept), key=lambda each: -each.validation["accuracy"])
    front = [
        Evaluated(
            {**each.values, name: 1}, each.validation, {"accuracy": each.validation["accuracy"] - 0.4}, {"test accuracy": 91.5}
        )
        for i, each in enumerate(ranked)
        if all(each.validation["latency_ms"] < better.validation["latency_ms"] for better in ranked[:i])
    ]
    rows = (recovered_row(name),) if recovered else ()
    return SearchReport(
        source=source,
        about={"strategy": "Surrogate", "evaluator": f"{name} c10", "seed": "0"},
        goals=(Goal("accuracy", True), Goal("latency_ms")),
        limits=(Within("latency_ms", high=10.0),),
        curve=tuple(curve),
        evaluated=(*everything, Evaluated({}, {}, failed=f"RuntimeError: {name}")),
        front=tuple(front),
        shared={name: {"conv": 0.8, "pool": 0.2}, "width": {"32": 0.6, "16": 0.3, "48": 0.1}},
        recovered=rows,
    )


def recovered_row(name: str) -> Recovered:
    drop = Measurement("drop", 0.004, "", 5000, -0.001, 0.009, 0.95)
    quality = Measurement("top-1", 0.913, "", 5000, 0.905, 0.92, 0.95)
    ratio = Measurement("latency_ratio", 0.57, "x", 60, 0.55, 0.59, 0.95)
    return Recovered({name: 8}, 0.874, quality, drop, quality, drop, ratio, 20_000_000, 140_000)
