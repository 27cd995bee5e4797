"""Numbers: sensible digits, a unit, no rounding surprises at the edges."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.core.measurement import Measurement
from paredown.render import numbers


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (numbers.milliseconds(0.4123), "0.412 ms"),
        (numbers.milliseconds(3.2149), "3.21 ms"),
        (numbers.milliseconds(1234.0), "1.23 s"),
        (numbers.seconds(0.4123), "0.412 s"),
        (numbers.seconds(185), "3 min 05 s"),
        (numbers.seconds(7500), "2 h 05 min"),
        (numbers.size(512), "512 B"),
        (numbers.size(190_400), "190 KB"),
        (numbers.size(999_700), "1.00 MB"),
        (numbers.size(1_093_410), "1.09 MB"),
        (numbers.count(40_810_000), "40.8 M"),
        (numbers.count(512), "512"),
        (numbers.ratio(0.4666), "0.467x"),
        (numbers.limit(0.6), "0.6x"),
        (numbers.quality(0.9173, "top-1"), "91.73 %"),
        (numbers.quality(0.82034, "spearman"), "0.8203"),
        (numbers.worse(0.004, "top-1"), "0.40 points worse"),
        (numbers.worse(-0.001, "accuracy"), "0.10 points better"),
        (numbers.worse(0.0123, "spearman"), "0.0123 worse"),
        (numbers.worse(0.0, "top-1"), "no difference"),
        (numbers.at_worst(0.0092, "top-1"), "at most 0.92 points worse"),
        (numbers.at_worst(-0.001, "top-1"), "at least 0.10 points better"),
        (numbers.at_best(0.0008, "top-1"), "at least 0.08 points worse"),
        (numbers.at_best(-0.0005, "top-1"), "at most 0.05 points better"),
    ],
)
def test_numbers_read_as_people_write_them(shown: str, expected: str) -> None:
    assert shown == expected


def test_interval_names_its_unit_once_unless_the_ends_differ() -> None:
    assert numbers.interval(Measurement("latency_ms", 38.6, low=38.2, high=39.0), "ms") == "38.2 to 39.0 ms"
    assert numbers.interval(Measurement("latency_ms", 1000, low=990, high=1010), "ms") == "990 ms to 1.01 s"
    assert numbers.interval(Measurement("top-1", 0.9, low=0.89, high=0.91), "quality", "top-1") == "89.00 to 91.00 %"
    assert numbers.interval(Measurement("size_bytes", 5)) == ""


@given(st.floats(min_value=1e-9, max_value=1e12))
def test_three_digits_are_within_half_a_percent(value: float) -> None:
    assert math.isclose(float(numbers.significant(value)), value, rel_tol=5.1e-3)
