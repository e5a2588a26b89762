"""Weights in groups: what the search finds, and integers that engines can take."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdquant.errors import ConversionError, FreezeError
from tdquant.numerics.grid import Grid
from tdquant.quantizers import CodedWeight, FrozenWeight, LearnedRounding, WeightQuantizer
from tdquant.quantizers.groups import MULTIPLIER_BITS, Groups, count_groups, most
from tdquant.quantizers.rounding import decided
from tdquant.quantizers.starting import start_steps
from tdquant.quantizers.steps import mse_step
from tests.live import LiveBytes


def random_weight(shape, seed=0):
    """Rows whose groups differ in size."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator)
    return w * torch.randn(shape, generator=generator).exp()


def grouped(weight, bits=4, group=16):
    grid = Grid.signed(bits, narrow=True)
    return WeightQuantizer(grid, *start_steps(weight, grid, True, group))


@given(
    st.sampled_from(sorted(MULTIPLIER_BITS)),
    st.sampled_from([(1, 17), (5, 40), (3, 5, 3, 3), (9, 32), (4, 7, 3)]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(0, 100),
)
def test_numbers_are_int8_times_a_step_a_channel(bits, shape, dtype, seed):
    weight = random_weight(shape, seed).to(dtype)
    live = grouped(weight, bits)
    numbers = live(weight).detach()
    assert numbers.dtype == dtype
    frozen = FrozenWeight(live.grid, live.step.detach(), live.groups)
    integers = frozen.codes(numbers)
    assert int(integers.abs().max()) <= most(live.grid) * live.grid.high <= 127
    scale = frozen.scale(weight)
    assert scale.numel() == len(weight)
    assert torch.equal((integers * scale).to(dtype), numbers)
    coded = CodedWeight(live.grid, live.step.detach(), dtype, live.groups)
    assert torch.equal(coded(integers.to(torch.int8)), numbers)
    m = live.spread(weight)
    assert not (integers % m.int()).any()
    assert int(m.min()) >= 1
    assert int(m.max()) <= most(live.grid)


@pytest.mark.parametrize("bits", sorted(MULTIPLIER_BITS))
def test_nearer_than_a_step_for_each_channel(bits):
    weight = random_weight((16, 8, 3, 3))
    quantizer = grouped(weight, bits)
    grid = quantizer.grid
    plain = WeightQuantizer(grid, mse_step(weight, grid, True))
    error = (quantizer(weight) - weight).square().sum()
    assert error < 0.8 * (plain(weight) - weight).square().sum()


def test_near_the_best_multipliers_that_there_are():
    weight = random_weight((4, 64), 3)
    found = grouped(weight)
    step = found.unit(found.step.detach())[:, None]
    values = weight.unflatten(1, (-1, 16))
    least = torch.full((4, 4), torch.inf)
    for m in range(1, 17):
        s = (step * m)[..., None]
        rounded = (values / s).round().clamp(-7, 7) * s
        least = least.minimum((rounded - values).square().sum(2))
    assert (found(weight) - weight).square().sum() <= 1.02 * least.sum()


def test_rows_of_one_group_have_a_step_for_each_channel():
    weight = random_weight((6, 1, 3, 3))
    grid = Grid.signed(4, narrow=True)
    step, groups = start_steps(weight, grid, True, 16)
    assert groups is None
    assert torch.equal(step, mse_step(weight, grid, True))
    assert count_groups((6, 16), 16) == 0
    assert count_groups((6, 17), 16) == 2


def test_zeros():
    weight = random_weight((4, 64))
    weight[1] = 0
    weight[2, 16:32] = 0
    found = grouped(weight)(weight)
    assert found.isfinite().all()
    assert not found[1].any()
    assert not found[2, 16:32].any()
    assert found[2, 32:].any()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "1 weights are NaN"),
        (float("inf"), "NaN or infinite"),
        (None, "all weights"),
    ],
)
def test_weights_that_cannot_be_searched(value, words):
    weight = torch.zeros(4, 64)
    if value is not None:
        weight += 1
        weight[2, 5] = value
    for group in (0, 16):
        with pytest.raises(ConversionError, match=words) as info:
            start_steps(weight, Grid.signed(4, narrow=True), True, group, "here")
        assert info.value.where == "here"


def test_the_search_needs_little_memory():
    weight = random_weight((512, 4096))
    with LiveBytes() as live:
        grouped(weight, group=32)
    assert live.peak < 0.6 * weight.numel() * 4


def test_gradients_are_those_of_steps_of_their_own():
    """Each group is a quantizer with the step ``s m / M``."""
    weight = random_weight((3, 32)).requires_grad_()
    quantizer = grouped(weight)
    quantizer.step.data *= 0.7  # so that some entries are beyond the grid
    grad = torch.randn(3, 32)
    quantizer(weight).backward(grad)
    m, high = quantizer.spread(weight).float(), most(quantizer.grid)
    alone = weight.detach().clone().requires_grad_()
    v = alone / (quantizer.step.detach()[:, None] * m / high)
    inside = v.abs() <= 7
    slope = (v.round().clamp(-7, 7) - v * inside).detach() * m / high
    factor = (32 * 7) ** -0.5
    assert torch.allclose(weight.grad, grad * inside)
    assert torch.allclose(quantizer.step.grad, (grad * slope).sum(1) * factor, atol=1e-6)


@pytest.mark.parametrize("learned", [False, True])
def test_rounding_keeps_multipliers(learned):
    weight = random_weight((5, 40))
    quantizer = grouped(weight)
    rounded = decided(quantizer, weight)
    assert torch.equal(rounded(weight), quantizer(weight))
    assert int(rounded.codes.abs().max()) <= quantizer.grid.high
    if learned:
        learning = LearnedRounding(quantizer.grid, rounded.step, weight, rounded.groups)
        learning.growth.data += 0.01
        learning.choice.data = 1 - learning.choice.data
        learning(weight).square().sum().backward()
        assert learning.growth.grad.any()
        assert learning.growth.shape == (5,)
        rounded = learning.rounded()
        assert torch.equal(rounded(weight), learning(weight))
    # What reconstruction writes into a weight has these codes again.
    numbers = rounded(weight).detach()
    quantizer.step.data.copy_(rounded.step.detach())
    assert torch.equal(quantizer(numbers), numbers)


def test_a_weight_off_its_groups_is_seen():
    weight = random_weight((5, 40))
    live = grouped(weight)
    frozen, numbers = FrozenWeight(live.grid, live.step, live.groups), live(weight).detach()
    frozen.codes(numbers)
    group = int((live.multipliers[0] > 1).nonzero()[0, 0])
    numbers[0, 16 * group] += frozen.scale(weight)[0, 0]  # int8 still, and no multiple of m
    with pytest.raises(FreezeError, match="off its grid"):
        frozen.codes(numbers)


def test_copies_casts_and_state():
    live = grouped(random_weight((5, 40)))
    for other in (copy.deepcopy(live), live.half()):
        assert other.multipliers.dtype == torch.uint8
        assert other.step.dtype == torch.float32
        assert torch.equal(other.multipliers, live.multipliers)
    assert set(live.state_dict()) == {"step", "multipliers"}
    plain = WeightQuantizer(live.grid, live.step)
    assert set(plain.state_dict()) == {"step"}
    assert "groups of 16" in repr(live)
    assert "groups" not in repr(plain)


def test_spread_has_the_rest_in_the_last_group():
    groups = Groups(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 16)
    spread = groups.spread(torch.zeros(1, 5, 7))
    assert spread.flatten().tolist() == [1] * 16 + [2] * 16 + [3] * 3
