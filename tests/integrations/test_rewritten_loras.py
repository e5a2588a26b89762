"""LoRA by the loaders of diffusers on a UNet whose layers calibration rewrote."""

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import tdquant as tdq
from tdquant.errors import ConversionError
from tdquant.layers import (
    BalancedLayer,
    RotatedLayer,
    StructuredLayer,
    quantized_layers,
    replace_module,
    structured_layers,
)
from tests.pipelines import PIPELINES, sample
from tests.unet_states import out

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_shortcut", "proj", "net.2"]
KINDS = {"split", "balance", "rotation"}


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a LoRA and a saved pipeline, the live model, calls, and arguments."""
    folder = tmp_path_factory.mktemp("rewritten")
    pipe, call = PIPELINES["stable_diffusion_1"]()
    calls = list(tdq.trajectories(pipe, ["a cat"], steps=4, height=8, width=8, progress=False))
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=TARGETS))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in pipe.unet.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2, generator=rng)
    weights = get_peft_model_state_dict(pipe.unet)
    StableDiffusionPipeline.save_lora_weights(folder / "lora", unet_lora_layers=weights)
    pipe.unet.unload_lora()
    live = tdq.quantize(pipe.unet, tdq.Recipe(weights=4, activations=4))
    tdq.calibrate(live, calls, progress=False)
    rewrite(live)
    pipe.unet = tdq.freeze(live)
    pipe.save_pretrained(folder / "pipe")
    return folder, live, calls, call | {"num_inference_steps": 2}


def rewrite(model):
    """Rotates and balances layers that calibration left as they are, in place: which ones it
    chooses itself is a matter of trials.
    """
    for path, layer in list(quantized_layers(model)):
        if path.endswith(".net.2"):
            replace_module(model, layer, RotatedLayer.from_quantized(layer))
        elif path.endswith(".to_k"):
            c = torch.linspace(0.5, 1, layer.in_features)
            replace_module(model, layer, BalancedLayer.from_quantized(layer, c))


def rewritten(model):
    """Rewritten layers that the LoRA is for, by path."""
    found = dict(structured_layers(model))
    return {p: m for p, m in found.items() if p.endswith(tuple(f".{t}" for t in TARGETS))}


@pytest.mark.filterwarnings("ignore:rounding keeps")
def test_loaded_scaled_fused_and_unloaded(made, tmp_path):
    folder, _, calls, call = made
    pipe = DiffusionPipeline.from_pretrained(folder / "pipe", safety_checker=None)
    unet, before = pipe.unet, sample(pipe, call)
    layers, state = rewritten(unet), {k: v.clone() for k, v in unet.state_dict().items()}
    assert {layer.structure for layer in layers.values()} == KINDS
    pipe.load_lora_weights(folder / "lora", adapter_name="a")
    assert all(unet.get_submodule(path).base_layer is layer for path, layer in layers.items())
    beside = sample(pipe, call)
    assert distance(beside, before) > 1e-2
    pipe.load_lora_weights(folder / "lora", adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.25, 0.75])
    assert distance(sample(pipe, call), beside) < 1e-3
    pipe.delete_adapters("b")
    pipe.set_adapters("a")
    assert torch.equal(sample(pipe, call), beside)
    pipe.disable_lora()
    assert torch.equal(sample(pipe, call), before)
    pipe.enable_lora()
    fast, exact = tdq.compile(unet, "reference"), out(unet, calls[0])
    assert distance(out(fast, calls[0]), exact) < 1e-3
    pipe.fuse_lora()
    fused = sample(pipe, call)
    assert not torch.equal(fused, before)
    pipe.unfuse_lora()
    assert torch.equal(sample(pipe, call), beside)
    pipe.unload_lora_weights()
    assert all(unet.get_submodule(path) is layer for path, layer in layers.items())
    now = unet.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(now[name], state[name]) for name in state)
    assert torch.equal(sample(pipe, call), before)

    pipe.load_lora_weights(folder / "lora")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert torch.equal(sample(pipe, call), fused)
    pipe.save_pretrained(tmp_path / "fused")
    again = DiffusionPipeline.from_pretrained(tmp_path / "fused", safety_checker=None)
    assert torch.equal(sample(again, call), fused)


def test_a_live_model_with_an_adapter_is_not_calibrated_again(made):
    _, live, calls, _ = made
    live.add_adapter(LoraConfig(r=2, target_modules=TARGETS))
    before = dict(live.named_modules())
    with pytest.raises(ConversionError, match="unload_lora_weights"):
        tdq.calibrate(live, calls, progress=False)
    assert dict(live.named_modules()) == before
    live.unload_lora()
    assert not any(path.endswith("base_layer") for path in dict(live.named_modules()))
    assert any(isinstance(module, StructuredLayer) for module in live.modules())
