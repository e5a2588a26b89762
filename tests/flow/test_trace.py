"""The data flow of networks whose names tell nothing."""

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

import tdquant as tdq
from tdquant.calls.observing import observing
from tdquant.clock import find_timestep
from tdquant.errors import CalibrationError, ClockError
from tdquant.flow.roles import roles_of
from tdquant.flow.settle import settle_roles
from tdquant.flow.trace import trace
from tdquant.layers import QuantLinear
from tdquant.numerics.batch_axis import TOGETHER, BatchAxis
from tdquant.quantizers import activation_quantizers
from tests.flow.models import (
    Bare,
    BatchSecond,
    Encoder,
    Experts,
    Frames,
    FramesFirst,
    Hidden,
    Packed,
    Tokens,
)

TIMES = [float(t) for t in range(0, 1000, 111)][:9]
RECIPE = tdq.Recipe(weights=8, activations=8, scale="table")


def roles(model, call):
    return roles_of(model, trace(model, call, find_timestep(model)))


@pytest.mark.parametrize("time", [7.0, torch.tensor(7), torch.tensor([7, 7, 7, 7]), [7, 9, 7, 1]])
@pytest.mark.parametrize("batch", [1, 4])
def test_roles_of_layers_without_names(time, batch):
    if isinstance(time, list):
        time = torch.tensor(time, dtype=torch.float32)
    if isinstance(time, torch.Tensor) and time.ndim:
        time = time[:batch]
    found = roles(Hidden().eval(), Hidden.call(batch, time))
    assert found.first == {"m"}
    assert found.last == {"b"}
    assert found.time_path == {"a.0", "a.2", "k", "c"}
    assert {path: found.batch[path] for path in "mwqb"} == dict.fromkeys("mwqb", BatchAxis(0))


def test_tracing_leaves_nothing_behind():
    model = Hidden().train()
    state, before = torch.get_rng_state(), {k: dict(vars(m)) for k, m in model.named_modules()}
    call = Hidden.call(time=torch.tensor(3))
    copies = {k: v.clone() for k, v in call.items() if isinstance(v, torch.Tensor)}
    roles(model, call)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(call[k], v) for k, v in copies.items())
    for name, module in model.named_modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert vars(module).keys() == before[name].keys()
    assert torch.overrides._get_current_function_mode_stack() == []


def test_a_model_that_draws_draws_the_same_and_the_global_generator_is_left_alone():
    class Noisy(Hidden):
        def forward(self, x, t, text, pooled, size):
            seen.append(torch.initial_seed())
            x = x + torch.randn(x.shape) + torch.bernoulli(x.sigmoid())
            return super().forward(x, t, text, pooled, size)

    seen, model = [], Noisy().eval()
    torch.manual_seed(77)
    state = torch.get_rng_state()
    found = roles(model, Hidden.call(time=torch.tensor(3)))
    assert set(seen) == {77}
    assert torch.equal(torch.get_rng_state(), state)
    assert found.first == {"m"}
    assert found.time_path == {"a.0", "a.2", "k", "c"}


def test_tracing_is_hidden_from_hooks_of_the_user():
    model, seen = tdq.quantize(Hidden().eval(), RECIPE), []
    calls = [Hidden.call(batch=3, time=torch.tensor(t)) for t in TIMES]
    for module in (model, model.w):
        module.register_forward_pre_hook(lambda module, args: seen.append(args))
        module.register_forward_hook(lambda *given: seen.append(given[2]))
    before = [dict(hooks) for hooks in (model._forward_hooks, model._forward_pre_hooks)]
    assert settle_roles(model, iter(calls)) == calls[:1]
    assert model.tdq.roles.batch
    assert seen == []
    with observing(model, dict(activation_quantizers(model))):
        model(**calls[0])
    assert len(seen) == 4
    after = [dict(hooks) for hooks in (model._forward_hooks, model._forward_pre_hooks)]
    assert [list(hooks.items()) for hooks in after] == [list(hooks.items()) for hooks in before]


@pytest.mark.parametrize("lengths", [(9, 7, 7, 9), (7, 9, 7, 9), (9, 9, 9, 5), (8, 8, 8, 8)])
def test_packed_sequences_of_unequal_length_cannot_be_told_apart(lengths):
    found = roles(Packed().eval(), Packed.call(time=torch.tensor(5), lengths=lengths)).batch
    equal = len(set(lengths)) == 1
    assert found["up"] == found["down"] == (BatchAxis(0) if equal else TOGETHER)
    assert found["enter"] == BatchAxis(0)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (BatchSecond, BatchAxis(1)),
        (Encoder, BatchAxis(1)),
        (Frames, BatchAxis(0)),
        (FramesFirst, BatchAxis(0, interleaved=True)),
        (Tokens, BatchAxis(0)),
        (Experts, TOGETHER),
    ],
)
def test_batch_axes(network, expected):
    found = roles(network().eval(), network.call(time=torch.tensor(5))).batch
    name = "layer.linear1" if network is Encoder else "up"
    assert found[name] == expected
    assert found["enter"] == BatchAxis(0)


def prepared(network, calls, recipe=RECIPE):
    model = tdq.quantize(network().eval(), recipe)
    tdq.calibrate(model, calls, progress=False)
    return model


def at(network, times, batch=4):
    return [network.call(batch, torch.as_tensor(t), seed=i) for i, t in enumerate(times)]


@pytest.fixture(
    scope="module", params=[BatchSecond, Encoder, Frames, FramesFirst, Tokens, Bare],
    ids=lambda n: n.__name__,
)  # fmt: skip
def network(request):
    return request.param


@pytest.fixture(scope="module")
def model(network):
    return prepared(network, at(network, TIMES))


@torch.no_grad()
@pytest.mark.parametrize("form", ["live", "frozen", "reference", "onednn", "openvino", "loaded"])
def test_mixed_times_are_as_one_by_one(network, model, form, tmp_path):
    if form != "live":
        model = tdq.freeze(model)
    if form == "loaded":
        model = tdq.load(tdq.save(model, tmp_path / "saved"), model=network())
    x, times = network.call()[0], torch.tensor([0.0, 999.0, 333.0, 111.0])
    if form in ("reference", "onednn", "openvino"):
        if form == "openvino":
            pytest.importorskip("openvino")
        model = tdq.compile(model, form, example=(x, times))
    together = model(x, times)
    alone = torch.cat([model(x[i : i + 1], times[i : i + 1]) for i in range(4)])
    assert (together - alone).abs().max() < 2e-3 * alone.abs().max()
    assert (together[0] - model(x[:1], torch.tensor([999.0]))).abs().max() > 0.05


@torch.no_grad()
def test_calibrating_with_mixed_times_learns_the_curves_of_one_by_one(network):
    x, times = network.call(36)[0], torch.tensor(TIMES).repeat(4)[torch.randperm(36)]
    together = [(x[i : i + 4], times[i : i + 4]) for i in range(0, 36, 4)]
    alone = [(x[i : i + 1], times[i]) for i in range(36)]
    found = []
    for calls in (together, alone):
        model = tdq.quantize(network().eval(), RECIPE)
        tdq.calibrate(model, calls, estimator="minmax", progress=False)
        timed = [q for _, q in activation_quantizers(model) if q.scale.timed]
        assert timed
        found.append([q.scale(torch.tensor(TIMES), x, q.grid) for q in timed])
    assert torch.stack(found[0]).allclose(torch.stack(found[1]), rtol=1e-4)


def test_routed_rows_take_equal_times_as_one_and_refuse_others():
    model = tdq.freeze(prepared(Experts, at(Experts, TIMES)))
    x, _ = Experts.call()
    equal = torch.full((4,), 333.0)
    assert torch.equal(model(x, equal), model(x, torch.tensor(333.0)))
    with pytest.raises(ClockError, match="which of its rows belong to which sample"):
        model(x, torch.tensor([0.0, 999.0, 333.0, 111.0]))
    fast = tdq.compile(model, "reference", example=(x, equal))
    assert (fast(x, equal) - model(x, equal)).abs().max() < 1e-4


def test_a_file_of_rows_that_cannot_be_told_apart_refuses_mixed_times(tmp_path):
    pytest.importorskip("openvino")
    model = prepared(Tokens, at(Tokens, TIMES))
    model.up.input_quantizer.batch = TOGETHER
    frozen, (x, _) = tdq.freeze(model), Tokens.call()
    equal, mixed = torch.full((4,), 333.0), torch.tensor([0.0, 999.0, 333.0, 111.0])
    session = tdq.open_session(tdq.export(frozen, tmp_path / "model.xml", example=(x, equal)))
    assert (session(x, equal) - frozen(x, equal)).abs().max() < 1e-3
    with pytest.raises(ClockError, match="4 different timesteps"):
        session(x, mixed)


def test_routed_rows_learn_no_curve_from_mixed_times():
    calls = at(Experts, torch.tensor(TIMES)[torch.randint(9, (20, 4))])
    with pytest.raises(CalibrationError, match="mixed times"):
        prepared(Experts, calls)
    model = prepared(Experts, calls, tdq.Recipe(8, 8, scale="auto"))
    assert model.up.input_quantizer.scale.kind == "static"
    mixed = torch.tensor([0.0, 999.0, 333.0, 111.0])
    assert tdq.freeze(model)(Experts.call()[0], mixed).isfinite().all()


def test_what_is_the_same_in_every_call_gets_one_step_and_sensitivity_runs():
    recipe = tdq.Recipe(8, 8, scale="table", overrides={"place": {"activations": 8}})
    model = prepared(Bare, at(Bare, TIMES), recipe)
    assert model.place.input_quantizer.scale.kind == "static"
    assert model.place.input_quantizer.batch == TOGETHER
    measured = tdq.sensitivity(model, at(Bare, TIMES), progress=False)
    assert measured.error("place", "activations", 8) > 0


def test_flow_wins_over_names_and_overrides_over_both():
    model = tdq.quantize(Hidden().eval(), tdq.Recipe(4, 4, overrides={"k": {"activations": 8}}))
    assert isinstance(model.m, QuantLinear) is False  # the last by order
    assert model.a[0].input_quantizer.grid.bits == 4
    calls = [Hidden.call(time=torch.tensor(t), seed=int(t)) for t in TIMES]
    tdq.calibrate(model, calls, progress=False)
    assert type(model.m) is type(model.b) is nn.Linear
    assert isinstance(model.a[0].input_quantizer, nn.Identity)
    assert model.a[0].weight_quantizer.grid.bits == 5
    assert model.k.input_quantizer.grid.bits == 8
    assert model.q.input_quantizer.grid.bits == 4  # the first by order
    assert type(model.unused) is nn.Linear
    said = str(model.tdq.calibration)
    assert "by data flow, not by name: a.0 is time path, not inner" in said
    assert "left in float, no call reached it: unused" in said


def test_names_stand_where_data_flow_cannot_be_followed():
    class Odd(Hidden):
        def forward(self, x, t, text, pooled, size):
            if len(x) != 3:
                raise ValueError("three samples")
            return super().forward(x, t, text, pooled, size)

    model = tdq.quantize(Odd().eval(), tdq.Recipe(8, 8))
    with pytest.raises(ValueError, match="three samples"):
        tdq.calibrate(model, [Hidden.call(2, torch.tensor(3))], progress=False)
    assert model.tdq.roles is None
    calls = [Hidden.call(3, torch.tensor(t)) for t in TIMES]
    tdq.calibrate(model, calls, progress=False)
    assert "by name: its data flow could not be followed (ValueError: three samples)" in str(
        model.tdq.calibration
    )


class Forward(Tokens):
    """Attention without a backward pass on the CPU, which compiles itself."""

    def middle(self, h):
        return self.mlp(flex_attention(h[:, None], h[:, None], h[:, None])[:, 0])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_model_without_a_backward_pass_is_judged_where_it_rounds():
    model = prepared(Forward, at(Forward, TIMES), tdq.Recipe(8, 4, scale="auto"))
    assert model.tdq.roles.first == {"enter"}
    assert model.tdq.roles.last == {"leave"}
    assert "FlexAttention does not support backward on CPU" in model.tdq.calibration.local
    assert "layers judged by the error of their inputs" in str(model.tdq.calibration)
    assert model.up.input_quantizer.scale.kind == "temporal"
    measured = tdq.sensitivity(model, at(Forward, TIMES), progress=False)
    errors = [measured.error("up", "activations", bits) for bits in (2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert 1e-6 < errors[-1] < 1e-3
    assert "relative error of operands" in str(measured)
