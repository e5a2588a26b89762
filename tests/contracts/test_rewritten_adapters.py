"""What every kind of adapter does to a rewritten layer: it is a float branch on the layer's own
input, is fused into the layers inside, taken out again, and leaves the very same object behind.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tdquant as tdq
from tdquant.errors import ConversionError, FreezeError, TDQError
from tdquant.layers import QuantLayer, SplitLayer, StructuredLayer, quantized_layers
from tdquant.layers.structure import WrappedLayer, plain_shares
from tdquant.quantizers import CodedWeight, FrozenWeight
from tests.rewritten import CASES, FACTORS, One, inputs, plain, rewritten

peft = pytest.importorskip("peft")

TIME = torch.tensor(600)
KINDS = {
    "lora": lambda **k: peft.LoraConfig(r=2, target_modules=["layer"], **k),
    "dora": lambda **k: peft.LoraConfig(r=2, target_modules=["layer"], use_dora=True, **k),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=["layer"]),
    "lokr": lambda: peft.LoKrConfig(r=2, target_modules=["layer"]),
    "ia3": lambda: peft.IA3Config(target_modules=["layer"], feedforward_modules=[]),
    "ia3 of inputs": lambda: peft.IA3Config(
        target_modules=["layer"], feedforward_modules=["layer"]
    ),
}
UNKNOWN = {("loha", "conv3d"), ("lokr", "conv3d"), ("ia3", "conv1d"), ("ia3 of inputs", "conv1d")}
"""What peft has no class for."""
PAIRS = [(k, c) for c in CASES for k in KINDS if (k, c.split(":")[0]) not in UNKNOWN]
STATES = ("live", "frozen", "codes")
QUICK = ["linear: split, rotation and low rank", "conv2d: split, balance and low rank"]


@pytest.fixture(scope="module")
def made():
    """Makes a model of a case in a state."""
    known = {}

    def model(case, state, activations=16):
        key = case, activations
        if key not in known:
            live = rewritten(case, scale="table", weights=8, activations=activations).eval()
            frozen = tdq.freeze(live)
            codes = copy.deepcopy(frozen)
            for path, layer in quantized_layers(codes):
                q = layer.weight_quantizer
                coded = CodedWeight(q.grid, q.step, layer.weight.dtype, q.groups)
                layer.hold_codes(layer.weight_codes(path).to(torch.int8), coded)
            known[key] = {"live": live, "frozen": frozen, "codes": codes}
        return copy.deepcopy(known[key][state])

    return model


def add(model, kind, name="default", **options):
    """An adapter of a kind, filled with numbers."""
    before = set(dict(model.named_parameters()))
    peft.inject_adapter_in_model(KINDS[kind](**options), model, name)
    rng = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for path, p in model.named_parameters():
            if path in before or "magnitude" in path:
                continue
            if "ia3_" in path:
                p.uniform_(0.5, 1.5, generator=rng)
            elif any(part in path for part in ("lora_", "hada_", "lokr_")):
                p.normal_(0, 0.3, generator=rng)
    return model.layer


def out(model, x):
    with torch.no_grad():
        return model(x, TIME)


def call_plainly(layer, x, weight, bias=None):
    """The product of a layer's own kind and window."""
    if x.ndim == 3 and weight.ndim == 2:
        return F.linear(x, weight, bias)
    function = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim]
    return function(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def delta_of(adapter, kind, weight):
    """What an adapter adds to a weight, by the formula of its kind."""
    if kind.startswith("ia3"):
        ia3 = adapter.ia3_l["default"].detach()
        if weight.ndim > 2 and kind == "ia3":
            ia3 = ia3.transpose(0, 1)
        return weight * ia3 - weight
    delta = adapter.get_delta_weight("default").detach().reshape(weight.shape)
    if kind != "dora":
        return delta
    sum_ = weight + delta
    norm = sum_.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
    magnitude = adapter.lora_magnitude_vector["default"].weight.detach()
    return sum_ * magnitude.reshape(norm.shape) / norm - weight


def expected(alone, adapter, kind, x):
    """What a model gives with an adapter beside its layer, by the formula of its kind."""
    y, layer = out(alone, x), alone.layer
    channel = (-1, *[1] * (layer.weight.ndim - 2))
    if kind == "ia3 of inputs":
        return out(alone, x * adapter.ia3_l["default"].detach())
    if kind == "ia3":
        return y * adapter.ia3_l["default"].detach().reshape(channel)
    level = 1 + 2 * TIME.float() / 1000
    delta = adapter.get_delta_weight("default").detach().reshape(layer.weight.shape)
    branch = call_plainly(layer, x * level, delta)
    if kind != "dora":
        return y + branch
    bias = torch.zeros(len(delta)) if layer.bias is None else layer.bias.detach()
    bias = bias.reshape(channel)
    norm = (layer.weight + delta).flatten(1).norm(dim=1).detach()
    factor = adapter.lora_magnitude_vector["default"].weight.detach().flatten() / norm
    return (y - bias + branch) * factor.reshape(channel) + bias


def size(weight):
    """Of a weight, each column as large as the input that it multiplies."""
    return (weight * FACTORS.reshape(1, -1, *[1] * (weight.ndim - 2))).norm()


def same(state, before):
    return state.keys() == before.keys() and all(
        torch.equal(v, before[k]) for k, v in state.items()
    )


def copied(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def asked_of(layer, delta):
    """Every plain layer in a structure with the weight that a change asks for; None without."""
    found = {part: None for part in layer.modules() if isinstance(part, QuantLayer)}
    for part, share in plain_shares(layer, delta.double()):
        found[part] = part.weight.detach() + share
    return found


def check_fused(layer, asked):
    """Live weights are those asked for, frozen ones on their grid, rounded to nearest."""
    for part, weight in asked.items():
        quantizer = part.weight_quantizer
        frozen = isinstance(quantizer, FrozenWeight)
        assert isinstance(quantizer, CodedWeight) == (frozen and weight is None)
        if weight is None:
            continue
        if not frozen:
            assert torch.allclose(part.weight.double(), weight, rtol=1e-4, atol=1e-6)
            continue
        part.weight_codes()  # raises off the grid
        step = quantizer.scale(part.weight)
        inner = weight.abs() <= quantizer.grid.high * step
        assert inner.float().mean() > 0.9
        assert ((part.weight - weight).abs() <= 0.501 * step)[inner].all()


def float_inputs(model):
    """A copy whose inputs are not rounded."""
    model = copy.deepcopy(model)
    for _, layer in quantized_layers(model):
        layer.input_quantizer = nn.Identity()
    return model


def rounded(layer):
    """A copy of a structure with weights as they are rounded."""
    layer = copy.deepcopy(layer.base_layer)
    for part in layer.modules():
        if isinstance(part, QuantLayer) and not isinstance(part.weight_quantizer, FrozenWeight):
            part.weight = nn.Parameter(part.weight_quantizer(part.weight.detach()))
    return layer


@pytest.mark.parametrize("case", CASES)
def test_the_weight_is_that_of_the_layer_it_stands_for(made, case):
    model = made(case, "frozen")
    layer, (x,) = model.layer, inputs(case, seed=3)
    for _, part in quantized_layers(model):
        part.input_quantizer = nn.Identity()
    kind = {"linear": nn.Linear}.get(case.split(":")[0])
    with torch.no_grad():
        right = call_plainly(layer, x, layer.weight, layer.bias)
        assert torch.allclose(layer(x), right, rtol=1e-4, atol=1e-4 * right.abs().max())
        assert layer.weight.shape == plain(case).layer.weight.shape
        live = made(case, "live").layer.weight
        assert torch.allclose(live, plain(case).layer.weight, rtol=1e-5, atol=1e-6)
        for name in ("in_features", "out_features") if kind else ("in_channels", "stride"):
            assert getattr(layer, name) == getattr(plain(case).layer, name)
        change = torch.randn(layer.weight.shape, dtype=torch.float64)
        asked = layer.weight + change
        for part, share in plain_shares(layer, change):
            part.hold_numbers()
            part.weight = nn.Parameter((part.weight + share).float(), requires_grad=False)
        assert torch.allclose(layer.weight, asked.float(), atol=1e-4)


@pytest.mark.parametrize("state", ["live", "codes"])
@pytest.mark.parametrize(("kind", "case"), PAIRS)
@pytest.mark.filterwarnings("ignore:rounding keeps", "ignore:Unmerge result")
def test_an_adapter_runs_is_fused_and_taken_out(made, kind, case, state):
    model, (x,) = made(case, state), inputs(case, seed=3)
    layer, before, without = model.layer, copied(model), out(model, x)
    alone = copy.deepcopy(model)
    adapter = add(model, kind)
    assert adapter.base_layer is layer
    assert isinstance(layer, StructuredLayer)
    beside, weight, level = out(model, x), layer.weight.detach(), 1 + 2 * TIME.float() / 1000
    bias = None if layer.bias is None else layer.bias.detach().clone()
    delta = delta_of(adapter, kind, weight)
    right = expected(alone, adapter, kind, x)
    assert torch.allclose(beside, right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))
    effect = (beside - without).norm()
    assert effect > 1e-3 * without.norm()
    assert torch.equal(out(copy.deepcopy(model), x), beside)
    assert torch.equal(out(pickle.loads(pickle.dumps(model)), x), beside)

    asked = asked_of(layer, delta)
    adapter.merge()
    assert adapter.base_layer is layer
    check_fused(layer, asked)
    scale = 1
    if kind == "ia3" and bias is not None:
        scale = adapter.ia3_l["default"].detach().flatten()
    if bias is not None:
        assert torch.allclose(layer.bias, bias * scale)
    precise = float_inputs(model)
    right = call_plainly(layer, x * level, rounded(precise.layer).weight, layer.bias).detach()
    assert torch.allclose(out(precise, x), right, atol=1e-4 * float(right.abs().max()))
    if not kind.startswith("ia3") and case != "linear: rotation, balance":
        assert (out(model, x) - beside).norm() < 0.1 * effect
    adapter.unmerge()
    if state == "codes":
        assert torch.equal(out(model, x), beside)
    else:
        assert (layer.weight - weight).norm() < 1e-5 * weight.norm()
        assert (out(model, x) - beside).norm() < 1e-2 * effect
    model.layer = adapter.get_base_layer()
    assert model.layer is layer
    if state == "codes":
        assert same(model.state_dict(), before)
        assert torch.equal(out(model, x), without)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", QUICK)
@pytest.mark.filterwarnings("ignore:rounding keeps", "ignore:Unmerge result", "ignore:Already")
def test_two_adapters(made, kind, case, state):
    model, (x,) = made(case, state), inputs(case, seed=3)
    layer, before, without = model.layer, copied(model), out(model, x)
    bound = 2.0 if kind == "ia3 of inputs" else 0.3  # unfused, inputs may be clipped
    adapter = add(model, kind, "a")
    one = out(model, x)
    assert add(model, kind, "second") is adapter
    adapter.set_adapter(["a"])
    assert torch.equal(out(model, x), one)
    adapter.set_adapter(["a", "second"])
    both = out(model, x)
    adapter.merge(adapter_names=["a"])
    adapter.merge(adapter_names=["second"])
    assert (out(model, x) - both).norm() < bound * (both - without).norm()
    adapter.unmerge()
    adapter.merge()
    assert (out(model, x) - both).norm() < bound * (both - without).norm()
    adapter.unmerge()
    if state != "live":
        assert torch.equal(out(model, x), both)
    adapter.enable_adapters(False)
    if state != "live":
        assert torch.equal(out(model, x), without)
    adapter.enable_adapters(True)
    adapter.delete_adapter("second")
    adapter.set_adapter(["a"])
    if state != "live":
        assert torch.equal(out(model, x), one)
    model.layer = adapter.get_base_layer()
    assert model.layer is layer
    if state != "live":
        assert same(model.state_dict(), before)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", QUICK)
@pytest.mark.filterwarnings("ignore:rounding keeps")
def test_a_model_of_peft(made, kind, case, state):
    model, (x,) = made(case, state), inputs(case, seed=3)
    layer, before, without = model.layer, copied(model), out(model, x)
    whole = peft.get_peft_model(model, KINDS[kind]())
    assert [n for n, p in whole.named_parameters() if p.requires_grad] == [
        n for n, _ in whole.named_parameters() if "default" in n
    ]
    assert torch.allclose(out(whole, x), without, atol=1e-4 * float(without.abs().max()))
    assert whole.unload() is model
    assert model.layer is layer
    assert not any("peft" in type(m).__module__ for m in model.modules())
    assert same(model.state_dict(), before)
    assert vars(layer).keys() == vars(copy.deepcopy(layer)).keys()
    add(model, kind)
    beside = out(model, x)
    tuned = peft.get_peft_model(model, KINDS[kind](), "other")
    merged = tuned.merge_and_unload(adapter_names=["default"])
    assert merged.layer is layer
    if not kind.startswith("ia3"):
        assert (out(merged, x) - beside).norm() < 0.1 * (beside - without).norm()


@pytest.mark.parametrize("case", QUICK)
def test_what_is_not_right_is_refused(made, case, tmp_path):
    model = made(case, "codes")
    before = dict(model.named_modules())
    for start in ("pissa", "olora"):
        with pytest.raises(ConversionError, match=start):
            peft.inject_adapter_in_model(KINDS["lora"](init_lora_weights=start), model)
    assert dict(model.named_modules()) == before
    add(model, "lora")
    with pytest.raises(FreezeError, match="peft"):
        tdq.save(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


class Doubled(WrappedLayer):
    """A structure that does not say which weight it stands for. Without a name it is registered
    nowhere.
    """

    def forward(self, x):
        return 2 * self.layer(x)


def test_a_structure_that_does_not_say_its_weight_is_refused_by_name():
    model = One(Doubled(SplitLayer.from_float(nn.Linear(32, 12), sizes=[16, 16])))
    tdq.quantize(model, tdq.Recipe(weights=8, scale="dynamic"))
    before = dict(model.named_modules())
    with pytest.raises(ConversionError, match="Doubled"):
        peft.inject_adapter_in_model(KINDS["lora"](), model)
    assert dict(model.named_modules()) == before
    assert model.layer.weight.shape == (12, 32)


@pytest.mark.parametrize("case", QUICK)
def test_an_error_leaves_the_model_as_it_was(made, case, monkeypatch):
    model, (x,) = made(case, "codes"), inputs(case, seed=3)
    before, without, state = dict(model.named_modules()), out(model, x), copied(model)
    config = KINDS["lora"]()
    config.r = -1
    with pytest.raises(ValueError, match="positive integer"):
        peft.inject_adapter_in_model(config, model)
    assert dict(model.named_modules()) == before
    adapter = add(model, "lora")
    with torch.no_grad():
        adapter.lora_A["default"].weight[0, 0] = float("nan")
    for safe in (True, False):
        with pytest.raises((ValueError, TDQError)):
            adapter.merge(safe_merge=safe)
    assert adapter.merged_adapters == []
    model.layer = adapter.get_base_layer()
    assert same(model.state_dict(), state)
    assert torch.equal(out(model, x), without)


SLOW = [pytest.param(suffix, marks=pytest.mark.slow) for suffix in (".xml", ".onnx")]


@pytest.mark.parametrize("engine", ["reference", "onednn", *SLOW])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", QUICK)
def test_an_engine_computes_with_the_adapter_or_refuses(made, kind, case, engine, tmp_path):
    model, (x,) = made(case, "codes", activations=8), inputs(case, seed=3)
    add(model, kind)
    times = TIME.repeat(len(x))
    with torch.no_grad():
        right = model(x, times)
        try:
            if engine.startswith("."):
                file = tmp_path / f"model{engine}"
                tdq.export(model, file, (x, times))
                found = torch.as_tensor(tdq.open_session(file)(x, times))
            else:
                found = tdq.compile(model, engine)(x, times)
        except TDQError:
            refused = {"onednn": ("dora", "loha", "lokr"), ".xml": ("lokr",)}
            assert kind in refused.get(engine, ())
        else:
            assert (found - right).norm() < 1e-4 * right.norm()
