"""LoRA adapters on quantized denoisers, by diffusers' and peft's own loaders."""

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import tdquant as tdq
from tdquant.layers import StructuredLayer
from tdquant.quantizers import CodedWeight, FrozenWeight, WeightQuantizer
from tdquant.quantizers.groups import most
from tests.pipelines import PIPELINES, sample

TARGETS = ["to_q", "to_v", "conv1"]
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def recorded(pipe):
    return list(tdq.trajectories(pipe, ["a cat"], steps=4, height=8, width=8, progress=False))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A saved quantized pipeline, its calls, and adapters for the float one."""
    folder = tmp_path_factory.mktemp("lora")
    pipe, call = PIPELINES["stable_diffusion_1"]()
    unet = pipe.unet
    unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3, generator=rng)
    StableDiffusionPipeline.save_lora_weights(
        folder / "lora", unet_lora_layers=get_peft_model_state_dict(unet)
    )
    unet.delete_adapters("default")
    pipe, call = PIPELINES["stable_diffusion_1"]()
    calls = recorded(pipe)
    tdq.quantize(pipe.unet, tdq.Recipe(weights=4, activations=8, remedies=()))
    tdq.calibrate(pipe.unet, calls, progress=False)
    pipe.unet = tdq.freeze(pipe.unet)
    pipe.save_pretrained(folder / "pipe", safe_serialization=True)
    return folder, call


@pytest.fixture
def pipe(made):
    return DiffusionPipeline.from_pretrained(made[0] / "pipe", safety_checker=None)


def test_an_adapter_is_a_float_branch_beside_the_codes(made, pipe):
    folder, call = made
    before = sample(pipe, call)
    base = pipe.unet.get_submodule(LAYER)
    pipe.load_lora_weights(folder / "lora")
    layer = pipe.unet.get_submodule(LAYER)
    assert layer.base_layer is base
    assert isinstance(base.weight_quantizer, CodedWeight)
    x = torch.randn(2, 5, base.in_features)
    down, up = layer.lora_A["default_0"], layer.lora_B["default_0"]
    with torch.no_grad(), pipe.unet.tdq.clock.at(7):
        expected = base(x) + layer.scaling["default_0"] * up(down(x))
        assert torch.equal(layer(x), expected)
    assert not torch.equal(sample(pipe, call), before)
    pipe.unload_lora_weights()
    assert torch.equal(sample(pipe, call), before)
    assert pipe.unet.get_submodule(LAYER) is base


def test_fusing_rounds_anew_and_unfusing_restores(made, pipe):
    folder, call = made
    before = sample(pipe, call)
    pipe.load_lora_weights(folder / "lora")
    beside = sample(pipe, call)
    layer = pipe.unet.get_submodule(LAYER)
    base, delta = layer.base_layer, layer.get_delta_weight("default_0")
    weight = base.weight + delta
    pipe.fuse_lora()
    quantizer = base.weight_quantizer
    codes = quantizer.codes(base.weight)  # raises if the weight is off its grid
    assert isinstance(quantizer, FrozenWeight)
    assert int(codes.abs().max()) <= most(quantizer.grid) * quantizer.grid.qmax
    assert (base.weight - weight).abs().max() <= quantizer.step.max() * (
        0.51 + 0.3 * quantizer.grid.qmax
    )
    error = (base.weight - weight).square().mean() / weight.square().mean()
    assert error < 0.05
    fused = sample(pipe, call)
    assert not torch.equal(fused, before)
    assert (fused - beside).abs().mean() < (before - beside).abs().mean()
    pipe.unfuse_lora()
    assert torch.equal(sample(pipe, call), beside)
    pipe.unload_lora_weights()
    assert torch.equal(sample(pipe, call), before)


def test_a_fused_model_is_saved_and_compiled(made, pipe, tmp_path):
    folder, call = made
    pipe.load_lora_weights(folder / "lora")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    images = sample(pipe, call)
    pipe.save_pretrained(tmp_path / "fused")
    again = DiffusionPipeline.from_pretrained(tmp_path / "fused", safety_checker=None)
    assert torch.equal(sample(again, call), images)
    calls = recorded(again)
    fast = tdq.compile(again.unet, backend="reference")
    with torch.no_grad():
        for one in calls[:2]:
            exact = again.unet(**{**one, "return_dict": True}).sample
            close = fast(**{**one, "return_dict": True}).sample
            # A value at a boundary may round to the other side: a few differ, by a share of a
            # step.
            difference = (close - exact).abs() / exact.abs().max()
            assert difference.median() < 1e-6
            assert difference.max() < 1e-2


def test_scales_of_adapters_and_two_of_them(made, pipe):
    folder, call = made
    pipe.load_lora_weights(folder / "lora", adapter_name="a")
    pipe.load_lora_weights(folder / "lora", adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.5, 0.5])
    half = sample(pipe, call)
    pipe.set_adapters(["a"], [1.0])
    assert torch.allclose(sample(pipe, call), half, atol=1e-4)
    pipe.disable_lora()
    off = sample(pipe, call)
    assert not torch.equal(off, half)
    pipe.enable_lora()
    pipe.fuse_lora(adapter_names=["a"])
    pipe.fuse_lora(adapter_names=["b"])
    pipe.unfuse_lora()
    pipe.disable_lora()
    assert torch.equal(sample(pipe, call), off)


def test_a_live_model_rounds_by_itself(made):
    folder, call = made
    pipe, _ = PIPELINES["stable_diffusion_1"]()
    calls = recorded(pipe)
    tdq.quantize(pipe.unet, tdq.Recipe(weights=4, activations=8, remedies=()))
    tdq.calibrate(pipe.unet, calls, progress=False)
    pipe.load_lora_weights(folder / "lora")
    layer = pipe.unet.get_submodule(LAYER)
    float_weight = layer.base_layer.weight.detach().clone()
    pipe.fuse_lora()
    assert isinstance(layer.base_layer.weight_quantizer, WeightQuantizer)
    added = float_weight + layer.get_delta_weight("default_0")
    assert torch.allclose(layer.base_layer.weight, added)
    pipe.unload_lora_weights()
    pipe.unet = tdq.freeze(pipe.unet)
    assert sample(pipe, call).isfinite().all()


def test_training_an_adapter_leaves_the_codes_alone(pipe):
    calls = recorded(pipe)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=TARGETS))
    codes = {n: p.clone() for n, p in pipe.unet.named_parameters() if not p.is_floating_point()}
    trained = [p for p in pipe.unet.parameters() if p.requires_grad]
    assert trained
    optimizer = torch.optim.Adam(trained, lr=0.05)
    losses = []
    for _ in range(4):
        out = pipe.unet(**{**calls[0], "return_dict": True}).sample
        loss = out.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    after = dict(pipe.unet.named_parameters())
    assert all(torch.equal(after[n], v) for n, v in codes.items())


def test_dora_reads_numbers_and_not_codes(pipe):
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], use_dora=True))
    base = pipe.unet.get_submodule(LAYER).base_layer
    assert base.weight.is_floating_point()
    magnitude = pipe.unet.get_submodule(LAYER).lora_magnitude_vector["default"].weight
    assert torch.allclose(magnitude, base.weight.norm(dim=1), rtol=1e-5)


def test_adapters_of_another_architecture(made, pipe, tmp_path):
    _, call = made
    before = sample(pipe, call)
    foreign = {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (40, 40)}
    layers = {}
    for path, (out, into) in foreign.items():
        layers[f"{path}.lora_A.weight"] = torch.randn(4, into)
        layers[f"{path}.lora_B.weight"] = torch.randn(out, 4)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    with pytest.raises(RuntimeError, match="size mismatch"):
        pipe.load_lora_weights(tmp_path)
    pipe.unload_lora_weights()
    assert torch.equal(sample(pipe, call), before)


def test_an_adapter_of_a_split_layer(pipe):
    split = {n: m for n, m in pipe.unet.named_modules() if isinstance(m, StructuredLayer)}
    (path, layer), *_ = [(n, m) for n, m in split.items() if n.endswith("conv_shortcut")]
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["conv_shortcut"]))
    assert pipe.unet.get_submodule(path).base_layer is layer
    pipe.unet.delete_adapters("default")
    pipe.unet.unload_lora()
    assert pipe.unet.get_submodule(path) is layer
