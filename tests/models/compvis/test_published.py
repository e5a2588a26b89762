import copy
import warnings

import pytest
import torch

import tdquant as tdq
from tdquant.clock import clock_of
from tdquant.errors import ModelError
from tdquant.layers import quantized_layers as quant_layers
from tdquant.quantizers import OffsetQuantizer, activation_quantizers
from tdquant.scales import PublishedScale, StaticScale, TableScale
from tdquant.training.groups import parameter_groups
from tests.models.compvis.emulation import UNet
from tests.models.compvis.examples import (
    UNET,
    checkpoint,
    config,
    inputs,
    published,
    quantized_layers,
    weights,
    write,
)

# Learned resampling and none, heads of a width, residual resampling, other orders of attention.
LEARNED = {
    **UNET,
    "resblock_updown": False,
    "use_scale_shift_norm": False,
    "num_head_channels": -1,
    "num_heads": 4,
    "use_new_attention_order": True,
    "attention_resolutions": [2],
}
CONTEXT = {
    **LEARNED,
    "use_spatial_transformer": True,
    "context_dim": 24,
    "use_new_attention_order": False,
}
UNETS = {"residual": UNET, "learned": LEARNED, "context": CONTEXT}
SETTINGS = [
    ("residual", 4, 4, "temporal"),
    ("residual", 8, 8, "temporal"),
    ("residual", 4, 8, "temporal"),
    ("residual", 4, 4, "static"),
    ("residual", 8, 8, "static"),
    ("residual", 4, 8, "static"),
    ("residual", 3, 3, "temporal"),
    ("residual", 32, 4, "temporal"),
    ("residual", 4, 32, "temporal"),
    ("learned", 4, 4, "temporal"),
    ("learned", 8, 8, "static"),
    ("context", 4, 4, "temporal"),
]


def load(tmp_path, state, unet=UNET, ema=True, suffix=".safetensors"):
    averages = {n: t for n, t in state.items() if is_parameter(n)} if ema is True else ema
    file = write(tmp_path / f"m{suffix}", checkpoint(state, ema=averages or None))
    return tdq.models.load_compvis(config(unet), file, ema=bool(ema))


def is_parameter(name):
    return not name.endswith(("n_lv", "dynamic", "act_func.b"))


def near(found, expected):
    """Equal to 1e-5: not one rounding in the whole network fell on the other side."""
    return (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    state = published(weights(), UNET)
    return load(tmp_path_factory.mktemp("published"), state).unet


@pytest.mark.parametrize(("name", "bits_w", "bits_a", "kind"), SETTINGS)
@torch.no_grad()
def test_equals_the_published_arithmetic(tmp_path, name, bits_w, bits_a, kind):
    unet = UNETS[name]
    state = published(weights(unet), unet, bits_w, bits_a, kind == "temporal")
    found = load(tmp_path, state, unet).unet
    theirs = UNet(unet, state)
    x, t, context, _ = inputs(unet)
    assert near(found(x, t, context), theirs(x, t, context))
    # One timestep for all, as samplers call it.
    same = torch.full((3,), 401)
    assert near(found(x, 401, context), theirs(x, same, context))


@torch.no_grad()
def test_quantization_is_what_is_compared(model):
    # Float weights give another output: the comparison above would see a layer left in float.
    x, t, *_ = inputs(UNET)
    exact = UNet(UNET, weights())(x, t)
    assert (model(x, t) - exact).abs().max() > 0.05 * exact.abs().max()
    one = published(weights(), UNET)
    path = quantized_layers(weights())[-1]
    before = UNet(UNET, one)(x, t)
    one[path + ".act_func.n_lv"] = torch.tensor(0)
    assert (before - UNet(UNET, one)(x, t)).abs().max() > 1e-4 * before.abs().max()


def test_layers_and_scales(model):
    rows = {row.path: row for row in tdq.summary(model)}
    residual, attention = rows["middle_block.0.in_layers.2"], rows["middle_block.1.qkv"]
    assert (residual.weight_codes, residual.input_codes) == (13, 15)
    assert (attention.weight_codes, attention.input_codes) == (13, 13)
    assert residual.scale == "published"
    assert rows["input_blocks.0.0"].weight_codes is None
    quantizers = dict(activation_quantizers(model))
    assert set(quantizers) == {p + ".input_quantizer" for p in quantized_layers(weights())}
    offset = [p for p, q in quantizers.items() if isinstance(q, OffsetQuantizer)]
    assert offset == [p for p in quantizers if "in_layers.2" in p or "out_layers.3" in p]
    assert clock_of(model).argument == "timesteps"


def test_operands_are_quantized_one_by_one(tmp_path):
    state = published(weights(), UNET)
    paths = quantized_layers(weights())
    state[paths[0] + ".n_lv"] = torch.tensor(0)
    state[paths[1] + ".act_func.n_lv"] = torch.tensor(0)
    state[paths[2] + ".n_lv"] = state[paths[2] + ".act_func.n_lv"] = torch.tensor(0)
    state[paths[3] + ".n_lv"] = torch.tensor(255)
    state[paths[4] + ".act_func.dynamic"] = torch.tensor([False])
    found = load(tmp_path, state).unet
    rows = {row.path: row for row in tdq.summary(found)}
    codes = [(rows[p].weight_codes, rows[p].input_codes) for p in paths[:4]]
    in_float = [(w is None, a is None) for w, a in codes]
    assert in_float == [(True, False), (False, True), (True, True), (False, False)]
    assert codes[3][0] == 253
    assert rows[paths[4]].scale == "static"
    x, t, *_ = inputs(UNET)
    with torch.no_grad():
        assert near(found(x, t), UNet(UNET, state)(x, t))


def test_averages_hold_the_steps_too(tmp_path):
    raw, averages = (published(weights(seed=s), UNET, seed=s) for s in (0, 1))
    averages = {n: t for n, t in averages.items() if is_parameter(n)}
    x, t, *_ = inputs(UNET)
    with torch.no_grad():
        found = load(tmp_path, raw, ema=averages).unet(x, t)
        assert near(found, UNet(UNET, {**raw, **averages})(x, t))
    del averages["middle_block.0.in_layers.2.act_func.tdq_module.s_gen.4.bias"]
    with pytest.raises(ModelError, match=r"middle_block.*no average .*s_gen4bias"):
        load(tmp_path, raw, ema=averages)
    # A quantized model of which just the averages were kept must not load as a float one.
    file = write(tmp_path / "m.ckpt", checkpoint({}, ema=averages))
    with pytest.raises(ModelError, match="an average of no parameter of the UNet"):
        tdq.models.load_compvis(config(), file)


def test_pickled_like_lightning_does(tmp_path):
    state = published(weights(), UNET)
    x, t, *_ = inputs(UNET)
    with torch.no_grad():
        assert near(load(tmp_path, state, suffix=".ckpt").unet(x, t), UNet(UNET, state)(x, t))


@torch.no_grad()
def test_frozen(model):
    frozen = tdq.freeze(model)
    assert all(isinstance(q.scale, TableScale) for _, q in activation_quantizers(frozen))
    assert len(next(activation_quantizers(frozen))[1].scale.knots) == 1000
    x, t, *_ = inputs(UNET)
    live = model(x, t)
    # The table was made from a thousand rows at once, which may round otherwise than three.
    error = (frozen(x, t) - live).abs()
    assert error.median() <= 1e-5 * live.abs().max()
    assert error.mean() <= 1e-3 * live.abs().max()


@pytest.mark.parametrize(
    ("name", "bits_w", "bits_a"),
    [
        ("residual", 4, 4),
        ("residual", 8, 8),
        ("residual", 4, 32),
        ("residual", 32, 4),
        ("context", 4, 8),
    ],
)
@torch.no_grad()
def test_exact_integers(tmp_path, name, bits_w, bits_a):
    unet = UNETS[name]
    state = published(weights(unet), unet, bits_w, bits_a)
    frozen = tdq.freeze(load(tmp_path, state, unet).unet)
    exact = tdq.compile(frozen, "reference")
    x, t, context, _ = inputs(unet)
    seen = {}
    for path, layer in quant_layers(frozen):
        layer.register_forward_pre_hook(lambda _, args, path=path: seen.update({path: args[0]}))
    expected = frozen(x, t, context)
    error = (exact(x, t, context) - expected).abs()
    assert error.mean() <= 1e-2 * expected.abs().max()
    # Layer by layer, where a rounding of the float sums cannot tip a later code.
    layers = dict(quant_layers(frozen))
    assert set(seen) == set(layers)
    for path, layer in layers.items():
        with clock_of(frozen).at(t), clock_of(exact).at(t):
            expected = layer(seen[path])
            found = exact.get_submodule(path)(seen[path])
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), path


@pytest.mark.parametrize("dynamic", [True, False])
@torch.no_grad()
def test_saved_and_loaded(tmp_path, dynamic):
    state = published(weights(), UNET, 4, 8, dynamic)
    frozen = tdq.freeze(load(tmp_path, state).unet)
    again = tdq.load(tdq.save(frozen, tmp_path / "saved"))
    x, t, *_ = inputs(UNET)
    assert torch.equal(again(x, t), frozen(x, t))
    assert tdq.summary(again) == tdq.summary(frozen)
    exact = tdq.compile(again, "reference")(x, t)
    assert torch.equal(exact, tdq.compile(frozen, "reference")(x, t))


def test_learns(model):
    learning = copy.deepcopy(model).train()
    x, t, *_ = inputs(UNET)
    learning(x, t).square().mean().backward()
    for name, parameter in learning.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    groups = {g["name"]: g["params"] for g in parameter_groups(learning)}
    networks = [q.scale for _, q in activation_quantizers(learning)]
    assert len(groups["temporal"]) == 4 * len(networks)
    assert any(p.grad.any() for p in groups["temporal"])
    assert any(p.grad.any() for p in groups["weight_steps"])


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("dynamic", [True, False])
def test_written_and_read_back(tmp_path, suffix, dynamic):
    state = published(weights(), UNET, 4, 8, dynamic)
    paths = quantized_layers(weights())
    state[paths[0] + ".n_lv"] = state[paths[1] + ".act_func.n_lv"] = torch.tensor(0)
    pipe = load(tmp_path, state)
    averages = {n: p + 1e-3 for n, p in pipe.unet.named_parameters()}
    file = tdq.models.save_compvis(pipe, tmp_path / f"again{suffix}", ema=averages)
    x, t, *_ = inputs(UNET)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        again = tdq.models.load_compvis(config(), file, ema=False).unet
        assert torch.equal(again(x, t), pipe.unet(x, t))
        averaged = dict(tdq.models.load_compvis(config(), file).unet.named_parameters())
        assert all(torch.equal(averaged[n], p) for n, p in averages.items())


def test_other_quantized_models_are_not_written_in_it(tmp_path):
    pipe = tdq.models.load_compvis(config())
    pipe.unet.load_state_dict(weights())
    tdq.quantize(pipe.unet, tdq.Recipe(weights=4, scale="dynamic"))
    with pytest.raises(ModelError, match=r"time_embed\.0: no counterpart"):
        tdq.models.save_compvis(pipe, tmp_path / "m.ckpt")
    assert not list(tmp_path.iterdir())


P = "middle_block.0.in_layers.2"
DAMAGE = {
    "no step": (lambda s: s.pop(P + ".act_func.s"), f"{P}.act_func.s: missing"),
    "half a network": (
        lambda s: s.pop(P + ".act_func.tdq_module.s_gen.7.weight"),
        "s_gen.7.weight: missing",
    ),
    "no power of two": (lambda s: s.update({P + ".n_lv": torch.tensor(14)}), f"{P}.n_lv=14"),
    "two bits signed": (lambda s: s.update({P + ".n_lv": torch.tensor(3)}), f"{P}.n_lv=3"),
    "negative": (lambda s: s.update({P + ".n_lv": torch.tensor(-1)}), f"{P}.n_lv=-1"),
    "no such layer": (
        lambda s: s.update({"middle_block.0.n_lv": torch.tensor(15)}),
        "middle_block.0: no layer",
    ),
    "nor path": (lambda s: s.update({"decoder.n_lv": torch.tensor(15)}), "decoder: no layer"),
    "a weight too many": (
        lambda s: s.update({"decoder.weight": torch.zeros(3)}),
        "unexpected: decoder.weight",
    ),
    "a step of nothing": (lambda s: s.update({P + ".s": torch.zeros(1)}), f"{P}.s=0"),
    "a step of NaN": (lambda s: s.update({P + ".s": torch.full((1,), torch.nan)}), f"{P}.s=nan"),
    "many steps": (
        lambda s: s.update({P + ".s": torch.ones(64)}),
        "middle_block.0.in_layers.2.weight_quantizer.step (64,), not ()",
    ),
    "another width of time": (
        lambda s: s.update({P + ".act_func.tdq_module.s_gen.0.weight": torch.zeros(64, 128)}),
        "(64, 128), not (64, 32)",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_checkpoints(tmp_path, name):
    harm, text = DAMAGE[name]
    state = published(weights(), UNET)
    harm(state)
    with pytest.raises(ModelError) as error:
        load(tmp_path, state, ema=False)
    assert text in str(error.value)


def test_a_negative_step_is_its_absolute_value(tmp_path):
    state = published(weights(), UNET, dynamic=False)
    x, t, *_ = inputs(UNET)
    expected = UNet(UNET, state)(x, t)
    state[P + ".s"] *= -1
    state["middle_block.1.qkv.act_func.s"] *= -1
    with torch.no_grad():
        assert near(load(tmp_path, state).unet(x, t), expected)
    state[P + ".act_func.s"] *= -1
    with pytest.raises(ModelError, match="not positive"):
        load(tmp_path, state)


def test_scales_by_kind(tmp_path):
    for dynamic, kind in ((True, PublishedScale), (False, StaticScale)):
        found = load(tmp_path, published(weights(), UNET, dynamic=dynamic)).unet
        assert all(type(q.scale) is kind for _, q in activation_quantizers(found))
