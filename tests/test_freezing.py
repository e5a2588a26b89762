import pytest
import torch

import tdquant as tdq
from tdquant.clock import clock_of, identity
from tdquant.errors import CalibrationError, ConversionError, FreezeError
from tdquant.quantizers import FrozenWeight, activation_quantizers
from tdquant.scales import TableScale
from tests.conftest import quantized
from tests.denoisers import Mixed, Wide
from tests.live import LiveBytes


def test_equals_the_live_model_at_scalar_and_mixed_times(calibrated, frozen, x):
    with torch.no_grad():
        for t in (
            torch.tensor(0),
            torch.tensor(431),
            torch.tensor(999),
            torch.tensor([0, 17, 998]),
        ):
            live = calibrated(x, t)
            assert (frozen(x, t) - live).abs().max() <= 1e-4 * live.abs().max()


def test_tables_equal_live_scales_at_every_timestep(calibrated, frozen, x):
    t = torch.arange(1000)
    live = dict(activation_quantizers(calibrated))
    for name, q in activation_quantizers(frozen):
        assert isinstance(q.scale, TableScale)
        expected = live[name].scale(t, x, q.grid).expand(1000)
        assert torch.allclose(q.scale(t, x, q.grid).expand(1000), expected, rtol=3e-7), name


@pytest.mark.parametrize("batch", [1, 3])
def test_a_live_call_uses_the_bits_of_the_table(calibrated, frozen, batch):
    clock, tables = clock_of(calibrated), dict(activation_quantizers(frozen))
    x = torch.ones(batch, 6, 8, 8)
    with torch.no_grad():
        for first in range(0, 1000, batch):
            t = torch.arange(first, first + batch).clamp(max=999).reshape(batch)
            t = t[0] if batch == 1 else t
            steps = clock._evaluate(calibrated, t)
            for name, q in activation_quantizers(calibrated):
                step = steps[identity(q.scale)]
                assert torch.equal(step, tables[name].scale(t, x, q.grid)), (name, t)


def test_a_live_model_equals_its_frozen_copy_bit_for_bit(calibrated, frozen, x):
    with torch.no_grad():
        for t in (torch.tensor(0), torch.tensor(431), torch.tensor([0, 17, 998])):
            assert torch.equal(frozen(x, t), calibrated(x, t))


def test_the_model_it_came_from_stays_as_it_was(calibrated, x):
    before = {k: v.clone() for k, v in calibrated.state_dict().items()}
    tdq.freeze(calibrated)
    after = calibrated.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert calibrated.conv_in.input_quantizer.scale.kind == "temporal"
    assert not tdq.is_frozen(calibrated)


def test_nothing_in_it_learns(frozen):
    assert tdq.is_frozen(frozen)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen.training
    assert isinstance(frozen.linear.weight_quantizer, FrozenWeight)


def test_chosen_times(calibrated, frozen, x):
    few = tdq.freeze(calibrated, timesteps=[0, 250, 500, 750, 999])
    assert len(few.conv_in.input_quantizer.scale.knots) == 5
    assert clock_of(few).coverage == (0, 999)
    live, few_scale = (m.conv_in.input_quantizer.scale for m in (frozen, few))
    assert torch.allclose(few_scale.table, live.table[[0, 250, 500, 750, 999]], rtol=3e-7)
    hundred = tdq.freeze(calibrated, timesteps=100)
    assert clock_of(hundred).coverage == (0, 99)
    whole = tdq.freeze(calibrated, timesteps=torch.arange(1000))
    assert torch.equal(whole.conv_in.input_quantizer.scale.table, live.table)


@pytest.mark.parametrize("timesteps", [[], 0, [float("nan")]])
def test_no_usable_times(calibrated, timesteps):
    with pytest.raises(FreezeError, match="no usable timesteps"):
        tdq.freeze(calibrated, timesteps)


def test_pending_scales_are_named():
    with pytest.raises(CalibrationError, match=r"conv_in\.input_quantizer") as error:
        tdq.freeze(quantized(calibrated=False))
    assert "calibrate" in str(error.value)


def test_float_model():
    with pytest.raises(ConversionError, match="not quantized"):
        tdq.freeze(Mixed())


@pytest.mark.parametrize("scale", ["static", "dynamic", "table", "pact", "nipq"])
def test_every_other_kind(scale, x):
    model = quantized(scale=scale, activations=5)
    frozen = tdq.freeze(model)
    with torch.no_grad():
        t = torch.tensor([0, 300, 999])
        assert torch.allclose(frozen(x, t), model(x, t), rtol=1e-5, atol=1e-6)


def test_half_precision_keeps_tables(frozen, x):
    exact = frozen(x, 300)
    table = frozen.conv_in.input_quantizer.scale.table.clone()
    frozen.bfloat16()
    assert torch.equal(frozen.conv_in.input_quantizer.scale.table, table)
    assert frozen.conv_in.weight.dtype == torch.bfloat16
    frozen.conv_in.weight_quantizer.codes(frozen.conv_in.weight)
    y = frozen(x.bfloat16(), 300).float()
    assert (y - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_freezing_a_frozen_model(frozen, x):
    assert torch.equal(tdq.freeze(frozen)(x, 5), frozen(x, 5))


def test_freezing_leaves_the_layer_that_shares_a_weight_alone():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x, t):
            return self.b(torch.relu(self.a(x)) * (1 + t / 1000))

    model = Tied().eval()
    recipe = tdq.Recipe(2, 8, edges=2, scale="static", exclude=("b",))
    tdq.quantize(model, recipe)
    x, t = torch.randn(64, 4), torch.tensor(5)
    tdq.calibrate(model, [(x, t)], progress=False)
    frozen = tdq.freeze(model)
    assert torch.equal(frozen.b.weight, model.b.weight)
    assert torch.equal(frozen(x, t), model(x, t))


def test_a_copy_takes_the_memory_of_one_copy():
    model = Wide(width=256, depth=16)
    tdq.quantize(model, tdq.Recipe(weights=4, activations=32, edges=4))
    weight = 256 * 256 * 4
    with LiveBytes() as live:
        tdq.freeze(model)
    assert live.peak < 20 * weight  # of 16
