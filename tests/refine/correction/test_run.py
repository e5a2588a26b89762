import copy
import types
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import CalibrationError, FreezeError
from tdquant.layers.correction import correction_of
from tdquant.refine.correction.fit import FEWEST, KNOTS, LIMIT
from tests.denoisers import Mixed, calls

TIMES = (0, 300, 999)


def law(t):
    """Between 0.8 at the image and 1.5 in the noise, linear in its logarithm."""
    return 0.8 * (1.5 / 0.8) ** (torch.as_tensor(t, dtype=torch.float32) / 999)


def louder(model, law=law):
    """A float model whose predictions are those of ``model`` times a law of time."""
    return lambda x, t: law(t).reshape(-1, 1, 1, 1) * model(x, t)


@pytest.fixture
def corrected(frozen):
    return tdq.correct(frozen, louder(copy.deepcopy(frozen)), list(calls()), progress=False)


def test_finds_the_gain_that_is_missing(frozen, corrected, x):
    times = torch.tensor([0, 300, 999])
    with torch.no_grad():
        for t in (*map(torch.tensor, TIMES), times):
            ratio = corrected(x, t) / frozen(x, t)
            wanted = law(t).reshape(-1, 1, 1, 1).expand_as(ratio)
            assert torch.allclose(ratio, wanted, rtol=2e-3)
    step = corrected.tdq.history[-1]
    assert step["step"] == "correct"
    assert step["gain"] == pytest.approx([0.8, 1.5], rel=2e-2)


class Given(nn.Module):
    """A denoiser that predicts what a function makes of noise, quantized or not."""

    def __init__(self, change):
        super().__init__()
        self.layer, self.change = nn.Conv2d(6, 6, 1), change

    def forward(self, x, t):
        return self.change(x) + 0 * self.layer(x)


def fitted(change, teacher=lambda x, t: x):
    """The gain that a model of given predictions gets."""
    model = Given(change).eval()
    tdq.quantize(model, tdq.Recipe(8, 32, edges=8))
    frozen = tdq.freeze(model)
    x = torch.randn(64, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    corrected = tdq.correct(frozen, teacher, [(x, torch.tensor(5))], progress=False)
    return float(correction_of(corrected).scale.table)


def noise(x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(2))


def test_what_was_lost_comes_back():
    """A prediction as training to the least squared error leaves it: E[z y] = E[z^2]."""
    kept = 0.7
    gain = fitted(lambda x: kept * x + (kept * (1 - kept)) ** 0.5 * noise(x))
    assert gain == pytest.approx(1 / kept, rel=2e-2)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_what_was_added_is_not_multiplied(share):
    """A prediction of full energy, a part of which is noise that rounding added."""
    gain = fitted(lambda x: share * x + (1 - share**2) ** 0.5 * noise(x))
    assert gain == pytest.approx(1, abs=2e-2)
    assert fitted(lambda x: x + noise(x)) == pytest.approx(1, abs=2e-2)


def test_predictions_that_are_too_loud():
    assert fitted(lambda x: 1.25 * x) == pytest.approx(0.8, rel=1e-4)


class Several(Given):
    """Returns others beside its prediction, under a name or in a tuple."""

    def __init__(self, change, packed):
        super().__init__(change)
        self.packed = packed

    def forward(self, x, t):
        return packed(super().forward(x, t), 3 * x, self.packed)


def packed(y, other, kind):
    if kind == "list":
        return types.SimpleNamespace(sample=list(y))
    return (y, other) if kind == "tuple" else types.SimpleNamespace(sample=y, other=other)


@pytest.mark.parametrize("kind", ["tuple", "sample"])
def test_of_several_outputs_the_prediction_alone_is_fitted(kind):
    model = Several(lambda x: 1.25 * x, kind).eval()
    tdq.quantize(model, tdq.Recipe(8, 32, edges=8))
    x, t = torch.randn(8, 6, 8, 8), torch.tensor(5)
    frozen = tdq.freeze(model)
    corrected = tdq.correct(frozen, lambda x, t: packed(x, -x, kind), [(x, t)], progress=False)
    assert float(correction_of(corrected).scale.table) == pytest.approx(0.8, rel=1e-4)
    found = corrected(x, t)
    first, other = found if kind == "tuple" else (found.sample, found.other)
    assert torch.allclose(first, x, rtol=1e-4)
    assert torch.equal(other, 3 * x)


def test_a_prediction_that_is_not_one_tensor_is_refused():
    model = Several(lambda x: x, "list").eval()
    tdq.quantize(model, tdq.Recipe(8, 32, edges=8))
    frozen = tdq.freeze(model)
    call = torch.randn(2, 6, 8, 8), torch.tensor(5)
    with pytest.raises(CalibrationError, match=r"SimpleNamespace(?s:.*)one tensor"):
        tdq.correct(frozen, lambda x, t: x, [call], progress=False)
    assert correction_of(frozen) is None


def test_the_model_that_is_corrected_stays_as_it_was(frozen, x):
    scheduler = tdq.models.load_embedded("cats-ddpm").scheduler
    with torch.no_grad():
        before = frozen(x, 5)
        own = tdq.trajectories(frozen, scheduler, 2, (6, 8, 8), steps=5)
        corrected = tdq.correct(frozen, louder(copy.deepcopy(frozen)), own, progress=False)
        assert torch.equal(frozen(x, 5), before)
        assert not torch.allclose(corrected(x, 5), before)
        again = tdq.correct(corrected, louder(frozen, lambda t: t * 0 + 1), own, progress=False)
        assert torch.allclose(again(x, 5), before, rtol=1e-4)
        assert not torch.allclose(corrected(x, 5), before)
    assert correction_of(frozen) is None
    assert [step["step"] for step in frozen.tdq.history].count("correct") == 0
    assert [step["step"] for step in again.tdq.history].count("correct") == 2


def test_correcting_again_fits_anew(frozen, corrected, x):
    gains = correction_of(corrected).scale.table.clone()
    again = tdq.correct(corrected, louder(frozen), calls(), rounds=1, progress=False)
    assert torch.allclose(correction_of(again).scale.table, gains, rtol=1e-4)


def test_trajectories_follow_the_gain_found_before(frozen):
    """The second round sees other inputs than the first: those of the corrected model."""
    scheduler = tdq.models.load_embedded("cats-ddpm").scheduler
    seen = []

    def teacher(x, t):
        seen.append(x.clone())
        return 1.5 * frozen_float(x, t)

    frozen_float = Mixed().eval()
    of_its_own = tdq.trajectories(frozen, scheduler, 2, (6, 8, 8), steps=5)
    tdq.correct(frozen, teacher, of_its_own, progress=False)
    assert torch.equal(seen[0], seen[5])
    assert not torch.allclose(seen[4], seen[9])


def test_what_is_lost_is_not_multiplied_for(frozen):
    quiet = tdq.correct(
        frozen, louder(copy.deepcopy(frozen), lambda t: torch.tensor(50.0)), calls()
    )
    assert float(correction_of(quiet).scale.table.max()) == pytest.approx(LIMIT)


def test_many_continuous_times_are_taken_together():
    model = Mixed().eval()
    tdq.quantize(model, tdq.Recipe(scale="static"))
    tdq.calibrate(model, calls(), progress=False)
    frozen = tdq.freeze(model)
    rng = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(64, 6, 8, 8, generator=rng), 999 * torch.rand(64, generator=rng))
        for _ in range(8)
    ]
    teacher = louder(copy.deepcopy(frozen))
    scale = correction_of(tdq.correct(frozen, teacher, iter(batches), progress=False)).scale
    assert len(scale.knots) == 8 * 64 // FEWEST < KNOTS
    assert torch.allclose(scale.table, law(scale.knots), rtol=2e-2)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"calls": []}, CalibrationError, "no calls"),
        ({"rounds": 0}, CalibrationError, "rounds=0"),
        ({"teacher": lambda x, t: x * float("nan")}, CalibrationError, "not finite.*timestep"),
    ],
)
def test_bad_input_leaves_the_model_as_it_was(frozen, x, wrong, error, words):
    options = {"teacher": Mixed().eval(), "calls": list(calls()), "progress": False, **wrong}
    with torch.no_grad():
        before = frozen(x, 5)
        with pytest.raises(error, match=f"(?s){words}"):
            tdq.correct(frozen, **options)
        assert torch.equal(frozen(x, 5), before)
    assert correction_of(frozen) is None


def test_only_frozen_models(calibrated):
    with pytest.raises(FreezeError, match="frozen model can be corrected"):
        tdq.correct(calibrated, Mixed(), calls())


@dataclass
class Output:
    sample: torch.Tensor
    other: str = "kept"


class Returning(Mixed):
    """A Mixed model that returns its prediction in another form."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x, timestep):
        return self.form(super().forward(x, timestep))


def diffusers_output(y):
    from diffusers.models.unets.unet_2d import UNet2DOutput

    return UNet2DOutput(sample=y)


@pytest.mark.parametrize(
    ("form", "prediction"),
    [
        (lambda y: (y, "kept"), lambda out: out[0] if out[1] == "kept" else None),
        (Output, lambda out: out.sample if out.other == "kept" else None),
        (diffusers_output, lambda out: out.sample if out[0] is out.sample else None),
        (lambda y: torch.cat([y, y], 1), lambda out: out[:, :6]),
    ],
)
def test_every_form_of_output(form, prediction, x):
    model = Returning(form).eval()
    tdq.quantize(model, tdq.Recipe(scale="static"))
    tdq.calibrate(model, calls(), progress=False)
    frozen = tdq.freeze(model)
    plain = copy.deepcopy(frozen)

    def teacher(x, t):
        return form(1.25 * prediction(plain(x, t)))

    corrected = tdq.correct(frozen, teacher, calls(), progress=False)
    with torch.no_grad():
        before, after = plain(x, 7), corrected(x, 7)
    assert torch.allclose(prediction(after), 1.25 * prediction(before), rtol=1e-4)
    if isinstance(after, torch.Tensor):  # variances behind the prediction
        assert torch.equal(after[:, 6:], before[:, 6:])


def test_a_copy_has_a_gain_of_its_own(frozen, corrected, x):
    with torch.no_grad():
        y = corrected(x, 40)
        other = copy.deepcopy(corrected)
        other.tdq_correction.scale.table.fill_(1.0)
        assert torch.equal(corrected(x, 40), y)
        assert torch.allclose(other(x, 40), frozen(x, 40), rtol=1e-6)


def test_half_precision_keeps_the_table(corrected, x):
    table = corrected.tdq_correction.scale.table.clone()
    half = corrected.to(torch.bfloat16)
    assert torch.equal(half.tdq_correction.scale.table, table)
    with torch.no_grad():
        assert half(x.bfloat16(), torch.tensor(3)).dtype == torch.bfloat16


def test_plain_sequential_models_too():
    class Plain(nn.Sequential):
        def forward(self, x, t):
            return super().forward(x)

    torch.manual_seed(0)
    model = Plain(nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1)).eval()
    float_model = copy.deepcopy(model)
    tdq.quantize(model, tdq.Recipe(2, 8, edges=2))
    tdq.calibrate(model, calls(), progress=False)
    frozen = tdq.correct(tdq.freeze(model), float_model, calls(), progress=False)
    assert correction_of(frozen) is not None


def test_one_step_samplers_have_one_gain(frozen):
    call = next(iter(calls()))
    corrected = tdq.correct(frozen, louder(copy.deepcopy(frozen)), [call], progress=False)
    gains = correction_of(corrected).scale.table
    assert bool((gains == gains[0]).all())
    assert corrected(*call).isfinite().all()
