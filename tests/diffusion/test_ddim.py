import numpy as np
import pytest
import torch

from tdquant.diffusion.sampling import denoise_steps, sample
from tdquant.errors import ModelError

ddim = pytest.importorskip("tdquant.diffusion.ddim")

PARAMS = {"linear_start": 0.0015, "linear_end": 0.0195}


def published_betas(schedule, count, start=1e-4, end=2e-2, s=8e-3):
    """The noise schedules of latent-diffusion, once more."""
    i = np.arange(count) / (count - 1)
    if schedule == "linear":
        return (start**0.5 + (end**0.5 - start**0.5) * i) ** 2
    if schedule == "sqrt_linear":
        return start + (end - start) * i
    if schedule == "sqrt":
        return (start + (end - start) * i) ** 0.5
    f = [np.cos((t / count + s) / (1 + s) * np.pi / 2) ** 2 for t in range(count + 1)]
    return np.array([min(1 - b / a, 0.999) for a, b in zip(f, f[1:])])  # noqa: B905, RUF007


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sqrt_linear", "sqrt"])
@pytest.mark.parametrize("count", [100, 1000])
def test_schedules(schedule, count):
    expected = published_betas(schedule, count)
    made = ddim.make_ddim({"timesteps": count, "beta_schedule": schedule})
    assert np.allclose(made.betas.double(), expected, rtol=1e-6)
    exact = np.cumprod(1 - expected)
    assert np.allclose(made.alphas_cumprod.double(), exact, rtol=1e-6)
    again = ddim.DDIM.from_config(made.config)
    assert torch.equal(again.alphas_cumprod, made.alphas_cumprod)


def test_linear_is_linear_in_the_root_of_beta():
    # REFERENCE's trap: DDPM's own schedule is linear in beta and ends at 4e-5, not 7e-4.
    ours = ddim.make_ddim({})
    ddpm = ddim.make_ddim({"beta_schedule": "sqrt_linear"})
    assert float(ours.alphas_cumprod[-1]) == pytest.approx(7.3e-4, rel=0.02)
    assert float(ddpm.alphas_cumprod[-1]) == pytest.approx(4.0e-5, rel=0.02)


def test_given_betas_and_another_cosine():
    given = [0.1, 0.2, 0.3]
    assert torch.equal(ddim.make_ddim({"given_betas": given}).betas, torch.tensor(given))
    made = ddim.make_ddim({"beta_schedule": "cosine", "cosine_s": 0.02, "timesteps": 50})
    assert np.allclose(made.betas.double(), published_betas("cosine", 50, s=0.02), rtol=1e-6)


def test_what_a_model_predicts():
    for ours, theirs in (("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")):
        assert ddim.make_ddim({"parameterization": ours}).config.prediction_type == theirs
    with pytest.raises(ModelError, match="no parameterization 'score'"):
        ddim.make_ddim({"parameterization": "score"})
    with pytest.raises(ModelError, match="no noise schedule 'quartic'"):
        ddim.make_ddim({"beta_schedule": "quartic"})


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 200, 500])
def test_published_timesteps(steps):
    made = ddim.make_ddim(PARAMS)
    made.set_timesteps(steps)
    published = np.arange(0, 1000, 1000 // steps) + 1
    assert made.timesteps.tolist() == published[::-1].tolist()


@pytest.mark.parametrize("limit", [7, 1000])
def test_any_number_of_steps_is_that_number(limit):
    made = ddim.make_ddim({"timesteps": limit})
    for steps in {*range(1, 8), *range(1, limit, 97), limit - 1, limit}:
        made.set_timesteps(steps)
        t = made.timesteps
        assert len(t) == steps
        assert (t.diff() < 0).all()
        assert t.min() >= 0
        assert t.max() < limit
        # Evenly spread: no gap is more than one longer than another.
        gaps = -t.diff()
        assert steps < 3 or gaps.max() - gaps.min() <= 1
    for steps in (0, limit + 1):
        with pytest.raises(ModelError, match=f"{steps} sampler steps"):
            made.set_timesteps(steps)


def transcription(bars, ts, x, model, eta, noise, kind="eps"):
    """DDIM by equation 12 in float64, one timestep after the other."""
    bars = np.asarray(bars, dtype=np.float64)
    for i, t in enumerate(ts):
        a = bars[t]
        b = bars[ts[i + 1]] if i + 1 < len(ts) else (bars[0] if t else 1.0)
        out = model(x, t)
        if kind == "eps":
            eps, x0 = out, (x - np.sqrt(1 - a) * out) / np.sqrt(a)
        elif kind == "x0":
            eps, x0 = (x - np.sqrt(a) * out) / np.sqrt(1 - a), out
        else:
            x0 = np.sqrt(a) * x - np.sqrt(1 - a) * out
            eps = np.sqrt(a) * out + np.sqrt(1 - a) * x
        sigma = eta * np.sqrt((1 - b) / (1 - a) * (1 - a / b))
        x = np.sqrt(b) * x0 + np.sqrt(1 - b - sigma**2) * eps + sigma * noise[i]
    return x


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
@pytest.mark.parametrize(("steps", "eta"), [(10, 0.0), (10, 1.0), (7, 0.5), (50, 0.0), (1, 0.0)])
def test_equals_the_formula(kind, steps, eta):
    made = ddim.make_ddim({**PARAMS, "timesteps": 50, "parameterization": kind})
    made.set_timesteps(steps)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 4, generator=rng)
    noise = torch.randn(steps, *x.shape, generator=rng)

    def model(z, t):
        return 0.3 * z * (1 + t / 50) - 0.1

    found = x
    for t, z in zip(made.timesteps, noise, strict=True):
        out = model(found, float(t))
        found = made.step(out, t, found, eta=eta, variance_noise=z).prev_sample
    args = (made.timesteps.tolist(), x.double().numpy(), model, eta, noise.double().numpy(), kind)
    expected = transcription(made.alphas_cumprod, *args)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_one_generator_a_sample():
    made = ddim.make_ddim(PARAMS)
    made.set_timesteps(20)
    x = torch.randn(3, 2, 4, 4)

    def step(z, seeds):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        return made.step(z, made.timesteps[3], z, eta=1.0, generator=generators).prev_sample

    assert torch.equal(step(x, (1, 2, 3))[1:2], step(x[1:2], (2,)))
    assert not torch.equal(step(x, (1, 2, 3)), step(x, (1, 4, 3)))
    with pytest.raises(ModelError, match="both generator"):
        made.step(x, 1, x, eta=1.0, generator=torch.Generator(), variance_noise=x)


def test_a_timestep_that_was_not_chosen():
    made = ddim.make_ddim(PARAMS)
    made.set_timesteps(10)
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ModelError, match="timestep 5 is none of the 10"):
        made.step(x, 5, x)


@pytest.mark.parametrize("steps", [1, 3, 64, 100])
def test_sampling_a_gaussian_gives_its_variance(steps):
    # Data of variance 1/4 a pixel: the ideal prediction is linear in x, many steps are exact.
    made = ddim.make_ddim({"timesteps": 100, "beta_schedule": "cosine"})
    bars = made.alphas_cumprod

    def ideal(x, t):
        a = bars[int(t)]
        return x * (1 - a).sqrt() / (a / 4 + 1 - a)

    images = sample(ideal, made, 64, (1, 8, 8), steps=steps, progress=False)
    assert images.isfinite().all()
    if steps == 100:
        assert float(images.std()) == pytest.approx(0.5, abs=0.03)


def test_the_same_as_diffusers_where_steps_divide():
    diffusers = pytest.importorskip("diffusers")
    made = ddim.make_ddim(PARAMS)
    stock = diffusers.DDIMScheduler.from_config(made.config)
    x = torch.randn(1, 2, 4, 4)
    for scheduler in (made, stock):
        scheduler.set_timesteps(20)
    assert torch.equal(made.timesteps, stock.timesteps)

    def last(scheduler):
        return [z for *_, z in denoise_steps(lambda x, t: 0.1 * x, scheduler, 20, x)][-1]

    assert torch.allclose(last(made), last(stock), rtol=1e-4, atol=1e-5)


def test_clipping():
    made = ddim.DDIM(clip_sample=True, beta_schedule="scaled_linear")
    made.set_timesteps(10)
    x = torch.full((1, 1, 2, 2), 5.0)
    out = made.step(torch.zeros_like(x), made.timesteps[0], x, use_clipped_model_output=True)
    assert (out.pred_original_sample == 1).all()
    a = made.alphas_cumprod[made.timesteps[0]], made.alphas_cumprod[made.timesteps[1]]
    eps = (x - a[0].sqrt()) / (1 - a[0]).sqrt()
    assert torch.allclose(out.prev_sample, a[1].sqrt() + (1 - a[1]).sqrt() * eps)


def test_saved_and_loaded(tmp_path):
    made = ddim.make_ddim({**PARAMS, "beta_schedule": "sqrt", "parameterization": "v"})
    made.save_pretrained(tmp_path)
    again = ddim.DDIM.from_pretrained(tmp_path)
    assert torch.equal(again.alphas_cumprod, made.alphas_cumprod)
    assert again.config.prediction_type == "v_prediction"


def test_what_it_does_not_have():
    with pytest.raises(ModelError, match="trailing"):
        ddim.DDIM(timestep_spacing="trailing")
    with pytest.raises(ModelError, match="2 betas for 1000"):
        ddim.DDIM(trained_betas=[0.1, 0.2])
