import contextlib
import copy
import math

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.calls.observing import in_float
from tdquant.clock import clock_of
from tdquant.errors import CalibrationError, ClockError
from tdquant.layers.correction import (
    BiasTable,
    OutputCorrection,
    correction_of,
    drop_correction,
    uncorrected,
)
from tdquant.scales import TableScale
from tests.denoisers import Mixed, Plain, calls

KNOTS = torch.tensor([0.0, 100.0, 999.0])
GAINS = torch.tensor([1.0, 1.2, 0.8])
SHIFTS = torch.arange(18.0).reshape(3, 6) / 10


def corrected(model, knots=KNOTS, gains=GAINS, shifts=SHIFTS, **options):
    """The model, with a correction behind its output."""
    bias = None if shifts is None else BiasTable(knots, shifts)
    scale = TableScale(knots, gains).requires_grad_(False)
    OutputCorrection(scale, clock_of(model), bias=bias, **options).attach(model)
    return model


@pytest.fixture
def plain(frozen):
    return copy.deepcopy(frozen)


@torch.no_grad()
@pytest.mark.parametrize(
    ("t", "gain", "shift"),
    [
        (0, 1.0, SHIFTS[0]),
        (100.0, 1.2, SHIFTS[1]),
        (25.0, 1.2**0.25, 0.75 * SHIFTS[0] + 0.25 * SHIFTS[1]),
        (999, 0.8, SHIFTS[2]),
    ],
)
def test_gains_are_linear_in_their_logarithm_and_biases_as_they_are(
    frozen, plain, x, t, gain, shift
):
    y = corrected(frozen)(x, torch.tensor(t))
    wanted = gain * plain(x, torch.tensor(t)) + shift.reshape(-1, 1, 1)
    assert torch.allclose(y, wanted, atol=1e-5)


@torch.no_grad()
def test_every_sample_at_its_own_time(frozen, x):
    model, times = corrected(frozen), torch.tensor([3, 431, 999])
    together = model(x, times)
    for i, t in enumerate(times):
        assert torch.equal(together[i : i + 1], model(x[i : i + 1], t))
        assert torch.equal(together[i : i + 1], model(x[i : i + 1], t.reshape(1)))


def test_times_of_which_nobody_knows_the_samples(frozen, x):
    corrected(frozen)
    at = clock_of(frozen).at(torch.tensor([3, 431]))
    with at, pytest.raises(ClockError, match="2 different timesteps"):
        frozen.tdq_correction(x)


@torch.no_grad()
def test_tokens_have_their_channels_last():
    model = Plain().eval()
    tdq.quantize(model, tdq.Recipe(scale="static", edges=8), timestep="when")
    tdq.calibrate(model, [(torch.randn(2, 5, 4), torch.tensor(3))], progress=False)
    frozen = tdq.freeze(model)
    shifts, x = torch.arange(12.0).reshape(3, 4), torch.randn(2, 5, 4)
    y = frozen(x, torch.tensor([0, 999]))
    found = corrected(frozen, gains=torch.ones(3), shifts=shifts, axis=-1)(
        x, torch.tensor([0, 999])
    )
    assert torch.allclose(found, y + shifts[[0, 2]][:, None], atol=1e-6)


@torch.no_grad()
def test_variances_stay(frozen, plain, x):
    model = corrected(frozen, shifts=SHIFTS[:, :2], channels=2)
    y, before = model(x, 0), plain(x, 0)
    assert torch.equal(y[:, 2:], before[:, 2:])
    assert torch.allclose(y[:, :2], before[:, :2] + SHIFTS[0, :2].reshape(-1, 1, 1))


@pytest.mark.parametrize(
    ("knots", "shifts"),
    [
        (KNOTS, SHIFTS[:2]),
        (KNOTS, SHIFTS[:, 0]),
        (KNOTS.flip(0), SHIFTS),
        (KNOTS[:0], SHIFTS[:0]),
        (KNOTS, SHIFTS * math.nan),
    ],
)
def test_tables_that_are_none(knots, shifts):
    with pytest.raises(CalibrationError, match="increasing times"):
        BiasTable(knots, shifts)


@torch.no_grad()
def test_casts_keep_the_tables(frozen, x):
    model = corrected(frozen).to(torch.bfloat16)
    assert torch.equal(correction_of(model).bias.table, SHIFTS)
    assert model(x.bfloat16(), torch.tensor(3)).dtype == torch.bfloat16
    model.load_state_dict({k: v.clone().bfloat16() for k, v in model.state_dict().items()})
    assert correction_of(model).bias.table.dtype == torch.float32


@torch.no_grad()
def test_a_state_dict_brings_its_own_knots():
    source = BiasTable(torch.arange(3.0) + 5, torch.arange(6.0).reshape(3, 2))
    table = BiasTable(torch.tensor([0.0, 3.0, 7.0]), torch.zeros(3, 2))
    table.load_state_dict(source.state_dict())
    for t in (torch.tensor(6), torch.tensor(6.5)):
        assert torch.equal(table(t), source(t))


@torch.no_grad()
def test_another_takes_the_place_of_one(frozen, plain, x):
    model = corrected(corrected(frozen), gains=torch.full((3,), 2.0), shifts=None)
    assert torch.allclose(model(x, 3), 2 * plain(x, 3))


@torch.no_grad()
def test_off_for_a_while_and_for_good(frozen, plain, x):
    model = corrected(frozen)
    y = model(x, 3)
    with contextlib.suppress(ClockError), uncorrected(model):
        assert torch.equal(model(x, 3), plain(x, 3))
        model(x)
    assert torch.equal(model(x, 3), y)
    drop_correction(model, "train")
    assert correction_of(model) is None
    assert torch.equal(model(x, 3), plain(x, 3))
    assert model.tdq.history[-1] == {"step": "drop correction", "before": "train"}
    drop_correction(model, "train")
    assert len(model.tdq.history) == len(plain.tdq.history) + 1


@torch.no_grad()
def test_freezing_keeps_it_over_the_times_of_the_tables(calibrated, x):
    live = corrected(calibrated.eval())
    frozen = tdq.freeze(live)
    found, knots = correction_of(frozen), torch.arange(1000.0)
    assert torch.equal(found.scale.knots, knots)
    assert torch.equal(found.bias.knots, knots)
    for t in (0, 57, 999):
        with uncorrected(live), uncorrected(frozen):
            error = frozen(x, t) - live(x, t)
        assert torch.allclose(frozen(x, t) - live(x, t), error, atol=1e-4)
    assert torch.equal(correction_of(live).bias.knots, KNOTS)
    few = correction_of(tdq.freeze(live, timesteps=[0, 500, 999]))
    assert few.bias.knots.tolist() == few.scale.knots.tolist() == [0, 500, 999]


@pytest.mark.parametrize("verb", ["calibrate", "reconstruct"])
def test_what_changes_the_model_drops_it(calibrated, verb):
    model = corrected(calibrated)
    options = {"calibrate": {"estimator": "minmax"}, "reconstruct": {"method": "gptq"}}[verb]
    getattr(tdq, verb)(model, list(calls(2)), progress=False, **options)
    assert correction_of(model) is None
    assert {"step": "drop correction", "before": verb} in model.tdq.history


def test_a_verb_that_fails_keeps_it(calibrated, x):
    model = corrected(calibrated.eval())
    with torch.no_grad():
        y = model(x, 3)
        with pytest.raises(CalibrationError):
            tdq.calibrate(model, [], progress=False)
        assert torch.equal(model(x, 3), y)


def test_the_float_model_is_observed_without_it(calibrated, x):
    model = calibrated.eval()
    with torch.no_grad(), in_float(model):
        exact = model(x, 3)
    corrected(model)
    with torch.no_grad(), in_float(model):
        assert torch.equal(model(x, 3), exact)
        assert torch.allclose(exact, Mixed().eval()(x, 3), atol=1e-5)


def test_it_never_learns(calibrated):
    model = corrected(calibrated)
    model(torch.randn(2, 6, 8, 8), torch.tensor(3)).sum().backward()
    assert all(p.grad is None for p in correction_of(model).parameters())
    assert any(isinstance(m, nn.Conv2d) and m.weight.grad is not None for m in model.modules())
