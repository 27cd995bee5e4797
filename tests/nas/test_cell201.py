"""The NAS-Bench-201 space against its own table: strings, classes, parameters, MACs."""

from types import ModuleType

import numpy as np
import pytest
import torch

from paredown.core.errors import SearchSpaceError
from paredown.measure.cost import count_macs, count_parameters
from paredown.nas import cell201
from paredown.nas.cell201_network import build
from paredown.nas.symmetry import OPERATORS, representatives


def test_the_official_string_goes_both_ways_for_every_cell() -> None:
    space = cell201.space()
    for architecture in list(space.enumerate())[::97]:
        text = cell201.to_string(space.values(architecture))
        assert cell201.architecture(text) == architecture
    first = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    assert cell201.to_string(cell201.from_string(first)) == first


def test_there_are_6466_classes_of_15625_cells() -> None:
    space = cell201.space()
    assert space.size == 15_625
    assert len({space.canonicalize(architecture) for architecture in space.enumerate()}) == 6_466


def test_classes_are_those_of_the_table(shared_data: ModuleType) -> None:
    table, classes = shared_data.nasbench201(), {}
    cells = np.stack([table[name] for name in cell201.NAMES], axis=1).tolist()
    for cell, identity in zip(cells, table["canonical_id"].tolist(), strict=True):
        assert classes.setdefault(representatives()[tuple(cell)], identity) == identity
    assert len(set(classes.values())) == 6_466


@pytest.mark.parametrize(("data", "classes", "pixels"), [("c10", 10, 32), ("c100", 100, 32), ("in16", 120, 16)])
def test_the_network_has_the_tables_parameters_and_macs(shared_data: ModuleType, data: str, classes: int, pixels: int) -> None:
    table = shared_data.nasbench201()
    for row in (0, 1, 284):
        values = {name: OPERATORS[int(table[name][row])] for name in cell201.NAMES}
        network = build(values, classes=classes)
        assert count_parameters(network) == table[f"{data}_params"][row]
        macs = count_macs(network, torch.zeros(2, 3, pixels, pixels))
        assert abs(macs / 1e6 - table[f"{data}_flops_m"][row]) < 2e-4  # the table counts a part of the last layer's bias


def test_a_cell_sums_its_edges() -> None:
    values = cell201.from_string("|none~0|+|skip_connect~0|none~1|+|skip_connect~0|none~1|skip_connect~2|")
    cell = next(module for module in build(values, channels=4, cells=1).modules() if type(module).__name__ == "Cell")
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(cell(x), 2 * x)


def test_a_network_of_nones_still_runs_and_an_unknown_operator_does_not() -> None:
    nothing = dict.fromkeys(cell201.NAMES, "none")
    assert build(nothing, channels=4, cells=1)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(SearchSpaceError, match="five official operators"):
        build({**nothing, "op_01": "conv_5x5"})
