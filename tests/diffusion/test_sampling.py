import pytest
import torch
from diffusers import KarrasVeScheduler

import tdquant as tdq
from tdquant.diffusion import SCHEDULERS, make_scheduler, sample
from tdquant.diffusion.sampling import denoise_steps, initial_noise
from tdquant.errors import ModelError

SHAPE = (3, 8, 8)


def gaussian(scheduler, mean=0.5, std=0.2):
    """The exact denoiser (epsilon) of data drawn from a normal distribution."""

    def predict(x, t):
        a = scheduler.alphas_cumprod[t.long()].reshape(-1, *[1] * (x.ndim - 1))
        variance = a * std**2 + 1 - a
        return (x - a.sqrt() * mean) * (1 - a).sqrt() / variance

    return predict


@pytest.fixture(scope="module")
def ddim():
    return tdq.models.load_embedded("tiny").scheduler


@pytest.mark.parametrize("scheduler", [KarrasVeScheduler(), None])
def test_what_is_no_scheduler(scheduler):
    with pytest.raises(ModelError, match="cannot be stepped through"):
        tdq.sample(lambda x, t: x, scheduler, 1, (3, 4, 4), steps=2, progress=False)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc", "ddpm"])
def test_samples_follow_the_distribution_of_an_exact_denoiser(name, ddim):
    scheduler = make_scheduler(name, ddim)
    x = sample(gaussian(ddim), scheduler, 64, SHAPE, steps=100, progress=False)
    assert x.shape == (64, *SHAPE)
    assert x.mean().item() == pytest.approx(0.5, abs=0.02)
    assert x.std().item() == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_split_over_batches_gives_the_same_images(name, ddim):
    scheduler = make_scheduler(name, ddim)

    def model(x, t):
        return 0.1 * x.tanh()

    whole = sample(model, scheduler, 6, SHAPE, steps=5, batch=6, seed=3, progress=False)
    split = sample(model, scheduler, 6, SHAPE, steps=5, batch=4, seed=3, progress=False)
    late = sample(model, scheduler, 2, SHAPE, steps=5, seed=3, start=4, progress=False)
    assert torch.allclose(whole, split, atol=1e-5)
    assert torch.allclose(whole[4:], late, atol=1e-5)
    other = sample(model, scheduler, 6, SHAPE, steps=5, seed=4, progress=False)
    assert not torch.allclose(whole, other)


@pytest.mark.parametrize("steps", [1, 3, 7, 1000])
def test_exactly_as_many_steps_as_asked(steps, ddim):
    made = list(denoise_steps(lambda x, t: 0 * x, ddim, steps, torch.randn(1, *SHAPE)))
    assert len(made) == steps


@pytest.mark.parametrize(("steps", "count"), [(0, 1), (1001, 1), (5, 0)])
def test_out_of_range(steps, count, ddim):
    with pytest.raises(ModelError):
        sample(lambda x, t: x, ddim, count, SHAPE, steps=steps, progress=False)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("DDIMScheduler", {"steps_offset": 1}, "timestep 1000 for 1000 sampler steps"),
        ("PNDMScheduler", {"steps_offset": 2}, "timestep 1001 for 1000 sampler steps"),
        ("DPMSolverMultistepScheduler", {}, "timestep 500 occurs twice"),
        ("UniPCMultistepScheduler", {}, "timestep 500 occurs twice"),
        ("DEISMultistepScheduler", {"timestep_spacing": "leading"}, "timestep 0 occurs twice"),
    ],
)
def test_timesteps_that_cannot_be_stepped_through(name, options, said):
    import diffusers

    scheduler = getattr(diffusers, name)(**options)
    with pytest.raises(ModelError, match=said):
        sample(lambda x, t: 0.1 * x, scheduler, 1, SHAPE, steps=1000, progress=False)
    with pytest.raises(ModelError, match=said):
        list(tdq.trajectories(lambda x, t: 0.1 * x, scheduler, 1, SHAPE, steps=1000))
    if name.startswith(("DPM", "UniPC")):
        x = sample(lambda x, t: 0.1 * x, scheduler, 1, SHAPE, steps=999, progress=False)
        assert x.isfinite().all()


def test_flow_matching_ends_at_the_data():
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()

    def velocity(x, t):  # towards a single image of 0.5
        return (x - 0.5) / (t / 1000)

    x = sample(velocity, scheduler, 2, SHAPE, steps=10, progress=False)
    assert torch.allclose(x, torch.full_like(x, 0.5), atol=1e-5)


def test_the_given_scheduler_is_not_changed(ddim):
    before = ddim.timesteps.clone()
    sample(lambda x, t: x * 0, ddim, 1, SHAPE, steps=3, progress=False)
    assert torch.equal(ddim.timesteps, before)


def test_noise_depends_on_seed_and_index_alone():
    noise = initial_noise(range(5), SHAPE, seed=1)
    assert torch.equal(noise[3:], initial_noise([3, 4], SHAPE, seed=1))
    assert not torch.equal(noise, initial_noise(range(5), SHAPE, seed=2))
    flat = noise.flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(5)).abs().max() < 0.3


def test_unknown_scheduler(ddim):
    with pytest.raises(ModelError, match="no scheduler 'magic'"):
        make_scheduler("magic", ddim)


def test_a_scheduler_takes_over_the_schedule():
    cats = tdq.models.load_embedded("cats-ddpm").scheduler
    for name in SCHEDULERS:
        made = make_scheduler(name, cats)
        assert made.config.prediction_type == "v_prediction"
        assert torch.equal(made.betas, cats.betas)
