import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.calibration.candidates import Candidate, make_candidates
from tdquant.calibration.judge import Judgement, judge
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.quantizers import activation_quantizers
from tdquant.scales import TableScale


class Linear(nn.Module):
    """A linear model, for which the judge's linearisation is exact."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 5)

    def forward(self, x, t):
        return self.b(self.a(x))


def test_judged_error_is_the_output_error_of_each_layer_alone():
    model = tdq.quantize(Linear(), tdq.Recipe(edges=3, weights=32))
    rng = torch.Generator().manual_seed(1)
    calls = [(torch.randn(16, 8, generator=rng), torch.tensor(t)) for t in range(0, 1000, 10)]
    observations = tdq.observe(model, calls, progress=False)
    quantizers = dict(activation_quantizers(model))
    grids = {n: q.grid for n, q in quantizers.items()}
    candidates = {n: make_candidates(observations.seen[n], grids[n], "auto") for n in quantizers}
    judgement = judge(model, quantizers, candidates, calls)
    assert judgement.times.shape == (1600,)
    exact = Linear()
    for i, candidate in enumerate(candidates["b.input_quantizer"]):
        total = 0.0
        for x, t in calls:
            h = exact.a(x)
            grid = grids["b.input_quantizer"]
            step = candidate.curve(t, h, grid)
            change = exact.b(fake_quantize(h, step, grid.low, grid.high)) - exact.b(h)
            total += change.square().mean().item() / len(calls)
        found = judgement.mean("b.input_quantizer")[i].item()
        assert abs(found - total) < 0.2 * total, (candidate.estimator, candidate.kind)


def test_seeded():
    model = tdq.quantize(Linear(), tdq.Recipe(edges=4))
    calls = [(torch.ones(2, 8) * k, torch.tensor(k)) for k in (1, 2)]
    observations = tdq.observe(model, calls, progress=False)
    quantizers = dict(activation_quantizers(model))
    grids = {n: q.grid for n, q in quantizers.items()}
    candidates = {n: make_candidates(observations.seen[n], grids[n], "mse") for n in quantizers}
    first, again, other = (
        judge(model, quantizers, candidates, calls, seed).errors("a.input_quantizer")
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_how_samples_are_divided_into_calls_plays_no_part():
    model = tdq.quantize(Linear(), tdq.Recipe(edges=4))
    x, t = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) * 100
    observations = tdq.observe(model, [(x, t)], progress=False)
    quantizers = dict(activation_quantizers(model))
    grids = {n: q.grid for n, q in quantizers.items()}
    candidates = {n: make_candidates(observations.seen[n], grids[n], "auto") for n in quantizers}
    whole = judge(model, quantizers, candidates, [(x, t)])
    split = judge(
        model, quantizers, candidates, [(x[:1], t[:1]), (x[1:4], t[1:4]), (x[4:], t[4:])]
    )
    assert torch.equal(whole.times, split.times)
    for name in quantizers:
        assert torch.allclose(whole.errors(name), split.errors(name), rtol=1e-3, atol=1e-9)


def test_balanced_times_count_by_the_inverse_root_of_the_error_there():
    times = torch.tensor([0.0, 0.0, 900.0, 900.0])
    flat, moving = TableScale(torch.zeros(1), torch.ones(1)), TableScale(times[1:3], torch.ones(2))
    candidates = {"a": [Candidate("mse", curve, Grid.signed(4)) for curve in (moving, flat)]}
    effects = {"a": torch.tensor([[9.0, 10.0], [9.0, 10.0], [0.1, 1.0], [0.1, 1.0]])}
    plain = Judgement(times, effects)
    found = plain.balanced(candidates)
    assert found.weights[0] / found.weights[2] == pytest.approx(0.1)
    # The baseline keeps its error; the rest follows the weights.
    assert found.mean("a")[1] == pytest.approx(float(plain.mean("a")[1]))
    assert found.mean("a")[0] / found.mean("a")[1] < plain.mean("a")[0] / plain.mean("a")[1]
    assert found.together({"a": 0}) == pytest.approx(float(found.mean("a")[0]))


def test_no_error_at_all_is_left_as_it_is():
    flat = Candidate("mse", TableScale(torch.zeros(1), torch.ones(1)), Grid.signed(4))
    found = Judgement(torch.zeros(3), {"a": torch.zeros(3, 1)}).balanced({"a": [flat]})
    assert found.mean("a") == 0
