import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.calibration.time_histograms import MAX_TIMES, TimeHistograms, TimeRange
from tdquant.errors import CalibrationError
from tdquant.numerics.batch_axis import BatchAxis
from tdquant.quantizers import ActivationQuantizer
from tdquant.scales import PendingScale
from tests.conftest import quantized
from tests.denoisers import Mixed, calls


def test_mixed_batches_are_sorted_by_time():
    x = torch.stack([torch.full((3,), float(i)) for i in range(4)])
    mixed = TimeHistograms()
    mixed.update(x, torch.tensor([7, 3, 7, 3]))
    assert mixed.times().tolist() == [3, 7]
    assert [(h.low, h.high) for h in mixed.histograms()] == [(1, 3), (0, 2)]
    folded = TimeHistograms()
    folded.update(x.repeat_interleave(2, 0), torch.tensor([7, 3, 7, 3]), BatchAxis())
    assert [(h.low, h.high) for h in folded.histograms()] == [(1, 3), (0, 2)]


def test_times_are_merged_beyond_a_bound():
    seen = TimeHistograms()
    for t in torch.linspace(0, 1, 300):
        seen.update(torch.ones(2), t)
    assert len(seen.by_time) == MAX_TIMES
    assert sum(h.total for h in seen.histograms()) == 600
    assert (seen.times().diff() > 0).all()


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0, 500, 999], (0, 999)),
        ([10, 3999], (0, 3999)),
        ([0.25, 0.5, 1.0], (0.25, 1.0)),
        ([0.002, 80.0], (0.002, 80.0)),
    ],
)
def test_time_range(times, expected):
    seen = TimeRange()
    for t in times:
        seen.update(torch.tensor(t))
    assert seen.resolve() == pytest.approx(expected)


def test_the_model_runs_in_float_and_is_put_back(x):
    model = quantized(weights=2, activations=2, calibrated=False)
    exact = Mixed().eval()
    seen = []
    model.conv_out.register_forward_hook(lambda m, a, y: seen.append(y))
    tdq.observe(model, [(x, torch.tensor(5))], progress=False)
    assert torch.allclose(seen[-1], exact(x, torch.tensor(5)), atol=1e-6)
    assert isinstance(model.conv_in.input_quantizer, ActivationQuantizer)
    assert isinstance(model.conv_in.input_quantizer.scale, PendingScale)
    assert model.conv_in.weight_quantizer.grid.bits == 8


def test_put_back_even_after_an_error(x):
    model = quantized(calibrated=False)
    with pytest.raises(CalibrationError):
        tdq.observe(model, [(x, torch.tensor(5)), "nonsense"], progress=False)
    assert isinstance(model.conv_in.input_quantizer, ActivationQuantizer)


def test_no_batches():
    with pytest.raises(CalibrationError, match="no batches"):
        tdq.observe(quantized(calibrated=False), [], progress=False)


def test_layers_that_no_batch_reached():
    class Lazy(Mixed):
        def forward(self, x, timestep, rare=False):
            h = self.conv_in(x)
            return self.conv_out(self.linear(h.movedim(1, -1)).movedim(-1, 1) if rare else h)

    model = tdq.quantize(Lazy(), tdq.Recipe(edges=8))
    tdq.calibrate(model, calls(), progress=False)
    assert type(model.linear) is nn.Linear
    assert model.conv_in.input_quantizer.scale.kind in ("static", "temporal")
    assert model.tdq.roles.left_out["linear.input_quantizer"] == "no call reached it"
    assert "left in float, no call reached it: " in str(model.tdq.calibration)
    frozen = tdq.freeze(model)
    x, t = next(calls())
    error = frozen(x, t, rare=True) - Lazy().eval()(x, t, rare=True)
    assert error.abs().max() < 0.05


class Poisoned(Mixed):
    def __init__(self, poison):
        super().__init__()
        self.poison = poison

    def forward(self, x, timestep):
        h = self.conv_in(x)
        rows = [self.linear(part.movedim(1, -1)).movedim(-1, 1) for part in (h * 0, h[:, :, :0])]
        return self.conv_out(h * self.poison) + rows[0].mean() + rows[1].sum()


def test_layers_that_see_zeros_or_nothing_are_left_in_float():
    model = tdq.quantize(Poisoned(1.0), tdq.Recipe(edges=8))
    tdq.calibrate(model, calls(), progress=False)
    assert type(model.linear) is nn.Linear
    assert model.tdq.roles.left_out["linear.input_quantizer"] == "it saw nothing but zeros"
    assert model.conv_out.input_quantizer.scale.kind in ("static", "temporal")


def test_bad_activations_name_the_layer_and_leave_the_model_as_it_was():
    model = tdq.quantize(Poisoned(float("nan")), tdq.Recipe(include=("conv_*",), edges=8))
    before = dict(model.named_modules())
    with pytest.raises(CalibrationError, match="NaN or infinite") as error:
        tdq.calibrate(model, calls(), progress=False)
    assert "conv_out" in str(error.value)
    assert dict(model.named_modules()) == before
    assert model.tdq.roles is None


@pytest.mark.parametrize("remedies", [(), "auto"])
@pytest.mark.parametrize("count", [1, 4])
def test_a_first_call_of_nan_hides_no_data_flow(remedies, count):
    model = tdq.quantize(Mixed().eval(), tdq.Recipe(remedies=remedies))
    (x, t), *others = calls()
    before = dict(model.named_modules())
    batches = [(torch.full_like(x, float("nan")), t), *others[: count - 1]]
    with pytest.raises(CalibrationError, match="NaN or infinite activations"):
        tdq.calibrate(model, batches, progress=False)
    assert dict(model.named_modules()) == before
    assert model.tdq.roles is None


def test_it_is_an_error_if_nothing_has_a_value():
    model = tdq.quantize(Poisoned(0.0), tdq.Recipe(include=("conv_out",), edges=8))
    with pytest.raises(CalibrationError, match="no batch gave any of 1 activations a value"):
        tdq.calibrate(model, calls(), progress=False)
    assert isinstance(model.conv_out.input_quantizer.scale, PendingScale)


def test_one_observation_serves_many_recipes(x):
    observations = tdq.observe(quantized(calibrated=False), calls(), progress=False)
    for bits in (4, 8):
        shared = quantized(activations=bits, scale="static", calibrated=False)
        tdq.calibrate(shared, observations, progress=False)
        own = quantized(activations=bits, scale="static")
        assert torch.equal(shared(x, 5), own(x, 5))


def test_observations_of_another_model():
    observations = tdq.observe(quantized(calibrated=False), calls(), progress=False)
    del observations.seen["linear.input_quantizer"]
    with pytest.raises(CalibrationError, match="not in the observations"):
        tdq.calibrate(quantized(calibrated=False), observations, progress=False)


def test_whole_numbers_with_a_negative_one_keep_it():
    seen = TimeRange()
    for t in (-1, 4, 400):
        seen.update(torch.tensor(t))
    assert seen.resolve() == (-1, 999)
