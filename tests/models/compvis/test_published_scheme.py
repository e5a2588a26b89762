"""Quantizing and training a float model as TDQ's authors do: ``Recipe.published``."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.calibration.published import start_as_published
from tdquant.errors import CalibrationError, ConversionError, RecipeError
from tdquant.files.config import read_config
from tdquant.layers import QuantConv1d, quantized_layers
from tdquant.quantizers import OffsetQuantizer, activation_quantizers
from tdquant.scales import PublishedScale, StaticScale
from tests.models.compvis.emulation import UNet
from tests.models.compvis.examples import (
    BASE,
    UNET,
    case,
    checkpoint,
    config,
    inputs,
    published,
    read,
    weights,
    write,
)
from tests.models.compvis.examples import quantized_layers as published_layers

ROOT = Path(__file__).parents[3]
DROPPED = {**BASE, "dropout": 0.1, "num_res_blocks": 2}


def model(unet=UNET, **recipe):
    """A quantized UNet, its float twin, and calls of it."""
    pipe = tdq.models.load_compvis(config(unet))
    pipe.unet.load_state_dict(weights(unet))
    exact = copy.deepcopy(pipe.unet)
    tdq.quantize(pipe.unet, tdq.Recipe.published(**recipe))
    torch.manual_seed(0)
    images = torch.randn(4, *pipe.shape)
    calls = [(images, torch.randint(0, 1000, (4,))) for _ in range(5)]
    return pipe.unet, exact, calls


@pytest.mark.parametrize(
    ("name", "layers"), [("cifar10-ddpm", 75), ("lsun_churches-ldm-kl-8", 129)]
)
def test_as_many_layers_as_published(name, layers):
    params = read_config(ROOT / "configs" / f"{name}.yaml")["model"]["params"]["unet_config"]
    small = params["params"] | {"model_channels": 32, "num_heads": 4}
    unet = tdq.models.UNetModel(**small)
    for parameter in unet.parameters():
        nn.init.normal_(parameter)
    tdq.quantize(unet, tdq.Recipe.published())
    found = {path for path, _ in quantized_layers(unet)}
    assert len(found) == layers
    assert found == set(published_layers(weights(small)))


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_steps_start_as_published(dynamic, bits):
    unet, exact, calls = model(weights=bits, activations=bits, dynamic=dynamic)
    seen = {}

    def watch(path):
        def hook(module, args):
            seen.setdefault(path, []).append(args[0])

        return hook

    for path, _ in quantized_layers(unet):
        exact.get_submodule(path).register_forward_pre_hook(watch(path))
    with torch.no_grad():
        for call in calls:
            exact(*call)
    before = torch.random.get_rng_state()
    tdq.calibrate(unet, calls, progress=False)
    assert torch.equal(torch.random.get_rng_state(), before)
    n = 2**bits - 1
    for path, layer in quantized_layers(unet):
        quantizer, offset = layer.input_quantizer, path.endswith(("in_layers.2", "out_layers.3"))
        assert isinstance(quantizer, OffsetQuantizer) == offset
        low, high = (0, n - 1) if offset else (-(n // 2 - 1), n // 2 - 1)
        assert (quantizer.grid.low, quantizer.grid.high) == (low, high)
        # By the formula, in numbers that were seen in float.
        expected = sum(float(x.mean() + (16 if offset else 3) * x.std()) for x in seen[path])
        expected /= len(calls) * high
        if dynamic:
            assert isinstance(quantizer.scale, PublishedScale)
            t = torch.tensor([0, 500, 999])
            steps = quantizer.scale(t, torch.zeros(3, 1), quantizer.grid)
            assert torch.allclose(steps.detach(), torch.full((3,), expected), rtol=0.1)
        else:
            assert isinstance(quantizer.scale, StaticScale)
            assert quantizer.scale.step.item() == pytest.approx(expected, rel=1e-5)
        weight = layer.weight_quantizer
        assert (weight.grid.low, weight.grid.high) == (-(n // 2 - 1), n // 2 - 1)
        largest = layer.weight.max().item()
        assert weight.step.item() == pytest.approx(largest / weight.grid.high)


def test_four_bits_are_thirteen_codes():
    unet, _, calls = model(weights=4, activations=4)
    tdq.calibrate(unet, calls, progress=False)
    frozen = tdq.freeze(unet)
    weight = frozen.get_submodule("middle_block.1.qkv").weight
    assert len(weight.unique()) <= 13
    grid = frozen.get_submodule("middle_block.1.qkv").input_quantizer.grid
    assert grid.codes == 13


def test_the_network_sees_the_embedding_of_the_unet():
    unet, _, calls = model()
    tdq.calibrate(unet, calls, progress=False)
    for _, quantizer in activation_quantizers(unet):
        network = quantizer.scale.network
        assert network[0].in_features == UNET["model_channels"]
        assert [m.out_features for m in quantizer.scale.layers] == [64, 64, 64, 1]
        assert [m.p for m in network if isinstance(m, nn.Dropout)] == [0.2]


def test_the_offset_follows_dropout_while_it_trains():
    unet, _, calls = model(DROPPED, dynamic=False)
    tdq.calibrate(unet, calls, progress=False)
    x = torch.linspace(-1, 1, 50).reshape(1, 50)
    for path, layer in quantized_layers(unet):
        quantizer = layer.input_quantizer
        if not isinstance(quantizer, OffsetQuantizer):
            continue
        dropped = path.endswith("out_layers.3")
        lowest = {}
        for training in (True, False):
            quantizer.train(training)
            with torch.no_grad():
                lowest[training] = float(quantizer(x).min())
        assert lowest[False] == pytest.approx(-0.2785)
        assert lowest[True] == pytest.approx(-0.2785 / 0.9 if dropped else -0.2785)


def test_the_same_offset_trains_on_in_an_authors_checkpoint(tmp_path):
    file = write(tmp_path / "q.ckpt", checkpoint(published(weights(DROPPED), DROPPED)))
    unet = tdq.models.load_compvis(config(DROPPED), file, ema=False).unet
    rates = {
        path: layer.input_quantizer.dropout
        for path, layer in quantized_layers(unet)
        if isinstance(layer.input_quantizer, OffsetQuantizer)
    }
    assert {r for p, r in rates.items() if p.endswith("out_layers.3")} == {0.1}
    assert {r for p, r in rates.items() if p.endswith("in_layers.2")} == {0.0}


SETTINGS = [(4, 4, True), (8, 8, True), (4, 8, False)]


@pytest.mark.parametrize(
    ("suffix", "bits_w", "bits_a", "dynamic"),
    [(".ckpt", *setting) for setting in SETTINGS] + [(".safetensors", *SETTINGS[0])],
)
def test_written_in_the_published_format(tmp_path, bits_w, bits_a, dynamic, suffix):
    unet, _, calls = model(weights=bits_w, activations=bits_a, dynamic=dynamic)
    tdq.calibrate(unet, calls, progress=False)
    averages = {name: p.detach() * 1.01 for name, p in unet.named_parameters()}
    file = tdq.models.save_compvis(unet, tmp_path / f"m{suffix}", ema=averages)
    found = read(file)
    theirs = published(weights(UNET), UNET, bits_w, bits_a, dynamic)
    if not dynamic:  # a static layer has no use for the network
        theirs = {k: v for k, v in theirs.items() if "tdq_module" not in k}
    own = {
        k.removeprefix("model.diffusion_model."): v
        for k, v in found.items()
        if not k.startswith("model_ema.")
    }
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in theirs.items()}
    counts = {k: int(v) for k, v in theirs.items() if k.endswith("n_lv")}
    assert {k: int(own[k]) for k in counts} == counts
    assert all(bool(own[k]) == dynamic for k in own if k.endswith("dynamic"))
    averaged = {k for k in found if k.startswith("model_ema.diffusion_model")}
    parameters = {k for k in own if not k.endswith(("n_lv", "act_func.b", "dynamic"))}
    assert averaged == {"model_ema.diffusion_model" + k.replace(".", "") for k in parameters}
    # Read back: the same outputs, and those of the published arithmetic.
    again = tdq.models.load_compvis(config(), file, ema=False).unet
    x, t, *_ = inputs(UNET)
    with torch.no_grad():
        expected = unet.eval()(x, t)
        assert torch.equal(again(x, t), expected)
        emulated = UNet(UNET, own)(x, t)
    assert (emulated - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_traps_of_the_published_start():
    """Negative means and weights: no step may be negative, zero or NaN."""
    unet, _, calls = model(dynamic=False)
    fresh = tdq.models.UNetModel(**UNET)
    fresh.load_state_dict(weights(UNET))
    with torch.no_grad():
        fresh.get_submodule("middle_block.1.qkv").weight.abs_().neg_()
    tdq.quantize(fresh, tdq.Recipe.published())
    layer = fresh.get_submodule("middle_block.1.qkv")
    largest = float(layer.weight.detach().abs().max())
    assert float(layer.weight_quantizer.step.detach()) == pytest.approx(largest / 6)

    class Shift(nn.Module):
        def forward(self, x):
            return x * 1e-3 - 5

    norm = unet.get_submodule("middle_block.1").norm
    unet.get_submodule("middle_block.1").norm = nn.Sequential(norm, Shift())
    tdq.calibrate(unet, calls, progress=False)
    step = unet.get_submodule("middle_block.1.qkv").input_quantizer.scale.step.item()
    assert step == pytest.approx(5 / 6, rel=0.01)


def test_what_cannot_start():
    unet, _, calls = model()
    kinds = {q.scale.kind for _, q in activation_quantizers(unet)}
    with pytest.raises(CalibrationError, match="no call reached"):
        start_as_published(unet, [], progress=False)
    bad = [(torch.full_like(calls[0][0], math.nan), calls[0][1])]
    with pytest.raises(CalibrationError, match="NaN"):
        tdq.calibrate(unet, bad, progress=False)
    assert {q.scale.kind for _, q in activation_quantizers(unet)} == kinds == {"pending"}
    fresh = tdq.models.UNetModel(**UNET)
    with pytest.raises(ConversionError, match="all zero"):
        tdq.quantize(fresh, tdq.Recipe.published())


def test_models_of_which_the_grids_are_not_known():
    unet = tdq.models.load_embedded("tiny").unet
    with pytest.raises(ConversionError, match="published grids are not known"):
        tdq.quantize(unet, tdq.Recipe.published())
    assert not any(quantized_layers(unet))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": "table"}, "temporal or static"),
        ({"weights": 2}, "3 bits or more"),
        ({"granularity": "channel"}, "granularity='channel'"),
        ({"time_weights": 8}, "time_weights=8"),
        ({"temporal": {"depth": 2}}, "temporal="),
        ({"overrides": {"*": {"weights": 8}}}, "overrides="),
    ],
)
def test_recipes_that_are_not_published(changes, words):
    with pytest.raises(RecipeError, match=words):
        tdq.Recipe(**{**tdq.Recipe.published().to_dict(), **changes})


def test_a_recipe_is_written_and_read():
    recipe = tdq.Recipe.published(8, 4, dynamic=False)
    assert tdq.Recipe.from_dict(recipe.to_dict()) == recipe
    assert (recipe.weights, recipe.activations, recipe.scale) == (8, 4, "static")


@pytest.mark.parametrize("order", ["plain", "newer attention"])
@pytest.mark.parametrize("scheme", ["published", "ours"])
def test_both_orders_of_attention_quantize_sample_and_compile(order, scheme):
    pipe = tdq.models.load_compvis(config(case(order)))
    pipe.unet.load_state_dict(weights(case(order)))
    exact = copy.deepcopy(pipe.unet)
    recipes = {"published": tdq.Recipe.published(8, 8), "ours": tdq.Recipe(8, 8, remedies=())}
    tdq.quantize(pipe.unet, recipes[scheme])
    calls = tdq.trajectories(exact, pipe.scheduler, 4, pipe.shape, steps=4)
    tdq.calibrate(pipe.unet, calls, progress=False)
    attention = pipe.unet.get_submodule("middle_block.1")
    assert {type(attention.qkv), type(attention.proj_out)} == {QuantConv1d}
    frozen = tdq.freeze(pipe.unet)
    common = {"steps": 4, "progress": False}
    expected, found = (
        tdq.sample(net, pipe.scheduler, 4, pipe.shape, **common)
        for net in (exact, tdq.compile(frozen, "reference"))
    )
    assert 0 < (found - expected).norm() < 0.2 * expected.norm()
