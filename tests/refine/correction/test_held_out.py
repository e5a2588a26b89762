import copy
import math

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import CalibrationError
from tdquant.layers.correction import correction_of
from tdquant.refine.correction import fit_correction
from tdquant.refine.correction.held_out import MARGIN
from tests.denoisers import Mixed, calls

SHIFT = torch.linspace(-1, 1, 6).reshape(-1, 1, 1)


def planted(model, sign=1.0):
    """The float model to a model whose predictions all lack the same shift."""
    plain = copy.deepcopy(model)
    return lambda x, t: plain(x, t) + sign * (1 + torch.as_tensor(t) / 1000) * SHIFT


def seen(count=6, batch=6):
    return list(calls(count, batch))


def noise(seed, count=8):
    return torch.randn(count, 6, 8, 8, generator=torch.Generator().manual_seed(seed))


def generate(model):
    """Samples of a two-step sampler."""
    x = noise(3)
    for t in (999, 300):
        x = x - 0.3 * model(x, torch.tensor(t))
    return x


def test_a_systematic_error_is_corrected(calibrated, x):
    model, exact = calibrated.eval(), planted(calibrated.eval())
    with torch.no_grad():
        before = (model(x, 300) - exact(x, 300)).square().mean()
    report = fit_correction(model, seen(), teacher=exact, progress=False)
    assert report.kept
    assert report.judged_by == "calls"
    assert report.count == 3  # the halves of a batch may be one under guidance
    assert report.after < 0.01 * report.before
    assert report.change < -3
    assert report.mean_before == pytest.approx(1)  # relative, at every time
    with torch.no_grad():
        assert (model(x, 300) - exact(x, 300)).square().mean() < 0.01 * before
    step = model.tdq.history[-1]
    assert step["step"] == "correct"
    assert step["judged_by"] == "calls"
    assert "kept" in str(report)
    assert "3 calls" in str(report)


@torch.no_grad()
def test_samples_decide_where_they_can_be_generated(calibrated, x):
    model, exact = calibrated.eval(), planted(calibrated.eval())
    report = fit_correction(model, seen(), teacher=exact, generate=generate, progress=False)
    assert report.kept
    assert report.judged_by == "samples"
    assert report.count == 8
    # To the samples of another model, the same correction is harm.
    wrong = generate(planted(calibrated_copy(model), sign=-1.0))
    report = fit_correction(
        model, seen(), teacher=exact, generate=generate, exact=wrong, progress=False
    )
    assert not report.kept
    assert report.after > report.before
    assert correction_of(model) is None
    assert "left out" in str(report)


def calibrated_copy(model):
    model = copy.deepcopy(model)
    if (found := correction_of(model)) is not None:
        found.detach(model)
    return model


class Scattered(nn.Module):
    """Adds to each sample a shift of its own: large, and the same at all its times."""

    def __init__(self, model, shifts):
        super().__init__()
        self.model, self.shifts = model, shifts

    def forward(self, x, t):
        return self.model(x, t) + self.shifts[:, None, None, None]


@torch.no_grad()
def test_what_one_half_has_by_chance_the_other_declines(calibrated):
    model = calibrated.eval()
    shifts = torch.tensor([3.0, -2.9, 0.1, 3.0, -2.9, 0.1])
    exact = Scattered(copy.deepcopy(model), shifts)
    with torch.no_grad():
        report = fit_correction(model, seen(), teacher=exact, progress=False)
    assert not report.kept
    assert correction_of(model) is None
    assert not [step for step in model.tdq.history if step["step"] == "correct"]


def test_the_model_in_float_is_its_own_teacher(x):
    model = Mixed().eval()
    tdq.quantize(model, tdq.Recipe(2, 8, scale="static", edges=2))
    tdq.calibrate(model, calls(), progress=False)
    live = copy.deepcopy(model)
    report = fit_correction(model, seen(), progress=False)
    other = fit_correction(live, seen(), teacher=Mixed().eval(), progress=False)
    assert report.before == pytest.approx(other.before, rel=1e-3)
    assert report.after == pytest.approx(other.after, rel=1e-3)
    assert math.isfinite(report.change)


def test_targets_in_place_of_a_teacher(calibrated):
    model, exact = calibrated.eval(), planted(calibrated.eval())
    with torch.no_grad():
        targets = [exact(*call) for call in seen()]
    report = fit_correction(model, seen(), targets=targets, progress=False)
    assert report.kept
    with pytest.raises(CalibrationError, match="5 targets of 6 calls"):
        fit_correction(model, seen(), targets=targets[:5], progress=False)
    assert correction_of(model) is not None


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_too_little_to_decide_by(calibrated, batch, count):
    """One trajectory has no other half."""
    model, exact = calibrated.eval(), planted(calibrated.eval())
    few = [(x, torch.tensor(999 - 100 * i)) for i, (x, _) in enumerate(seen(count, batch))]
    report = fit_correction(model, few, teacher=exact, progress=False)
    if batch == 2:
        assert report.count == 2
    else:
        assert not report.kept
        assert report.count == 0
        assert correction_of(model) is None
        assert "no calls to decide by" in str(report)


def test_fitting_again_starts_without_it(calibrated, x):
    model, exact = calibrated.eval(), planted(calibrated.eval())
    first = fit_correction(model, seen(), teacher=exact, progress=False)
    again = fit_correction(model, seen(), teacher=exact, progress=False)
    assert again == first
    assert sum(hook.__name__ == "_after" for hook in model._forward_hooks.values()) == 1


def test_freezing_keeps_what_was_fitted(calibrated, x):
    model, exact = calibrated.eval(), planted(calibrated.eval())
    fit_correction(model, seen(), teacher=exact, progress=False)
    frozen = tdq.freeze(model)
    with torch.no_grad():
        assert (frozen(x, 300) - exact(x, 300)).square().mean() < 0.1
    with pytest.raises(CalibrationError, match="no float model"):
        fit_correction(frozen, seen(), progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calls": []}, "no calls"),
        ({"gain": "most"}, "no gain='most'"),
        ({"teacher": lambda x, t: x * float("nan")}, "not finite.*timestep"),
        ({"teacher": lambda x, t: [x]}, "output of type list"),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_was(calibrated, x, options, words):
    model = calibrated.eval()
    fit_correction(model, seen(), teacher=planted(model), progress=False)
    history = list(model.tdq.history)
    with torch.no_grad():
        y = model(x, 3)
        with pytest.raises(CalibrationError, match=f"(?s){words}"):
            fit_correction(model, **{"calls": seen(), "progress": False, **options})
        assert torch.equal(model(x, 3), y)
    assert model.tdq.history == history


def test_pending_scales_are_refused():
    model = Mixed().eval()
    tdq.quantize(model, tdq.Recipe(8, 8))
    with pytest.raises(CalibrationError, match="not calibrated"):
        fit_correction(model, seen(), progress=False)


@torch.no_grad()
def test_samples_that_are_not_finite_keep_nothing(calibrated):
    model, exact = calibrated.eval(), planted(calibrated.eval())
    made = iter([noise(3), noise(4) * float("nan")])
    report = fit_correction(
        model, seen(), teacher=exact, generate=lambda m: next(made), exact=noise(5), progress=False
    )
    assert not report.kept
    assert correction_of(model) is None


def test_modes_and_gradients_stay(calibrated):
    calibrated.train()
    wanted = {n: p.requires_grad for n, p in calibrated.named_parameters()}
    fit_correction(calibrated, seen(), teacher=planted(calibrated), progress=False)
    assert all(m.training for n, m in calibrated.named_modules() if "tdq_correction" not in n)
    assert wanted.items() <= {n: p.requires_grad for n, p in calibrated.named_parameters()}.items()


@torch.no_grad()
def test_samples_are_not_generated_for_what_calls_decline(calibrated):
    model = calibrated.eval()
    exact = Scattered(copy.deepcopy(model), torch.tensor([3.0, -2.9, 0.1, 3.0, -2.9, 0.1]))
    asked = []
    options = {"teacher": exact, "generate": asked.append, "progress": False}
    report = fit_correction(model, seen(), **options)
    assert not report.kept
    assert report.judged_by == "calls"
    assert not asked


@torch.no_grad()
def test_samples_alone_decide_on_gains_that_raise_the_error_of_calls(calibrated):
    """A model of which a part of the prediction is lost, as training leaves it."""
    model = calibrated.eval()
    plain = copy.deepcopy(model)

    def exact(x, t):
        return 1.25 * plain(x, t)

    options = {"teacher": exact, "generate": generate, "gain": "energy", "progress": False}
    report = fit_correction(model, seen(), **options)
    assert report.kept
    assert report.judged_by == "samples"
    assert report.facts["gain"] == pytest.approx([1.25, 1.25], rel=1e-3)


@torch.no_grad()
def test_an_improvement_below_the_margin_is_left_out(calibrated):
    """Noise of which a thousandth is the same everywhere."""
    model = calibrated.eval()
    plain = copy.deepcopy(model)

    def exact(x, t):
        rng = torch.Generator().manual_seed(int(t))
        return plain(x, t) + torch.randn(x.shape, generator=rng) + 0.03

    calls = [(x, t) for x, t in seen(24, 64)]
    report = fit_correction(model, calls, teacher=exact, progress=False)
    assert -MARGIN < report.change < 0
    assert not report.kept
