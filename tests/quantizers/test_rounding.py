import pytest
import torch

from tdquant.numerics.grid import Grid
from tdquant.quantizers import (
    FrozenWeight,
    LearnedRounding,
    RoundedWeight,
    ShiftedWeight,
    WeightQuantizer,
)
from tdquant.quantizers.rounding import decided
from tdquant.quantizers.steps import mse_step


def pair(bits=4, per_channel=True):
    grid = Grid.signed(bits, narrow=True)
    torch.manual_seed(bits)
    w = torch.randn(6, 5, 3)
    return w, WeightQuantizer(grid, mse_step(w, grid, per_channel))


@pytest.mark.parametrize("bits", [2, 4, 8, 12])
@pytest.mark.parametrize("per_channel", [True, False])
def test_it_starts_at_rounding_to_nearest(bits, per_channel):
    w, q = pair(bits, per_channel)
    learned = LearnedRounding(q.grid, q.step, w)
    assert torch.equal(decided(q, w)(w), q(w))
    assert torch.allclose(learned(w), q(w), atol=1e-6)
    assert torch.equal(learned.rounded()(w), q(w))


@pytest.mark.parametrize("shift", [-5.0, 5.0])
def test_whatever_it_learns_codes_stay_on_the_grid_and_near(shift):
    w, q = pair(3)
    learned = LearnedRounding(q.grid, q.step, 3 * w)  # far beyond the grid
    learned.choice.data += shift
    found = learned.rounded().codes
    assert found.min() >= q.grid.low
    assert found.max() <= q.grid.high
    assert (found - decided(q, 3 * w).codes).abs().max() == 1
    assert torch.allclose(learned(w), found * learned.grown(w))


def test_gradients():
    w, q = pair()
    learned = LearnedRounding(q.grid, q.step, w)
    learned(w).sum().backward()
    # Straight-through: one code up is one step up.
    assert torch.allclose(learned.choice.grad, learned.grown(w).expand_as(w))
    assert torch.allclose(learned.growth.grad, learned(w).sum((1, 2)), rtol=1e-4)
    assert learned.step.grad is None


def test_codes_do_not_depend_on_the_learned_step():
    w, q = pair()
    learned = LearnedRounding(q.grid, q.step, w)
    before = learned.rounded()
    learned.growth.data += 0.7
    after = learned.rounded()
    assert torch.equal(before.codes, after.codes)
    assert torch.allclose(after.step, before.step * torch.e**0.7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_weights_freeze_to_their_codes(dtype):
    w, q = pair()
    rounded = LearnedRounding(q.grid, q.step, w).rounded()
    frozen = FrozenWeight(q.grid, rounded.step)
    assert torch.equal(frozen.codes(rounded(w.to(dtype))), rounded.codes.int())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shift_leads_to_the_codes_that_were_decided(dtype):
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 40, generator=rng).to(dtype)
    plain = WeightQuantizer(Grid.signed(4, narrow=True), torch.full((6,), 0.3))
    moved = decided(plain, weight).codes + torch.randint(-3, 4, weight.shape, generator=rng)
    chosen = RoundedWeight(plain.grid, plain.step, moved.clamp(-7, 7))
    shifted = ShiftedWeight.from_rounded(chosen, weight)
    assert torch.equal(shifted(weight), chosen(weight))
    assert torch.equal(shifted.plain()(shifted.shifted(weight)).to(dtype), chosen(weight))


def test_a_shifted_weight_goes_on_learning():
    weight = torch.randn(6, 40, requires_grad=True)
    plain = WeightQuantizer(Grid.signed(4, narrow=True), torch.full((6,), 0.3))
    shifted = ShiftedWeight.from_rounded(decided(plain, weight), weight)
    shifted(weight).square().sum().backward()
    assert weight.grad.abs().sum() > 0
    assert shifted.step.grad.abs().sum() > 0
