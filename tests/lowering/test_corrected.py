"""Corrections over times that the contract tests do not have: one, and continuous ones."""

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.layers.correction import correction_of


class Small(nn.Module):
    """One layer, and a level that follows a noise level."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x, sigma):
        return self.conv(x / (1 + torch.as_tensor(sigma).float().reshape(-1, 1, 1, 1)))


def corrected(times):
    """A static model whose predictions lack a shift that follows the time."""
    model, plain = Small().eval(), Small().eval()
    calls = [(torch.randn(4, 3, 8, 8), torch.tensor(t)) for t in times]
    tdq.quantize(model, tdq.Recipe(8, 8, scale="static", edges=8))
    tdq.calibrate(model, calls, progress=False)
    shift = torch.tensor([1.0, -2.0, 0.5]).reshape(-1, 1, 1)

    def exact(x, t):
        return plain(x, t) + shift * (1 + torch.as_tensor(t).reshape(-1, 1, 1, 1))

    return tdq.correct(tdq.freeze(model), exact, calls, gain="none", progress=False)


@pytest.mark.parametrize("times", [(0.5,), (0.002, 0.1, 1.5, 80.0)])
@pytest.mark.parametrize("engine", ["reference", "onednn", ".xml", ".onnx"])
@torch.no_grad()
def test_equals_the_frozen_model(engine, times, tmp_path):
    frozen, x = corrected(times), torch.randn(3, 3, 8, 8)
    assert len(correction_of(frozen).bias.knots) == len(times)
    if engine.startswith("."):
        file = tdq.export(frozen, tmp_path / f"model{engine}", (x, torch.tensor(0.5)))
        fast = tdq.open_session(file)
    else:
        fast = tdq.compile(frozen, engine)
    for t in (0.002, 0.5, 0.7, 80.0, 100.0, [0.01, 1.0, 40.0]):
        y, found = (model(x, torch.tensor(t)) for model in (frozen, fast))
        assert (found - y).abs().median() <= 1e-5 * y.abs().max()
        assert (found - y).abs().mean() <= 1e-3 * y.abs().max()
