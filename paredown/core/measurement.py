"""One measured number with its unit, its sample size and its interval."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """metric: what was measured ("latency_ms", "latency_ratio", "drop", "top1", "size_bytes", "memory_mb", ...).
    value: the estimate, in `unit` ("ms", "x", "B", "MB", or "" for metric units).
    n: how many samples or pairs it rests on; 1 for an exact count.
    low, high: its interval at `confidence`. Of a drop each end is a one-sided bound at that confidence
    (the gate looks at one end only); of a latency the interval is two-sided. None: exact.
    device: machine, runtime and threads, as text.
    load: of a latency, the cores that other processes kept busy while it was timed; from about 0.1 on it isn't to be relied on.
    """

    metric: str
    value: float
    unit: str = ""
    n: int = 1
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    device: str = ""
    load: float = 0.0

    @property
    def lower(self) -> float:
        """The low end of the interval; the value itself where it is exact."""
        return self.value if self.low is None else self.low

    @property
    def upper(self) -> float:
        """The high end of the interval; the value itself where it is exact."""
        return self.value if self.high is None else self.high

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit and self.unit != "x" else self.unit
        interval = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{unit}{interval}"
