"""IP-Adapters on quantized UNets, plain and with a resampler: loaded before and after, by weights
and by a pipeline with its image encoder, with quantized attention, and unloaded again.
"""

import copy

import pytest
import torch

import tdquant as tdq
from tdquant.errors import FreezeError

pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffusers import UNet2DConditionModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from tests.ip_adapters import SIZE, image, image_weights  # noqa: E402
from tests.pipelines import PIPELINES, sample  # noqa: E402
from tests.unet_states import in_states, out, recorded  # noqa: E402

STATES = ("live", "codes")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline, calls of it, and its UNet in every state, without and with quantized attention.

    Returns:
        The pipeline, the calls, and (state, bits of attention) -> UNet.
    """
    pipe, calls = recorded()
    models = {}
    for bits, scale in ((32, "dynamic"), (8, "table")):
        folder = tmp_path_factory.mktemp("adapters") / "unet"
        recipe = tdq.Recipe(weights=8, scale=scale, attention=bits)
        found = in_states(pipe.unet, calls, recipe, folder)
        models |= {(state, bits): model for state, model in found.items()}
    return pipe, calls, models


def load(model, plus=False):
    model._load_ip_adapter_weights(image_weights(model, plus), low_cpu_mem_usage=False)
    return model


def unload(pipe, model):
    slot = copy.copy(pipe)
    slot.unet = model
    slot.unload_ip_adapter()


def quantizers(model):
    """Quantized processors of attention by their paths."""
    return {
        name: type(processor).__name__
        for name, processor in model.attn_processors.items()
        if "Quant" in type(processor).__name__
    }


@pytest.mark.parametrize(("attention", "plus"), [(32, False), (32, True), (8, True)])
@pytest.mark.parametrize("state", ["early", *STATES])
def test_an_ip_adapter(made, state, attention, plus, tmp_path):
    pipe, calls, models = made
    whole = load(copy.deepcopy(pipe.unet), plus)
    a, b = image(calls, 0, plus), image(calls, 1, plus)
    if state == "early":
        scale = "dynamic" if plus else "table"
        recipe = tdq.Recipe(weights=8, scale=scale, attention=attention)
        model = tdq.quantize(copy.deepcopy(whole), recipe)
        if scale == "table":
            seen = [{**c, **a} for c in calls]
            tdq.calibrate(model, seen, estimator="minmax", progress=False)
        model = tdq.freeze(model)
    else:
        model = copy.deepcopy(models[state, attention])
        before = out(model, calls[0]), quantizers(model)
        load(model, plus)
    assert model.config.encoder_hid_dim_type == "ip_image_proj"
    right = out(whole, calls[0], **b) - out(whole, calls[0], **a)
    error = out(model, calls[0], **b) - out(model, calls[0], **a) - right
    assert error.norm() < 0.5 * right.norm()
    if state != "live":
        with pytest.raises(FreezeError):
            model.save_pretrained(tmp_path / "out")
        assert not (tmp_path / "out").exists()
    unload(pipe, model)
    plain = out(model, calls[0])
    if state != "early":
        assert torch.equal(plain, before[0])
        assert quantizers(model) == before[1]
    if state != "live":
        model.save_pretrained(tmp_path / "out")
        again = UNet2DConditionModel.from_pretrained(tmp_path / "out")
        assert torch.equal(out(again, calls[0]), plain)


def test_quantized_attention_is_frozen_below_an_adapter(made):
    pipe, calls, models = made
    model = load(copy.deepcopy(models["live", 8]))
    beside = out(model, calls[0], **image(calls, 0))
    frozen = tdq.freeze(model)
    assert torch.equal(out(frozen, calls[0], **image(calls, 0)), beside)
    compiled = tdq.compile(frozen, "reference")
    exact = out(load(copy.deepcopy(pipe.unet)), calls[0], **image(calls, 0))
    # A value beside a rounding boundary may fall on its other side.
    moved = out(compiled, calls[0], **image(calls, 0)) - beside
    assert moved.norm() < 0.5 * (beside - exact).norm()
    load(frozen, plus=True)  # in the place of the first
    unload(pipe, frozen)
    assert torch.equal(out(frozen, calls[0]), out(models["frozen", 8], calls[0]))


@pytest.mark.parametrize("attention", [32, 8])
def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was(made, attention):
    _, calls, models = made
    model = copy.deepcopy(models["codes", attention])
    before, processors = out(model, calls[0]), model.attn_processors
    weights = image_weights(model)
    weights["image_proj"]["proj.weight"] = torch.zeros(5, SIZE)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model._load_ip_adapter_weights(weights, low_cpu_mem_usage=False)
    assert model.attn_processors == processors
    assert torch.equal(out(model, calls[0]), before)


def test_a_pipeline_loads_it_with_its_image_encoder(made, tmp_path):
    made_pipe, _, models = made
    call = {**PIPELINES["stable_diffusion_1"]()[1], "num_inference_steps": 2}
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=8, projection_dim=SIZE,
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = transformers.CLIPVisionModelWithProjection(config)
    encoder.save_pretrained(tmp_path / "models" / "image_encoder")
    weights = {
        f"{part}.{name}": tensor
        for part, tensors in image_weights(made_pipe.unet).items()
        for name, tensor in tensors.items()
    }
    save_file(weights, tmp_path / "models" / "ip.safetensors")
    pictures = [torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)]
    found = {}
    unets = {"float": made_pipe.unet, "live": models["live", 8], "codes": models["codes", 8]}
    for name, unet in unets.items():
        pipe = copy.copy(made_pipe)
        pipe.unet = copy.deepcopy(unet)
        before = sample(pipe, call)
        pipe.load_ip_adapter(str(tmp_path), subfolder="models", weight_name="ip.safetensors")
        pipe.set_ip_adapter_scale(0.8)
        found[name] = [sample(pipe, call, ip_adapter_image=p) for p in pictures]
        pipe.unload_ip_adapter()
        assert torch.equal(sample(pipe, call), before)
    for name in ("live", "codes"):
        assert not torch.equal(*found[name])
        for got, want in zip(found[name], found["float"], strict=True):
            assert (got - want).norm() < 0.05 * want.norm()
