import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.calls.call import run
from tdquant.calls.finding import RolloutFinder
from tdquant.diffusion import make_scheduler
from tests.denoisers import Mixed

SHAPE = (4, 6, 6)
CONFIG = {"num_train_timesteps": 1000, "clip_sample": False}


class Linear(nn.Module):
    """A prediction that is linear in x, by a factor that can be changed."""

    def __init__(self, factor=0.3):
        super().__init__()
        self.factor = factor

    def forward(self, x, t, context=None):
        y = torch.roll(x, 1, -1) * self.factor * (1 + t.reshape(-1, 1, 1, 1) / 1000)
        return y if context is None else y * (1 + context.reshape(-1, 1, 1, 1))


def found(calls, model, **options):
    finder = RolloutFinder(**options)
    for call in calls:
        finder.offer(call, run(model, call), call[1])
    return finder.found()


def recorded(model, scheduler="ddim", count=6, steps=8, batch=6):
    made = make_scheduler(scheduler, CONFIG)
    return list(tdq.trajectories(model, made, count, SHAPE, steps=steps, batch=batch, seed=3))


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++"])
def test_the_float_model_meets_its_own_calls(scheduler):
    model = Linear()
    calls = recorded(model, scheduler)
    (rollout,) = found(calls, model)
    assert len(rollout.steps) == len(calls)
    short = type(rollout)(rollout.start, rollout.steps[:-1])
    # The step from the last call but one is known: it leads to the last input.
    end = calls[-1][0]
    assert (short.run(model) - end).norm() < 1e-4 * end.norm()


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++"])
def test_another_model_goes_where_its_sampler_would_take_it(scheduler):
    model, other = Linear(), Linear(0.32)
    (rollout,) = found(recorded(model, scheduler), model)
    short = type(rollout)(rollout.start, rollout.steps[:-1])
    exact, sampled = recorded(model, scheduler)[-1][0], recorded(other, scheduler)[-1][0]
    error = short.run(other) - sampled
    assert error.norm() < 0.02 * (sampled - exact).norm()


def test_noise_that_a_sampler_draws_belongs_to_the_trajectory():
    model, rng = Linear(), torch.Generator().manual_seed(0)
    x, calls = torch.randn(6, *SHAPE, generator=rng), []
    for t in (900, 700, 500, 300, 100):
        calls.append((x, torch.tensor(t)))
        x = 0.9 * x - 0.3 * model(*calls[-1]) + 0.1 * torch.randn(x.shape, generator=rng)
    (rollout,) = found(calls, model)
    short = type(rollout)(rollout.start, rollout.steps[:-1])
    assert torch.allclose(short.run(model), calls[-1][0], atol=1e-4)


def test_both_halves_under_guidance():
    model, torch_rng = Linear(), torch.Generator().manual_seed(0)
    context = torch.tensor([0.0, 0.0, 0.1, 0.2])  # two samples, without and with a condition
    x = torch.randn(2, *SHAPE, generator=torch_rng)
    calls = []
    for t in (900, 700, 500, 300, 100):
        calls.append((x.repeat(2, 1, 1, 1), torch.tensor(t), context))
        without, given = model(*calls[-1]).chunk(2)
        x = 1.1 * x - 0.3 * (without + 5 * (given - without))
    (rollout,) = found(calls, model, samples=1)
    assert len(rollout.start) == 2
    short = type(rollout)(rollout.start, rollout.steps[:-1])
    end = short.run(model)
    assert torch.allclose(end, calls[-1][0][[0, 2]], atol=1e-4)


def test_calls_that_do_not_follow_each_other_are_no_trajectory():
    model, rng = Linear(), torch.Generator().manual_seed(0)
    noise = [(torch.randn(4, *SHAPE, generator=rng), torch.tensor(t)) for t in range(0, 900, 90)]
    assert not found(noise, model)
    assert not found([(noise[0][0], t) for _, t in noise], model)  # one input at all times
    assert not found(recorded(model)[:2], model)


def test_samples_are_those_that_fit():
    model = Linear()
    rollouts = found(recorded(model, count=9, batch=3), model, samples=5)
    assert [len(r.start) for r in rollouts] == [3, 2]


def test_outputs_of_another_shape_are_left_out():
    class Flat(Linear):
        def forward(self, x, t):
            return super().forward(x, t).flatten(1)

    calls = recorded(Linear())
    assert not found(calls, Flat())


def test_a_quantized_model_is_run_along(calibrated):
    calls = list(
        tdq.trajectories(
            Mixed().eval(),
            make_scheduler("ddim", CONFIG),
            4,
            (6, 8, 8),
            steps=6,
        )
    )
    (rollout,) = found(calls, Mixed().eval())
    ends = [rollout.run(model) for model in (Mixed().eval(), calibrated)]
    assert 0 < (ends[0] - ends[1]).norm() < ends[0].norm()


def shuffled(calls, seed=0):
    order = torch.randperm(len(calls), generator=torch.Generator().manual_seed(seed)).tolist()
    return [calls[i] for i in order]


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++"])
@pytest.mark.parametrize("batch", [6, 3, 1])
def test_the_order_of_calls_does_not_matter(scheduler, batch):
    model = Linear()
    calls = recorded(model, scheduler, batch=batch)
    ordered, other = found(calls, model), found(shuffled(calls), model)
    assert [len(rollout.steps) for rollout in other] == [8] * (6 // batch)
    ends, exact = ([r.run(Linear(0.32)) for r in rollouts] for rollouts in (other, ordered))
    # Which trajectory comes first may differ.
    ends, exact = (sorted(torch.cat(e), key=lambda x: float(x.sum())) for e in (ends, exact))
    for end, one in zip(ends, exact, strict=True):
        assert (end - one).norm() < 1e-3 * one.norm()


def test_times_that_rise():
    model, rng = Linear(), torch.Generator().manual_seed(0)
    x, calls = torch.randn(6, *SHAPE, generator=rng), []
    for t in (0.0, 100.0, 300.0, 600.0, 900.0):
        calls.append((x, torch.tensor(t)))
        x = x + 0.3 * model(*calls[-1])
    for order in (calls, shuffled(calls)):
        (rollout,) = found(order, model)
        assert torch.equal(rollout.start, calls[0][0])
        assert (rollout.run(model) - x).norm() < 1e-4 * x.norm()


def test_samples_at_times_of_their_own_belong_to_no_trajectory():
    model, calls = Linear(), recorded(Linear())
    mixed = [(x, t + torch.arange(6)) for x, t in calls]
    assert not found(mixed, model)


def test_calls_whose_order_is_not_known_are_kept_in_bounded_memory():
    model = Linear()
    calls = recorded(model)
    size = sum(t.numel() * t.element_size() for t in (*calls[0], calls[0][0], calls[0][0]))
    (rollout,) = found(shuffled(calls), model, memory=5 * size)
    assert len(rollout.steps) == 5
    assert not found(shuffled(calls), model, memory=0)


def test_another_noise_gives_what_the_sampler_would_give_from_it():
    model, other = Linear(), Linear(0.32)
    (rollout,) = found(recorded(model, count=16, batch=16), model)
    fresh = rollout.redrawn(5)
    scheduler = make_scheduler("ddim", CONFIG)
    scheduler.set_timesteps(8)
    x = fresh.start
    for t in scheduler.timesteps[:-1]:
        x = scheduler.step(other(x, t), t, x).prev_sample
    known = type(fresh)(fresh.start, fresh.steps[:-1])
    assert (known.run(other) - x).norm() < 1e-4 * x.norm()
    near = (fresh.start[:, None] - rollout.start[None]).flatten(2).norm(dim=2)
    assert near.min() > 0.5 * rollout.start[0].norm()  # other noise
    assert fresh.start.std() == pytest.approx(float(rollout.start.std()), rel=0.05)
    assert torch.equal(fresh.start, rollout.redrawn(5).start)
    assert not torch.equal(fresh.start, rollout.redrawn(6).start)


def test_another_noise_under_guidance_is_the_same_in_both_halves():
    (rollout,) = found(recorded(Linear(), batch=1, count=1), Linear())
    start = torch.cat([rollout.start] * 2)
    fresh = type(rollout)(start, rollout.steps).redrawn()
    assert torch.equal(*fresh.start.chunk(2))
    assert torch.equal(fresh.start, -start)


def test_starts_that_are_no_noise_stay():
    (rollout,) = found(recorded(Linear()), Linear())
    image = type(rollout)(rollout.start.sign() + 0.1 * rollout.start, rollout.steps)
    assert image.redrawn() is image
