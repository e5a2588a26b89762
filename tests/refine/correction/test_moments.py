import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.clock import clock_of
from tdquant.errors import CalibrationError
from tdquant.refine.correction.moments import Collector, Layout
from tests.denoisers import Mixed


class Sequence(nn.Module):
    """Tokens ``(B, N, C)`` by linear layers, or ``(B, C, N)`` by convolutions."""

    def __init__(self, layer):
        super().__init__()
        self.first, self.last = layer, type(layer)(*LAST[type(layer)])

    def forward(self, x, t):
        return self.last(self.first(x))


LAST = {nn.Linear: (8, 8), nn.Conv1d: (8, 8, 1)}


@pytest.mark.parametrize(
    ("model", "shape", "output", "layout"),
    [
        (Mixed(), (2, 6, 8, 8), (2, 6, 8, 8), Layout(None, 1)),
        (Mixed(), (2, 6, 8, 8), (2, 12, 8, 8), Layout(6, 1)),
        (Mixed(), (2, 6, 8, 8), (2, 6, 4, 4), Layout(None, None)),
        (Mixed(), (2, 6, 3, 8, 8), (2, 6, 3, 8, 8), Layout(None, 1)),
        (Mixed(), (2, 6), (2, 6), Layout(None, 1)),
        (Sequence(nn.Linear(8, 8)), (2, 5, 8), (2, 5, 8), Layout(None, -1)),
        (Sequence(nn.Conv1d(8, 8, 1)), (2, 8, 5), (2, 8, 5), Layout(None, 1)),
        (Sequence(nn.Linear(8, 8)), (2, 5, 7), (2, 5, 7), Layout(None, None)),
    ],
)
def test_where_channels_lie(model, shape, output, layout):
    assert Layout.of(model, (torch.zeros(shape), 3), torch.zeros(output)) == layout
    assert Layout.of(model, {"t": 3, "x": torch.zeros(shape)}, torch.zeros(output)) == layout


def collector(size=6):
    model = Mixed().eval()
    tdq.quantize(model, tdq.Recipe(8, 32, edges=8))
    found = Collector(model, clock_of(model))

    def add(t, size=size, z=1.0, y=2.0):
        x = torch.zeros(size, 6, 8, 8)
        clock_of(model).last = torch.as_tensor(t)
        found.add((x, torch.as_tensor(t)), torch.full_like(x, z), torch.full_like(x, y))

    return found, add


def test_sums_over_positions():
    found, add = collector(2)
    add(7)
    assert found.moments().sums.shape == (2, 6, 6)
    assert found.moments().sums[1, 5].tolist() == [64, 64, 128, 64, 128, 256]
    assert found.moments().times.tolist() == [7, 7]


def test_samples_are_rows_and_guidance_doubles_them():
    found, add = collector(6)
    add(900)
    add(100)
    assert found.moments().samples.tolist() == [0, 1, 2] * 4
    found, add = collector(3)
    add(900)
    assert found.moments().samples.tolist() == [0, 1, 2]


def test_samples_one_by_one_are_told_apart_by_the_time():
    found, add = collector(1)
    for t in (999, 500, 500, 0, 999, 500, 0, 800, 3):
        add(t)
    assert found.moments().samples.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    forwards, add = collector(1)
    for t in (0.1, 0.5, 0.9, 0.1, 0.5):
        add(t)
    assert forwards.moments().samples.tolist() == [0, 0, 0, 1, 1]


def test_rows_of_some_samples():
    found, add = collector(3)
    add(9)
    add(3)
    some = found.moments().of(torch.tensor([0, 2]))
    assert some.samples.tolist() == [0, 2, 0, 2]
    assert some.times.tolist() == [9, 9, 3, 3]
    assert len(some.sums) == 4


def test_what_is_refused():
    found, add = collector()
    with pytest.raises(CalibrationError, match="no calls"):
        found.moments()
    with pytest.raises(CalibrationError, match=r"not finite(?s:.*)timestep 5"):
        add(5, z=float("inf"))
    with pytest.raises(CalibrationError, match=r"\(2, 6, 8, 8\) and \(2, 3, 8, 8\)"):
        found.add((torch.zeros(2, 6, 8, 8), 3), torch.zeros(2, 6, 8, 8), torch.zeros(2, 3, 8, 8))
