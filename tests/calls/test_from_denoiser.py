import copy

import pytest
import torch

import tdquant as tdq
from tdquant.calls import Trajectories, record_denoiser, trajectories
from tdquant.diffusion import make_scheduler, sample
from tdquant.errors import ModelError


@pytest.fixture(scope="module")
def pipe():
    return tdq.models.load_embedded("tiny")


def record(pipe, **options):
    return list(
        trajectories(pipe.unet, pipe.scheduler, 6, pipe.shape, steps=5, batch=4, **options)
    )


NOISY = ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler", "TCDScheduler"]


@pytest.mark.parametrize("name", [*NOISY, "SASolverScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_every_scheduler_gives_equal_calls_again_and_those_of_sampling(pipe, name):
    import diffusers

    seen = []

    def spy(x, t):
        seen.append(x.clone())
        return 0.1 * x

    scheduler = getattr(diffusers, name)()
    state = torch.random.get_rng_state()
    calls = trajectories(spy, scheduler, 3, pipe.shape, steps=5, batch=2)
    first = [x for x, _ in calls]
    for again in (calls, trajectories(spy, scheduler, 3, pipe.shape, steps=5, batch=2)):
        assert all(map(torch.equal, first, [x for x, _ in again]))
    seen.clear()
    sample(spy, scheduler, 3, pipe.shape, steps=5, batch=2, progress=False)
    assert len(seen) == len(first) == 10
    assert all(map(torch.equal, first, seen))
    assert torch.equal(state, torch.random.get_rng_state())


def test_calibrating_twice_on_noisy_trajectories_gives_equal_scales(pipe):
    scheduler = make_scheduler("ddpm", pipe.scheduler)
    calls = trajectories(pipe.unet, scheduler, 2, pipe.shape, steps=4)
    found = []
    for _ in range(2):
        model = tdq.quantize(copy.deepcopy(pipe.unet), tdq.Recipe(scale="static"))
        found.append(tdq.calibrate(model, calls, progress=False).state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_they_are_the_calls_that_sampling_makes(pipe):
    seen = []

    def spy(x, t):
        seen.append((x.clone(), t))
        return pipe.unet(x, t)

    sample(spy, pipe.scheduler, 6, pipe.shape, steps=5, batch=4, seed=2, progress=False)
    calls = record(pipe, seed=2)
    assert len(calls) == len(seen) == 10
    for (x, t), (y, u) in zip(calls, seen, strict=True):
        assert torch.equal(x, y)
        assert t == u


def test_reproducible_lazy_and_counted(pipe):
    calls = trajectories(pipe.unet, pipe.scheduler, 6, pipe.shape, steps=5, batch=4)
    assert len(calls) == 10
    for (x, _), (y, _) in zip(calls, calls, strict=True):
        assert torch.equal(x, y)


def test_one_vocabulary_for_all_sources(pipe):
    options = {"count": 2, "steps": 3, "batch": 1, "seed": 5, "progress": False}
    given = {"scheduler": pipe.scheduler, "shape": pipe.shape, **options}
    for calls in (
        trajectories(pipe, **options),
        trajectories(pipe.unet, **given),
        record_denoiser(pipe.unet, **given),
    ):
        assert isinstance(calls, Trajectories)
        assert len(list(calls)) == len(calls) == 6


def test_consumers_keep_their_gradients(pipe):
    for _ in trajectories(pipe.unet, pipe.scheduler, 1, pipe.shape, steps=2):
        assert torch.is_grad_enabled()


def test_the_normal_distribution_favours_its_mean(pipe):
    count = {}
    calls = trajectories(
        pipe.unet,
        pipe.scheduler,
        64,
        pipe.shape,
        steps=10,
        batch=64,
        law="normal",
        mean=0.4,
        std=0.15,
    )
    for x, t in calls:
        count[int(t)] = len(x)
    times = torch.tensor(sorted(count))
    weights = torch.tensor([count[int(t)] for t in times]).float()
    centre = (times * weights).sum() / weights.sum()
    assert 250 < centre < 550
    assert count.get(900, 0) < count[400]


@pytest.mark.parametrize("options", [{"law": "cauchy"}, {"batch": 0}, {"count": 0}])
def test_wrong_options(pipe, options):
    with pytest.raises(ModelError):
        trajectories(pipe.unet, pipe.scheduler, **({"count": 1, "shape": pipe.shape} | options))


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "PNDMScheduler"])
def test_schedulers_that_call_several_times_a_step_are_followed_to_the_end(pipe, name):
    import diffusers

    scheduler = getattr(diffusers, name)()
    seen = []

    def spy(x, t):
        seen.append(float(t))
        return pipe.unet(x, t)

    sample(spy, scheduler, 2, pipe.shape, steps=5, batch=2, progress=False)
    recorded = trajectories(pipe.unet, scheduler, 2, pipe.shape, steps=5, batch=2)
    assert [float(t) for _, t in recorded] == seen
    assert len(recorded) == len(seen) > 5


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_out_of_range(pipe, steps):
    with pytest.raises(ModelError, match=f"{steps} sampler steps"):
        list(trajectories(pipe.unet, pipe.scheduler, 2, pipe.shape, steps=steps))
