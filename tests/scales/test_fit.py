import pytest
import torch

from tdquant.numerics.grid import Grid
from tdquant.scales import Curves, TemporalScale
from tdquant.scales.fit import fit

TIMES = torch.arange(1000.0)
CURVES = torch.stack(
    [
        0.02 + 0.5 * (TIMES / 999) ** 3,
        0.3 - 0.25 * torch.sigmoid((TIMES - 300) / 50),
        torch.full_like(TIMES, 0.07),
    ]
)


def fitted(scales, times, curves, *args, **options):
    """Fits scales that start at the means of their curves; gives the largest misfits."""
    for scale, curve in zip(scales, curves, strict=True):
        scale.reset(curve.log().mean().exp().item())
    layers = [scale.layers for scale in scales]
    return fit(layers, scales[0].encode(times), curves, *args, **options)


@pytest.mark.parametrize("time_range", [(0.0, 999.0), (0.0, 1.0)])
def test_follows_curves_that_move_tenfold(time_range):
    torch.manual_seed(0)
    scales = [TemporalScale(1.0, time_range) for _ in CURVES]
    times = TIMES / 999 * time_range[1]
    worst = fitted(scales, times, CURVES)
    assert (worst < 0.1).all()
    for scale, curve in zip(scales, CURVES, strict=True):
        s = scale(times, torch.empty(0), Grid.signed(4))
        assert (s.log() - curve.log()).abs().max() < 0.1


def test_weights_say_where_the_fit_has_to_be_good():
    torch.manual_seed(0)
    jagged = 0.1 * (1 + 0.5 * torch.sign(torch.sin(TIMES / 3)))[None]
    heavy = torch.ones(1, 1000)
    heavy[:, :100] = 1000
    errors = []
    for weights in (None, heavy):
        torch.manual_seed(0)
        scale = TemporalScale(0.1)
        fitted([scale], TIMES, jagged, weights, iterations=200)
        s = scale(TIMES, torch.empty(0), Grid.signed(4))
        errors.append((s.log() - jagged[0].log())[:100].square().mean().item())
    assert errors[1] < 0.8 * errors[0]


def test_nothing_to_fit():
    none = torch.empty(0, 1000)
    assert TemporalScale.from_curves(Curves(TIMES, none, none, [], (0.0, 999.0), 0), {}) == []
