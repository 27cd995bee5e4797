"""Latency tables as data."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.core.errors import MeasurementError
from paredown.measure.latency_table import LatencyTable

TABLE = LatencyTable(10.0, {"a": {8: 6.0, 16: 8.0, 32: 10.0}})
MS = st.floats(1e-3, 1e3)


@pytest.mark.parametrize(("width", "ms"), [(8, 6.0), (12, 7.0), (16, 8.0), (24, 9.0), (32, 10.0), (4, 6.0), (40, 10.0)])
def test_between_measured_widths_it_is_a_line_and_beyond_them_flat(width: int, ms: float) -> None:
    assert TABLE.at("a", width) == pytest.approx(ms)


def test_a_group_that_was_never_measured_costs_what_the_whole_does() -> None:
    assert TABLE.at("b", 3) == 10.0


def test_an_entry_more_leaves_the_table_it_came_from_alone() -> None:
    more = TABLE.with_entry("b", 4, 9.5).with_entry("a", 24, 9.9)
    assert more.at("b", 4) == 9.5 and more.at("a", 24) == 9.9
    assert "b" not in TABLE.entries and 24 not in TABLE.entries["a"]


@settings(deadline=None, max_examples=20)
@given(MS, st.dictionaries(st.text(max_size=5), st.dictionaries(st.integers(1, 512), MS, max_size=4), max_size=3))
def test_it_survives_json(base: float, entries: dict[str, dict[int, float]]) -> None:
    table = LatencyTable(base, entries)
    assert LatencyTable.from_json(table.to_json()) == table


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"base_ms": 1, "entries": {"a": {"x": 1}}}', '{"base_ms": 1, "entries": []}'])
def test_another_form_is_a_typed_error(text: str) -> None:
    with pytest.raises(MeasurementError, match=r"base_ms and entries.*measured anew"):
        LatencyTable.from_json(text)


@pytest.mark.parametrize("ms", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_must_be_positive_and_finite(ms: float) -> None:
    with pytest.raises(MeasurementError, match="positive, finite"):
        LatencyTable(1.0, {"a": {1: ms}})
