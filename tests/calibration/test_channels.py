import pytest
import torch

from tdquant.calibration.channels import MAX_TIMES, ChannelRanges


def ranges(*parts, dimension=-3):
    found = ChannelRanges(dimension)
    for x, time in parts:
        found.update(x, torch.as_tensor(time))
    return found


def one(time):
    return 1.0


@pytest.mark.parametrize("dimension", [-3, -1])
def test_extremes_of_both_halves(dimension):
    x = torch.randn(6, 3, 4, 5)
    channels = x.movedim(dimension, 1)
    low, high = ranges((x, 7), dimension=dimension).in_steps(one)
    for half in (0, 1):
        part = channels[half::2]
        assert torch.equal(low[half], part.amin((0, 2, 3)).clamp(max=0))
        assert torch.equal(high[half], part.amax((0, 2, 3)).clamp(min=0))


def test_samples_one_by_one_are_as_a_batch():
    x = torch.randn(5, 3, 4, 4)
    whole = ranges((x, 7)).in_steps(one)
    single = ranges(*((sample[None], 7) for sample in x)).in_steps(one)
    assert all(map(torch.equal, whole, single))


def test_a_half_without_samples_reaches_nowhere():
    low, high = ranges((torch.randn(1, 3, 4, 4), 7)).in_steps(one)
    assert not low[1].any()
    assert not high[1].any()
    assert high[0].any()


def test_times_of_a_batch_are_told_apart():
    x = torch.randn(4, 3, 4, 4)
    times = torch.tensor([1.0, 9.0, 9.0, 1.0])
    apart = ranges((x, times)).in_steps(lambda t: 1 + t)
    by_time = ranges((x[times == 1], 1), (x[times == 9], 9)).in_steps(lambda t: 1 + t)
    assert all(map(torch.equal, apart, by_time))


def test_many_times_stay_few_and_no_extreme_is_lost():
    xs = torch.randn(100, 2, 3, 4, 4)
    times = torch.logspace(-3, 2, 100)
    found = ranges(*zip(xs, times.tolist(), strict=True))
    assert len(found._by_time) == MAX_TIMES
    low, high = found.in_steps(one)
    assert torch.equal(high.amax(0), xs.amax((0, 1, 3, 4)))
    assert torch.equal(low.amin(0), xs.amin((0, 1, 3, 4)))


def test_merged_times_count_in_the_finest_of_their_steps():
    xs = torch.rand(50, 2, 3, 4, 4)
    times = torch.linspace(0, 999, 50).tolist()
    exact = [x.amax((0, 2, 3)) / (1 + t) for x, t in zip(xs, times, strict=True)]
    _, high = ranges(*zip(xs, times, strict=True)).in_steps(lambda t: 1 + t)
    assert bool((high.amax(0) >= torch.stack(exact).amax(0)).all())


def test_parts_are_those_of_the_channels():
    x = torch.randn(4, 7, 4, 4)
    part = ranges((x, 3)).part(2, 4).in_steps(one)
    assert all(map(torch.equal, part, ranges((x[:, 2:6], 3)).in_steps(one)))


def test_half_precision_and_nothing_at_all():
    found = ranges((torch.randn(2, 3, 4, 4).bfloat16(), 3), (torch.zeros(0, 3, 4, 4), 4))
    low, high = found.in_steps(one)
    assert low.dtype == high.dtype == torch.float32
