import copy

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.clock import clock_of
from tdquant.errors import ClockError, ConversionError, RecipeError
from tdquant.layers import QuantConv2d, QuantLayer, QuantLinear
from tdquant.scales import DynamicScale, PendingScale
from tests.denoisers import Mixed, Plain, calls


def quantize(model, timestep=None, **recipe):
    return tdq.quantize(model, tdq.Recipe(**recipe), timestep=timestep)


def test_returns_the_model_itself_with_its_float_keys():
    model = Mixed()
    keys = set(model.state_dict())
    assert quantize(model) is model
    assert keys <= set(model.state_dict())
    model.load_state_dict(Mixed(seed=1).state_dict(), strict=False)  # a float checkpoint loads
    assert torch.equal(model.linear.weight, Mixed(seed=1).linear.weight)


def test_edges_and_time_path_by_default():
    rows = {row.path: row for row in tdq.summary(quantize(Mixed(), weights=4, activations=5))}
    assert (rows["conv_in"].weight_bits, rows["conv_in"].input_bits) == (32, 32)
    assert (rows["conv_out"].weight_bits, rows["conv_out"].input_bits) == (32, 32)
    assert (rows["time_mlp"].weight_bits, rows["time_mlp"].input_bits) == (5, 32)
    assert (rows["grouped"].weight_bits, rows["grouped"].input_bits) == (4, 5)
    assert rows["linear"].weight_codes == 15
    assert rows["linear"].input_codes == 32


def test_a_recipe_that_is_none():
    with pytest.raises(RecipeError, match="a recipe of type dict"):
        tdq.quantize(Mixed(), {"weights": 4})


@pytest.mark.parametrize("timestep", [None, "t", "kwargs"])
def test_a_timestep_among_arguments_without_names(timestep):
    class Wrapper(Mixed):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    with pytest.raises(ConversionError, match=r"cannot be in \*args or \*\*kwargs"):
        quantize(Wrapper(), timestep=timestep)


def test_first_and_last_layer_by_order_where_no_name_fits():
    model = quantize(Plain(), timestep="when", weights=4, activations=4, edges=8)
    assert [row.weight_bits for row in tdq.summary(model)] == [8, 8]


def test_patterns_and_overrides():
    model = quantize(
        Mixed(),
        weights=4,
        exclude=("line*",),
        overrides={"re*": {"weights": 6, "scale": "dynamic"}},
    )
    assert type(model.linear) is nn.Linear
    assert model.reflect.weight_quantizer.grid.bits == 6
    assert isinstance(model.reflect.input_quantizer.scale, DynamicScale)
    assert isinstance(model.grouped.input_quantizer.scale, PendingScale)
    assert isinstance(quantize(Mixed(), include=("conv_*",), edges=8).conv_in, QuantConv2d)


def test_patterns_that_match_nothing_are_all_listed_with_neighbours():
    with pytest.raises(RecipeError) as error:
        quantize(Mixed(), exclude=("liner", "conv_*"), overrides={"grouqed": {"weights": 4}})
    text = str(error.value)
    assert "'liner' (near: linear" in text
    assert "'grouqed' (near: grouped" in text
    assert "conv_*" not in text


def test_the_summary_lists_every_layer_and_nothing_is_printed(capsys):
    model = tdq.quantize(Mixed(), tdq.Recipe(weights=4, exclude=("linear",)))
    out = str(tdq.summary(model))
    assert capsys.readouterr().out == ""
    for name in ("conv_in", "time_mlp", "grouped", "reflect", "sequence", "linear", "conv_out"):
        assert name in out
    assert "groups" in out
    assert "pending auto" in out
    assert "4 of 8 layers quantized" in out


def test_no_timestep_argument():
    with pytest.raises(ConversionError, match="cannot be found"):
        quantize(Plain())
    assert quantize(Plain(), timestep="when")


def test_nothing_to_quantize():
    class Empty(nn.Module):
        def forward(self, x, t):
            return x

    with pytest.raises(ConversionError, match="nothing to quantize"):
        quantize(Empty())


def test_twice():
    with pytest.raises(ConversionError, match="already"):
        quantize(quantize(Mixed()))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 0.0])
def test_bad_weights_name_the_layer_and_leave_the_model_as_it_was(poison):
    model = Mixed()
    with torch.no_grad():
        if poison == 0.0:
            model.sequence.weight.zero_()
        else:
            model.sequence.weight[0, 0, 0] = poison
    with pytest.raises(ConversionError, match="sequence"):
        quantize(model)
    assert not any(isinstance(m, QuantLayer) for m in model.modules())
    assert not hasattr(model, "tdq")
    assert not model._forward_pre_hooks
    quantize(model, exclude=("sequence",))


def test_shared_layers_stay_shared():
    model = Mixed()
    model.again = model.linear
    quantize(model)
    assert isinstance(model.linear, QuantLinear)
    assert model.again is model.linear


def test_float_everywhere_leaves_float_layers():
    model = quantize(Mixed(), weights=32, activations=32)
    assert not any(isinstance(m, QuantLayer) for m in model.modules())


def test_uncalibrated_call_and_call_without_time(x):
    model = quantize(Mixed())
    with pytest.raises(tdq.errors.CalibrationError, match="grouped"):
        model(x, 3)
    with pytest.raises((ClockError, TypeError)):
        model(x)


def test_dynamic_needs_no_calibration(x):
    model = Mixed().eval()
    exact = model(x, 3)
    quantize(model, scale="dynamic")
    assert (model(x, 3) - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_deep_copy_is_independent(calibrated, x):
    twin = copy.deepcopy(calibrated)
    assert clock_of(twin) is not clock_of(calibrated)
    assert all(q.clock is clock_of(twin) for _, q in tdq.quantizers.activation_quantizers(twin))
    assert torch.equal(twin(x, 5), calibrated(x, 5))


@pytest.mark.parametrize("training", [True, False])
def test_new_modules_take_the_mode_of_their_layer(training):
    model = quantize(Mixed().train(training), weights=4, scale="nipq", edges=8)
    tdq.calibrate(model, calls(), progress=False)
    assert {m.training for m in model.modules()} == {training}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x, t):
        return self.block(x * (1 + t / 1000))


def test_torch_transformers_call_their_quantized_layers(tmp_path):
    x, t = torch.randn(2, 5, 8), torch.tensor(3)
    model = quantize(Encoder().eval(), weights=2, edges=2, activations=2, scale="dynamic")
    with_gradients = model(x, t).detach()
    with torch.no_grad():
        assert torch.allclose(model(x, t), with_gradients, atol=1e-5)
        assert not torch.allclose(Encoder().eval()(x, t), with_gradients, atol=1e-2)
        frozen = tdq.freeze(model)
        again = tdq.load(tdq.save(frozen, tmp_path / "m"), model=Encoder())
        assert torch.equal(again(x, t), frozen(x, t))


def test_what_cannot_be_quantized_leaves_the_model_as_it_was():
    model = Plain()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.a)
    with pytest.raises(ConversionError, match="computed by something else"):
        quantize(model, "when", weights=4, edges=4)
    assert not hasattr(model, "tdq")
    assert quantize(model, "when", weights=4, edges=4, exclude=("a",)) is model


def test_a_part_that_is_quantized_already_is_no_start():
    class Wrap(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.more = net, nn.Linear(2, 2)

        def forward(self, x, timestep):
            return self.net(x, timestep)

    with pytest.raises(ConversionError, match="quantized already") as caught:
        quantize(Wrap(quantize(Mixed())))
    assert caught.value.where == "net"
