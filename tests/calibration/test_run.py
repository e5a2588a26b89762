import math

import pytest
import torch

import tdquant as tdq
from tdquant.calibration.placing import ESTIMATORS
from tdquant.errors import CalibrationError, ConversionError
from tdquant.quantizers import activation_quantizers
from tdquant.scales import (
    DynamicScale,
    NoiseScale,
    PactScale,
    StaticScale,
    TableScale,
    TemporalScale,
)
from tests.conftest import quantized
from tests.denoisers import Mixed, calls

CLASSES = {
    "temporal": TemporalScale,
    "static": StaticScale,
    "table": TableScale,
    "dynamic": DynamicScale,
    "pact": PactScale,
    "nipq": NoiseScale,
}


def output_error(model, count=20):
    exact = Mixed().eval()
    with torch.no_grad():
        return sum(
            (model(x, t) - exact(x, t)).square().mean().item() for x, t in calls(count, seed=3)
        )


@pytest.mark.parametrize("scale", CLASSES)
def test_every_kind_replaces_the_pending_scale(scale, x):
    model = quantized(scale=scale)
    kinds = {type(q.scale) for _, q in activation_quantizers(model)}
    assert kinds == {CLASSES[scale]}
    assert model(x, torch.tensor([1, 500, 999])).isfinite().all()


@pytest.mark.parametrize("bits", [3, 4, 5, 8])
def test_temporal_is_not_worse_than_static_at_any_width(bits):
    errors = {}
    for scale in ("static", "temporal"):
        model = quantized(calibrated=False, weights=32, activations=bits, edges=bits, scale=scale)
        tdq.calibrate(model, calls(batch=16), progress=False)
        errors[scale] = output_error(model)
    assert errors["temporal"] < 1.02 * errors["static"]


def test_auto_takes_temporal_scales_where_activations_move():
    model = quantized(scale="auto", activations=5, edges=5)
    kinds = {n: type(q.scale) for n, q in activation_quantizers(model)}
    assert kinds["conv_in.input_quantizer"] is TemporalScale  # its input is multiplied by 1 + 3 t
    assert set(kinds.values()) <= {TemporalScale, StaticScale}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator(estimator):
    model = quantized(calibrated=False)
    report = tdq.calibrate(model, calls(), estimator=estimator, progress=False).tdq.calibration
    assert len(report.layers) == 6
    if estimator == "auto":
        assert report.chosen in str(report)
        assert report.trials[report.chosen] == min(report.trials.values())
    else:
        assert {c.estimator for c in report.layers} == {estimator}


def test_unknown_estimator_and_float_model():
    with pytest.raises(CalibrationError, match="no estimator 'max'"):
        tdq.calibrate(quantized(calibrated=False), calls(), estimator="max")
    with pytest.raises(ConversionError, match="not quantized"):
        tdq.calibrate(Mixed(), calls())


def test_choices_can_be_confirmed_on_generated_samples():
    model, seen = quantized(calibrated=False), []

    def generate(net):
        seen.append(net)
        return net(torch.ones(1, 6, 8, 8), torch.tensor(5))

    report = tdq.calibrate(model, calls(), generate=generate, progress=False).tdq.calibration
    assert len(seen) == 1 + len(report.trials)


def test_mixed_timesteps_and_keyword_batches():
    model = quantized(calibrated=False)
    batches = [{"x": x, "timestep": t} for x, t in calls(20, mixed=True)]
    tdq.calibrate(model, batches, progress=False)
    assert output_error(model) < 4 * output_error(quantized())


def test_one_shot_iterators_are_enough():
    model = quantized(calibrated=False)
    tdq.calibrate(model, iter(list(calls())), progress=False)
    assert torch.equal(model(torch.ones(1, 6, 8, 8), 5), quantized()(torch.ones(1, 6, 8, 8), 5))


def test_continuous_times():
    model = Mixed().eval()
    tdq.quantize(model, tdq.Recipe(scale="temporal", edges=8))
    tdq.calibrate(model, [(x, t / 999) for x, t in calls()], progress=False)
    scale = model.conv_in.input_quantizer.scale
    assert scale.time_range.tolist() == [0, 1]
    frozen = tdq.freeze(model)
    assert len(frozen.conv_in.input_quantizer.scale.knots) == 1024
    t = torch.tensor([0.123, 0.9])
    x = torch.ones(2, 6, 8, 8)
    assert torch.allclose(frozen(x, t), model(x, t), rtol=0.05, atol=0.05)


def test_symmetric_grids_on_request():
    model = quantized(grid="symmetric")
    assert {q.grid.zero_point for _, q in activation_quantizers(model)} == {0}
    affine = quantized()
    assert (
        affine.sequence.input_quantizer.grid.qmin == -128
    )  # after a strided convolution and reflection
    assert affine.reflect.input_quantizer.grid.qmin == 0  # after SiLU


def test_reproducible():
    x = torch.ones(1, 6, 8, 8)
    assert torch.equal(quantized()(x, 77), quantized()(x, 77))


def test_calibrating_again_replaces_scales():
    model = quantized()
    before = model.conv_in.input_quantizer.scale
    tdq.calibrate(model, calls(seed=9), progress=False)
    assert model.conv_in.input_quantizer.scale is not before


@pytest.mark.parametrize("scale", ["pact", "nipq"])
def test_baselines_start_from_the_static_scale(scale, x):
    model, static = quantized(scale=scale, activations=5), quantized(scale="static", activations=5)
    with torch.no_grad():
        assert torch.allclose(model(x, 5), static(x, 5), rtol=1e-4, atol=1e-4)
    noisy = {type(m).__name__ for _, m in model.named_modules() if hasattr(m, "step")}
    assert ("NoiseWeight" in noisy) == (scale == "nipq")


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_temporal_networks_of_any_depth(depth, x):
    model = quantized(activations=5, temporal={"depth": depth, "hidden": 16})
    assert len(model.conv_in.input_quantizer.scale.layers) == depth
    t = torch.tensor([0, 500, 999])
    with torch.no_grad():
        assert torch.equal(tdq.freeze(model)(x, t), model(x, t))


def test_what_was_calibrated_before_plays_no_part():
    """Not even the zero point of inputs that were one-sided then."""
    real = list(calls())
    fresh = quantized(4, 4, "static", calibrated=False)
    again = quantized(4, 4, "static", calibrated=False)
    tdq.calibrate(again, [(x.abs(), t) for x, t in real], estimator="mse", progress=False)
    for model in (fresh, again):
        tdq.calibrate(model, real, estimator="mse", split=False, progress=False)
    x, t = real[3]
    assert torch.equal(fresh(x, t), again(x, t))


class Gated(torch.nn.Module):
    """A layer whose input is zero at half of the times, as after a gate that opens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.gated, self.b = (torch.nn.Linear(16, 16) for _ in range(3))

    def forward(self, x, t):
        opened = (torch.as_tensor(t) >= 500).to(x.dtype).reshape(-1, 1)
        h = self.a(x)
        return self.b(h + self.gated(opened * h).tanh())


@pytest.mark.parametrize("scale", ["temporal", "table", "auto"])
def test_times_at_which_an_activation_is_zero_say_nothing_of_its_step(scale):
    times = [0, 100, 200, 300, 400, 480, 530, 600, 700, 800, 900, 999]
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    exact = Gated().eval()
    model = tdq.quantize(Gated().eval(), tdq.Recipe(scale=scale, edges=8, remedies=()))
    tdq.calibrate(model, [(x, torch.tensor(t)) for t in times], progress=False)
    for net in (model, tdq.freeze(model)):
        for t in (500, 505, 515, 525, 600):
            error = (net(x, t) - exact(x, t)).norm() / exact(x, t).norm()
            assert error < 0.02  # 0.4 where the curve went through the least step at 480


class Levels(torch.nn.Module):
    """Activations that follow a noise level over three decades."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (torch.nn.Linear(16, 16, bias=False) for _ in range(3))

    def forward(self, x, sigma):
        level = 0.01 + torch.as_tensor(sigma).float().reshape(-1, 1)
        return self.c(self.b(self.a(level * x)) / level)


@pytest.mark.parametrize("scale", ["temporal", "table", "auto"])
@pytest.mark.parametrize("count", [24, 150])  # of more than 64 times the nearest are merged
def test_noise_levels_over_decades_have_steps_of_their_own(scale, count):
    levels = torch.logspace(math.log10(0.002), math.log10(80), count)
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    exact = Levels().eval()
    model = tdq.quantize(Levels().eval(), tdq.Recipe(scale=scale, edges=8, remedies=()))
    tdq.calibrate(model, [(x, t) for t in levels], progress=False)
    frozen = tdq.freeze(model)
    for net in (model, frozen):
        for t in levels[1::5]:
            error = (net(x, t) - exact(x, t)).norm() / exact(x, t).norm()
            assert error < 0.04  # 0.2 where all levels below 0.08 lay between two knots
