"""Numbers as people read them: three significant digits, a unit, and an interval where there is one."""

import math

from paredown.core.measurement import Measurement

_FRACTIONS = ("accuracy", "top-1", "top1", "top-5", "top5")


def significant(value: float, digits: int = 3) -> str:
    """`0.012345` -> "0.0123", `1234.5` -> "1234"; digits before the point are never rounded away."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # after rounding: 0.9999 counts as 1.00
    return f"{value:.{min(max(0, digits - 1 - exponent), 12)}f}"


def milliseconds(value: float) -> str:
    """ms -> "0.412 ms", "3.21 ms", "1.23 s"."""
    return f"{significant(value / 1000)} s" if abs(value) >= 1000 else f"{significant(value)} ms"


def seconds(value: float) -> str:
    """s -> "0.41 s", "12.3 s", "3 min 05 s", "2 h 05 min"."""
    if value < 60:
        return f"{significant(value)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(value: float) -> str:
    """Bytes -> "512 B", "190 KB", "1.09 MB" (1 KB = 1,000 bytes)."""
    return _scaled(value, ("B", "KB", "MB", "GB"))


def count(value: float) -> str:
    """A count -> "512", "271 k", "41.2 M"."""
    return _scaled(value, ("", "k", "M", "G")).strip()


def ratio(value: float) -> str:
    """`0.4666` -> "0.467x"."""
    return f"{significant(value)}x"


def limit(value: float) -> str:
    """A ratio as a person wrote it: `0.6` -> "0.6x"."""
    return f"{value:.3g}x"


def percent(fraction: float) -> str:
    """`0.0044` -> "0.44 %"."""
    return f"{100 * fraction:.2f} %"


def is_fraction(metric: str) -> bool:
    """Whether a metric is a share of right answers in [0, 1], which people read in percent and compare in points."""
    return metric.strip().lower().replace("_", "-") in _FRACTIONS


def quality(value: float, metric: str) -> str:
    """The metric's value: "91.73 %" where it is a fraction, else four significant digits."""
    return percent(value) if is_fraction(metric) else significant(value, 4)


def difference(value: float, metric: str) -> str:
    """The size of a difference of the metric, without its sign: "0.40 points", or "0.0123" in metric units."""
    return f"{abs(100 * value):.2f} points" if is_fraction(metric) else significant(abs(value))


def worse(drop: float, metric: str) -> str:
    """A drop in words: "0.40 points worse", "0.10 points better", "no difference"."""
    if drop == 0:
        return "no difference"
    return f"{difference(drop, metric)} {'worse' if drop > 0 else 'better'}"


def at_worst(upper: float, metric: str) -> str:
    """The upper bound of a drop in words: "at most 0.92 points worse", or "at least 0.10 points better"."""
    return f"at least {worse(upper, metric)}" if upper < 0 else f"at most {difference(upper, metric)} worse"


def at_best(lower: float, metric: str) -> str:
    """The lower bound of a drop in words: "at least 0.08 points worse", or "at most 0.10 points better"."""
    return f"at least {worse(lower, metric)}" if lower > 0 else f"at most {difference(lower, metric)} better"


def interval(measured: Measurement, show: str = "number", metric: str = "") -> str:
    """ "0.437 to 0.461x"; empty where the measurement is exact. show: "ratio", "ms", "quality" or "number"."""
    if measured.low is None or measured.high is None:
        return ""
    low, high = one(measured.low, show, metric), one(measured.high, show, metric)
    unit = high.lstrip("-.0123456789")
    return f"{low.removesuffix(unit) if unit else low} to {high}"


def one(value: float, show: str, metric: str = "") -> str:
    """One number by kind: "ratio", "ms", "quality" or "number"."""
    if show == "quality":
        return quality(value, metric)
    return {"ratio": ratio, "ms": milliseconds}.get(show, significant)(value)


def _scaled(value: float, units: tuple[str, ...]) -> str:
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    return f"{significant(value) if power else round(value)} {units[power]}"
