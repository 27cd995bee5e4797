"""Where labels stand in a model's parameters."""

import numpy as np
import torch
from torch import nn

from paredown.graph.collect import collect
from paredown.graph.places import Places, dimensions_of
from paredown.graph.propagate import propagate
from paredown.graph.trace import trace


def test_every_channel_is_found_where_it_stands_first() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5)).eval()
    known = propagate(trace(model, torch.randn(3, 4)), model, 3)
    places = Places.of(known)
    read = known.labels.canonical(dimensions_of(known)["2.weight", 1])
    assert places.have(read)
    ((tensor, dimension, there, here),) = places.sources(read)
    assert (tensor, dimension) == ("0.weight", 0)
    assert there.tolist() == here.tolist() == list(range(6))


def test_a_label_that_no_parameter_has_is_told() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5)).eval()
    known = propagate(trace(model, torch.randn(3, 4)), model, 3)
    assert not Places.of(known).have(known.labels.canonical(known.labels.fresh(2)))
    assert Places.of(known).have(np.zeros(3, dtype=np.int64))


def test_dimensions_that_lose_the_same_share_an_extent() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5)).eval()
    groups = collect(propagate(trace(model, torch.randn(3, 4)), model, 3))
    extents = [groups.extents[key] for key in (("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("2.weight", 1))]
    assert all(extent is extents[0] for extent in extents)
