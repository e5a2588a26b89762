"""Attention processors that hold quantizers, and casting layer by layer: what would lose
quantizers or grids in silence is refused, and changes nothing.
"""

import copy

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

import tdquant as tdq
from tdquant.errors import ConversionError
from tests.pipelines import PIPELINES

BLOCK = "mid_block.attentions.0.transformer_blocks.0.attn1"
REPLACE = {
    "all": lambda pipe: pipe.unet.set_attn_processor(AttnProcessor2_0()),
    "one": lambda pipe: pipe.unet.get_submodule(BLOCK).set_processor(AttnProcessor2_0()),
    "slices": lambda pipe: pipe.enable_attention_slicing(),
    "slices of the UNet": lambda pipe: pipe.unet.set_attention_slice("max"),
}


@pytest.fixture(scope="module")
def made():
    """A pipeline, and live and frozen UNets with quantized attention."""
    pipe, _ = PIPELINES["stable_diffusion_1"]()
    live = tdq.quantize(copy.deepcopy(pipe.unet), tdq.Recipe(scale="dynamic", attention=8))
    return pipe, {"float": pipe.unet, "live": live, "frozen": tdq.freeze(live)}


@pytest.mark.parametrize("state", ["live", "frozen"])
@pytest.mark.parametrize("how", REPLACE)
def test_quantized_processors_stay(made, how, state):
    pipe, unets = made
    pipe = copy.copy(pipe)
    pipe.unet = unets[state]
    before = pipe.unet.attn_processors
    of_vae = pipe.vae.attn_processors
    with pytest.raises(ConversionError, match=r"Recipe\(attention=32\)"):
        REPLACE[how](pipe)
    assert pipe.unet.attn_processors == before
    assert pipe.vae.attn_processors == of_vae


def test_others_are_replaced(made):
    pipe = copy.copy(made[0])
    pipe.unet = copy.deepcopy(made[1]["float"])
    pipe.enable_attention_slicing()
    assert {type(p).__name__ for p in pipe.unet.attn_processors.values()} == {
        "SlicedAttnProcessor"
    }


@pytest.mark.parametrize("state", ["live", "frozen"])
def test_a_quantized_model_is_not_cast_layer_by_layer(made, state):
    model = made[1][state]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConversionError, match="holds codes"):
        model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
