import pytest
import torch

import tdquant as tdq
from tdquant.calibration.time_histograms import MAX_TIMES, TimeHistograms, TimeRange
from tdquant.errors import CalibrationError
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
    folded.update(x.repeat_interleave(2, 0), torch.tensor([7, 3, 7, 3]))
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
    assert torch.allclose(seen[0], exact(x, torch.tensor(5)), atol=1e-6)
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
    with pytest.raises(CalibrationError, match="no batch reached") as error:
        tdq.calibrate(model, calls(), progress=False)
    assert "linear" in str(error.value)
    assert "exclude" in str(error.value)
    assert isinstance(model.conv_in.input_quantizer.scale, PendingScale)


@pytest.mark.parametrize(
    ("poison", "match"), [(float("nan"), "NaN or infinite"), (0.0, "zero throughout")]
)
def test_bad_activations_name_the_layer(poison, match):
    class Broken(Mixed):
        def forward(self, x, timestep):
            return self.conv_out(self.conv_in(x) * poison)

    model = tdq.quantize(Broken(), tdq.Recipe(include=("conv_*",), edges=8))
    with pytest.raises(CalibrationError, match=match) as error:
        tdq.calibrate(model, calls(), progress=False)
    assert "conv_out" in str(error.value)
    assert isinstance(model.conv_in.input_quantizer.scale, PendingScale)


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
