"""LoRA by the loaders of pipelines: in two components, swapped in place, of Flux and its control
LoRA, on compiled models and engines, and in a process that only loaded the model.
"""

import copy
import pickle

import pytest
import torch
from diffusers import FluxControlPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from peft import LoraConfig, OFTConfig
from peft.utils import get_peft_model_state_dict

import tdquant as tdq
from tdquant.errors import ConversionError, EngineAttributeError, FreezeError
from tdquant.lowering.slot import OnEngine
from tests.pipelines import PIPELINES, sample

RECIPE = tdq.Recipe(weights=8, scale="dynamic")


def states(model, folder):
    """A model as it is, live, and loaded from a folder."""
    live = tdq.quantize(copy.deepcopy(model), RECIPE)
    tdq.freeze(live).save_pretrained(folder)
    return {"float": model, "live": live, "codes": type(model).from_pretrained(folder)}


def adapter(model, targets, rank, seed):
    """The state dict of a random LoRA for a model, which stays as it is."""
    model, rng = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=8, target_modules=targets))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3, generator=rng)
    return get_peft_model_state_dict(model)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes fresh pipelines around a UNet of a state; a folder of LoRAs; a call."""
    folder = tmp_path_factory.mktemp("loras")
    pipe, call = PIPELINES["stable_diffusion_1"]()
    unets = states(pipe.unet, folder / "unet")
    first, second = (adapter(pipe.unet, ["to_q", "to_v"], rank, rank) for rank in (4, 6))
    text = adapter(pipe.text_encoder, ["q_proj", "v_proj"], 4, 0)
    save = StableDiffusionPipeline.save_lora_weights
    save(folder / "both", unet_lora_layers=first, text_encoder_lora_layers=text)
    save(folder / "first", unet_lora_layers=first)
    save(folder / "second", unet_lora_layers=second)
    parts = pipe.components

    def fresh(state):
        own = {"unet": unets[state], "text_encoder": parts["text_encoder"]}
        own = {name: copy.deepcopy(model) for name, model in own.items()}
        return StableDiffusionPipeline(**{**parts, **own}, requires_safety_checker=False)

    return fresh, folder, call | {"num_inference_steps": 2}


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("state", ["live", "codes"])
def test_in_two_components(made, state):
    fresh, folder, call = made
    whole, pipe = fresh("float"), fresh(state)
    before = sample(pipe, call)
    for each in (whole, pipe):
        each.load_lora_weights(folder / "both")
    beside = sample(pipe, call)
    effect = distance(beside, before)
    assert distance(beside, sample(whole, call)) < 0.3 * effect
    pipe.fuse_lora()
    assert distance(sample(pipe, call), beside) < 0.5 * effect
    pipe.unfuse_lora()
    assert distance(sample(pipe, call), beside) < 0.01 * effect  # the text encoder is float
    pipe.unload_lora_weights()
    assert distance(sample(pipe, call), before) < 0.01 * effect


@pytest.mark.parametrize("state", ["live", "codes"])
def test_swapped_in_place(made, state):
    fresh, folder, call = made
    pipe, other = fresh(state), fresh(state)
    before = sample(pipe, call)
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights(folder / "first", adapter_name="a")
    first = sample(pipe, call)
    pipe.load_lora_weights(folder / "second", adapter_name="a", hotswap=True)
    other.load_lora_weights(folder / "second")
    second = sample(pipe, call)
    assert not torch.equal(first, second)
    assert distance(sample(other, call), second) < 1e-3
    pipe.fuse_lora()
    with pytest.raises(ConversionError, match="unfuse_lora"):
        pipe.load_lora_weights(folder / "first", adapter_name="a", hotswap=True)
    pipe.unfuse_lora()
    assert distance(sample(pipe, call), second) < 1e-3
    pipe.unload_lora_weights()
    assert torch.equal(sample(pipe, call), before)


def test_a_refused_adapter_does_not_bar_the_next(made):
    unet = made[0]("codes").unet
    with pytest.raises(ConversionError, match="OFT"):
        unet.add_adapter(OFTConfig(oft_block_size=4, target_modules=["to_q"]))
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    assert unet.active_adapters() == ["default"]


def test_a_lora_that_does_not_fit_leaves_the_model_as_it_was(made):
    fresh, folder, _ = made
    unet = fresh("codes").unet
    before = {name: type(module) for name, module in unet.named_modules()}
    weights = StableDiffusionPipeline.lora_state_dict(folder / "first")[0]
    wrong = {k: v[:, :-1] if k.endswith("mid_block.attentions.0.transformer_blocks.0.attn1.to_v."
             "lora_A.weight") else v for k, v in weights.items()}  # fmt: skip
    with pytest.raises(RuntimeError, match="size mismatch"):
        unet.load_lora_adapter(wrong, prefix="unet")
    assert {name: type(module) for name, module in unet.named_modules()} == before
    unet.load_lora_adapter(weights, prefix="unet")


@pytest.mark.parametrize("how", ["unpickled", "loaded"])
def test_fusing_is_checked_in_a_process_that_only_loaded_the_model(made, how, monkeypatch):
    fresh, folder, _ = made
    pickled = pickle.dumps(fresh("codes").unet)
    for cls, name in ((UNet2DConditionModel, "fuse_qkv_projections"),
                      (Attention, "fuse_projections")):  # fmt: skip
        monkeypatch.setattr(cls, name, getattr(cls, name).__wrapped__)
    if how == "unpickled":
        unet = pickle.loads(pickled)
    else:
        unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    with pytest.raises(ConversionError, match=r"before tdq\.quantize"):
        unet.fuse_qkv_projections()


def test_a_compiled_model_runs_the_adapter_that_it_has(made):
    fresh, folder, call = made
    pipe = fresh("codes")
    frozen, before = pipe.unet, sample(pipe, call)
    pipe.load_lora_weights(folder / "first", adapter_name="a")
    beside = sample(pipe, call)
    pipe.unet = tdq.compile(frozen, "reference")
    assert distance(sample(pipe, call), beside) < 1e-3
    with pytest.raises(ConversionError, match="compiled"):
        pipe.fuse_lora()
    with pytest.raises(ConversionError, match="compiled"):
        pipe.load_lora_weights(folder / "second", adapter_name="b")
    pipe.disable_lora()
    assert distance(sample(pipe, call), before) < 0.1 * distance(beside, before)
    frozen.fuse_lora()
    pipe.unet = tdq.compile(frozen, "reference")
    with pytest.raises(ConversionError, match="compiled"):
        pipe.unfuse_lora()


CHANGES = {
    "unload": lambda pipe: pipe.unload_lora_weights(),
    "fuse": lambda pipe: pipe.fuse_lora(),
    "unfuse": lambda pipe: pipe.unfuse_lora(),
    "scale": lambda pipe: pipe.set_adapters("a", 0.5),
    "disable": lambda pipe: pipe.disable_lora(),
    "delete": lambda pipe: pipe.delete_adapters("a"),
    "unload the image": lambda pipe: pipe.unload_ip_adapter(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_engine_keeps_the_adapter_in_its_graph(made, change):
    pipe = made[0]("float")
    pipe.unet = OnEngine({"adapter": "a model with adapters of peft"})
    with pytest.raises(EngineAttributeError, match="keeps the adapter"):
        CHANGES[change](pipe)
    pipe.unet = OnEngine({})
    pipe.disable_lora()  # of the text encoder


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """Makes pipelines that take a control image; control LoRAs; a call."""
    pipe, call = PIPELINES["flux"]()
    net, rng = pipe.transformer, torch.Generator().manual_seed(0)
    models = states(net, tmp_path_factory.mktemp("flux"))
    width, weights = net.inner_dim, {}
    sizes = {"x_embedder": 2 * net.config.in_channels, "transformer_blocks.0.attn.to_q": width}
    for path, size in sizes.items():
        weights[f"transformer.{path}.lora_A.weight"] = torch.randn(4, size, generator=rng)
        weights[f"transformer.{path}.lora_B.weight"] = torch.randn(width, 4, generator=rng)
    left_out = ("image_encoder", "feature_extractor")
    parts = {name: part for name, part in pipe.components.items() if name not in left_out}

    def fresh(model):
        return FluxControlPipeline(**{**parts, "transformer": copy.deepcopy(model)})

    call = {k: v for k, v in call.items() if not k.startswith("negative")}
    call |= {"num_inference_steps": 2, "control_image": torch.rand(1, 3, 8, 8, generator=rng)}
    return fresh, models, weights, call


@pytest.mark.parametrize("state", ["live", "codes"])
def test_a_control_lora_widens_a_float_layer(flux, state, tmp_path):
    fresh, models, weights, call = flux
    whole, pipe = fresh(models["float"]), fresh(models[state])
    before = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    found = []
    for each in (whole, pipe):
        each.load_lora_weights(weights)
        found.append(sample(each, call))
        found.append(sample(each, call | {"control_image": 1 - call["control_image"]}))
    right, other = found[0] - found[1], found[2] - found[3]
    assert (other - right).norm() < 0.3 * right.norm()
    if state == "codes":
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        for save in (pipe.transformer.save_pretrained, lambda to: tdq.save(pipe.transformer, to)):
            with pytest.raises(FreezeError, match="reset_to_overwritten_params"):
                save(tmp_path / "wide")
        assert not (tmp_path / "wide").exists()
        return
    pipe.unload_lora_weights(reset_to_overwritten_params=True)
    now = pipe.transformer.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], before[name]) for name in before)


def test_flux_takes_an_ordinary_lora_beside_codes(flux):
    fresh, models, weights, _ = flux
    pipe = fresh(models["codes"])
    pipe.load_lora_weights({k: v for k, v in weights.items() if "x_embedder" not in k})
    assert pipe.get_active_adapters() == ["default_0"]
    assert not any(n.endswith("attn.to_q.weight") for n in pipe.transformer.state_dict())


def test_a_control_lora_for_a_quantized_layer_changes_nothing(flux):
    fresh, models, weights, _ = flux
    recipe = tdq.Recipe(weights=8, scale="dynamic", edges=8)
    pipe = fresh(tdq.freeze(tdq.quantize(copy.deepcopy(models["float"]), recipe)))
    before = dict(pipe.transformer.named_modules())
    with pytest.raises(ConversionError, match=r"Recipe\(exclude=\['x_embedder'\]\)"):
        pipe.load_lora_weights(weights)
    assert dict(pipe.transformer.named_modules()) == before
    assert pipe.transformer.config.in_channels == models["float"].config.in_channels
