import copy

import pytest
import torch

import tdquant as tdq
from tdquant.calibration.protection import choose_protected
from tdquant.calls.call import run
from tdquant.calls.observing import in_float
from tdquant.choice.trial import CALLS, SAMPLES, TRAJECTORIES, WORK, Trial
from tdquant.diffusion import make_scheduler
from tdquant.errors import CalibrationError, RecipeError
from tdquant.layers.balance import BalancedLayer
from tdquant.layers.base import fold_shifts
from tdquant.quantizers import ShiftedWeight, activation_quantizers
from tdquant.recipe import FLOAT
from tests.denoisers import Mixed, calls

SHAPE = (6, 8, 8)
DDIM = {"num_train_timesteps": 1000, "clip_sample": False}


def trajectories(count=8, steps=12, seed=0):
    return tdq.trajectories(
        Mixed().eval(),
        make_scheduler("ddim", DDIM),
        count,
        SHAPE,
        steps=steps,
        batch=count,
        seed=seed,
    )


def remedied(weights, activations, *remedies, budget=None, batches=None, **recipe):
    made = tdq.Recipe(weights, activations, remedies=remedies, **recipe)
    model = tdq.quantize(Mixed().eval(), made)
    return tdq.calibrate(
        model, trajectories() if batches is None else batches, budget=budget, progress=False
    )


def bits(model):
    return {n: q.grid.bits for n, q in activation_quantizers(model)}


def error(model, seed=5):
    x = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(seed))
    exact = Mixed().eval()
    with torch.no_grad():
        return sum(
            float((model(x, torch.tensor(t)) - exact(x, torch.tensor(t))).square().mean())
            for t in (50, 300, 700, 950)
        )


@torch.no_grad()
def off(model, found):
    """The squared error over calls."""
    exact = Mixed().eval()
    return sum(float((run(model, call) - run(exact, call)).square().mean()) for call in found)


def test_a_recipe_without_remedies_has_none():
    model = remedied(4, 4)
    report = model.tdq.calibration
    assert not report.protected
    assert not report.remedies
    assert not any(isinstance(m, BalancedLayer) for m in model.modules())


def test_protected_inputs_have_more_bits_within_the_budget():
    plain = remedied(8, 4)
    for share in (0.05, 0.5):
        model = remedied(8, 4, "protection", budget=tdq.Budget(protection=share))
        protected = model.tdq.calibration.protected
        assert sum(one.cost for one in protected) <= share
        wide = {one.path + ".input_quantizer" for one in protected}
        before, after = bits(plain), bits(model)
        for name, width in after.items():
            outer = name.replace(".parts.0", "").replace(".parts.1", "")
            assert width == (8 if outer in wide else before.get(name, 4))
    assert protected
    assert error(model) < error(plain)
    assert "protected inputs" in str(model.tdq.calibration)


def test_inputs_of_eight_bits_are_left_in_float_at_three_times_the_cost():
    model = remedied(8, 8, "protection", budget=tdq.Budget(protection=1.0))
    protected = model.tdq.calibration.protected
    assert protected
    assert {one.bits for one in protected} == {FLOAT}
    assert not {one.path + ".input_quantizer" for one in protected} & set(bits(model))
    assert sum(one.cost for one in protected) <= 1.0


def test_bits_that_the_recipe_sets_are_left_alone():
    overrides = {"*": {"activations": 4}}
    model = remedied(8, 4, "protection", budget=tdq.Budget(protection=1.0), overrides=overrides)
    assert not model.tdq.calibration.protected
    nothing = remedied(8, 4, "protection", budget=tdq.Budget(protection=0.0))
    assert not nothing.tdq.calibration.protected


def test_choosing_leaves_the_model_alone():
    recipe = tdq.Recipe(8, 4)
    model = tdq.quantize(Mixed().eval(), recipe)
    observations = tdq.observe(model, trajectories(), progress=False)
    before = copy.deepcopy(model.state_dict()), bits(model)
    assert choose_protected(model, observations, recipe, 1.0, progress=False)
    assert bits(model) == before[1]
    assert all(torch.equal(v, before[0][k]) for k, v in model.state_dict().items())


def test_rounding_chooses_other_codes_on_the_same_grid():
    plain, model = remedied(3, 8), remedied(3, 8, "rounding", time_weights=8)
    (outcome,) = model.tdq.calibration.remedies
    assert outcome.name == "rounding"
    assert outcome.kept
    assert outcome.after < outcome.before
    others = list(trajectories(seed=9))
    assert off(model, others) < 0.9 * off(plain, others)
    frozen, other = tdq.freeze(model), tdq.freeze(plain)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(frozen.state_dict().values(), other.state_dict().values(), strict=False)
    )
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert torch.equal(frozen(x, torch.tensor(4)), model.eval()(x, torch.tensor(4)))


def test_wide_weights_are_rounded_to_nearest():
    assert not remedied(16, 8, "rounding", time_weights=32).tdq.calibration.remedies
    assert not remedied(32, 8, "rounding", time_weights=32).tdq.calibration.remedies


def uneven(x):
    """Inputs whose channels are of very different sizes."""
    return x * torch.tensor([1.0] + 5 * [0.02]).reshape(1, 6, 1, 1)


def test_factors_where_channels_differ():
    batches = [(uneven(x), t) for x, t in calls(24, batch=16)]
    recipe = {"overrides": {"conv_in": {"weights": 8, "activations": 5}}}
    plain = remedied(8, 8, batches=batches, **recipe)
    model = remedied(8, 8, "factors", batches=batches, **recipe)
    layer = model.conv_in
    assert isinstance(layer, BalancedLayer)
    factors = 1 / layer.divide.inverse
    assert factors[0] > 5 * factors[1:].max()
    x = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(8))
    exact, t = Mixed().eval(), torch.tensor(300)
    with torch.no_grad():
        errors = [(m(uneven(x), t) - exact(uneven(x), t)).square().mean() for m in (plain, model)]
    assert errors[1] < errors[0]


def test_factors_of_channels_that_are_alike_are_not_worth_it():
    model = remedied(8, 8, "factors", batches=calls(8, batch=16))
    assert not any(isinstance(m, BalancedLayer) for m in model.modules())


def test_what_does_not_help_is_taken_back():
    model = tdq.quantize(Mixed().eval(), tdq.Recipe(8, 8, remedies=()))
    observations = tdq.observe(model, trajectories(), progress=False)
    trial = Trial(observations, None)
    trial.record(model)
    tdq.calibrate(model, observations, progress=False)
    bias, applied = model.conv_out.bias, []

    def change(apply):
        applied.append(apply)
        with torch.no_grad():
            bias.add_(1.0 if apply else -1.0)

    outcome = trial.confirm(model, "bias", "a shift", change)
    assert not outcome.kept
    assert applied == [True, False]
    assert "not kept" in str(outcome)


@pytest.mark.parametrize(
    ("batches", "generate", "basis"),
    [
        (lambda: trajectories(), None, TRAJECTORIES),
        (lambda: calls(), None, CALLS),
        (lambda: calls(), lambda m: m(torch.ones(2, *SHAPE), torch.tensor(9)), SAMPLES),
    ],
)
def test_the_report_says_what_models_were_compared_by(batches, generate, basis):
    model = tdq.quantize(Mixed().eval(), tdq.Recipe(4, 8))
    tdq.calibrate(model, batches(), generate=generate, progress=False)
    report = model.tdq.calibration
    assert report.basis == basis
    assert basis in str(report)


def test_samples_from_unseeded_noise_are_the_same_in_every_trial():
    made = []

    def generate(net):
        noise = torch.randn(2, *SHAPE)
        made.append(noise)
        return net(noise, torch.tensor(500))

    state = torch.get_rng_state()
    model = tdq.quantize(Mixed().eval(), tdq.Recipe())
    tdq.calibrate(model, calls(), generate=generate, progress=False)
    assert len(made) > 2
    assert all(torch.equal(noise, made[0]) for noise in made)
    assert torch.equal(torch.get_rng_state(), state)


NO_SAMPLES = {
    "none": (lambda net: None, "type NoneType"),
    "a list": (lambda net: [torch.ones(2, 3)], "type list"),
    "numpy": (lambda net: torch.ones(2, 3).numpy(), "type ndarray"),
    "one sample": (lambda net: torch.ones(3), r"shape \(3,\)"),
    "not finite": (lambda net: torch.full((2, 3), float("nan")), "NaN or infinite samples"),
}


@pytest.mark.parametrize("remedies", [(), "auto"])
@pytest.mark.parametrize("name", NO_SAMPLES)
def test_what_generate_gives_has_to_be_samples(name, remedies):
    generate, said = NO_SAMPLES[name]
    model = tdq.quantize(Mixed().eval(), tdq.Recipe(remedies=remedies))
    with pytest.raises(CalibrationError, match=said):
        tdq.calibrate(model, calls(), generate=generate, progress=False)


def test_samples_that_do_not_depend_on_the_model_are_warned_of():
    exact, model = Mixed().eval(), tdq.quantize(Mixed().eval(), tdq.Recipe(remedies=()))

    def generate(net):
        return exact(torch.randn(2, *SHAPE), torch.tensor(500))

    with pytest.warns(UserWarning, match="it has to call the model that it is given"):
        tdq.calibrate(model, calls(), generate=generate, progress=False)


def test_a_budget_and_a_range_of_other_types():
    model = tdq.quantize(Mixed().eval(), tdq.Recipe())
    with pytest.raises(RecipeError, match="a budget of type float"):
        tdq.calibrate(model, calls(), budget=0.5, progress=False)
    with pytest.raises(RecipeError, match="time_range=5"):
        tdq.calibrate(model, calls(), time_range=5, progress=False)


@pytest.mark.parametrize("count", [1, 8])
def test_few_calls(count):
    model = tdq.quantize(Mixed().eval(), tdq.Recipe(4, 5))
    tdq.calibrate(model, list(calls(count)), progress=False)
    assert model(torch.ones(2, *SHAPE), torch.tensor(3)).isfinite().all()


def test_the_same_twice():
    states = [remedied(4, 5, *REMEDIES).state_dict() for _ in range(2)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_calibrated_anew():
    model = remedied(4, 5, *REMEDIES)
    tdq.calibrate(model, trajectories(seed=1), progress=False)
    assert error(model) < 1
    frozen = tdq.freeze(model)
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert torch.equal(frozen(x, torch.tensor(4)), model.eval()(x, torch.tensor(4)))


REMEDIES = ("factors", "protection", "rounding", "correction")


def test_decided_codes_leave_the_float_weights_alone():
    model = remedied(3, 8, "rounding", time_weights=8)
    (outcome,) = model.tdq.calibration.remedies
    assert outcome.kept
    x, t = torch.randn(2, *SHAPE), torch.tensor(40)
    with torch.no_grad(), in_float(model):
        assert torch.equal(model(x, t), Mixed().eval()(x, t))


def test_training_starts_at_decided_codes():
    model = remedied(3, 8, "rounding")
    x, t = torch.randn(2, *SHAPE), torch.tensor(40)
    with torch.no_grad():
        before = model(x, t)
        fold_shifts(model)
        assert torch.equal(model(x, t), before)
    assert not any(isinstance(m, ShiftedWeight) for m in model.modules())


class KilledError(Exception):
    """In the place of a signal."""


@pytest.fixture
def measured(monkeypatch):
    """Counts the runs that trials make, and ends with an error at the one of a number."""
    seen = {"runs": 0, "last": None}
    follow = Trial._follow

    def counted(trial, model, *see):
        seen["runs"] += 1
        if seen["runs"] == seen["last"]:
            raise KilledError
        return follow(trial, model, *see)

    monkeypatch.setattr(Trial, "_follow", counted)
    return seen


def test_a_calibration_goes_on_where_it_was_killed(tmp_path, measured):
    def calibrated(seed=0, **options):
        measured["runs"] = 0
        model = tdq.quantize(Mixed().eval(), tdq.Recipe(4, 5))
        return tdq.calibrate(model, trajectories(), seed=seed, progress=False, **options)

    exact = calibrated().state_dict()
    whole, file = measured["runs"], tmp_path / "trials.json"
    measured["last"] = whole - 1
    with pytest.raises(KilledError):
        calibrated(checkpoint=file)
    measured["last"] = None
    state = calibrated(checkpoint=file).state_dict()
    assert all(torch.equal(v, state[k]) for k, v in exact.items())
    assert measured["runs"] == 3  # in float, and the last two
    calibrated(seed=1, checkpoint=file)  # another one
    assert measured["runs"] >= whole - 1
    file.write_text(file.read_text()[:60])
    state = calibrated(checkpoint=file).state_dict()
    assert all(torch.equal(v, state[k]) for k, v in exact.items())
    assert measured["runs"] == whole


def test_large_models_are_tried_on_fewer_samples(monkeypatch):
    observations = tdq.observe(
        tdq.quantize(Mixed().eval(), tdq.Recipe(8, 8)), trajectories(), progress=False
    )
    work = 12 * sum(observations.macs.values())
    counts = []
    for samples in (100, 3.5, 0.1):
        monkeypatch.setitem(WORK, "cpu", samples * work)
        trial = Trial(observations, None)
        trial.record(Mixed().eval())
        counts.append(len(trial.samples))
    assert counts == [8, 3, 2]
