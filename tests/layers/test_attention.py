import copy

import pytest
import torch

import tdquant as tdq
from tdquant.errors import ConversionError
from tdquant.layers.attention import OPERANDS, QuantAttention
from tests.denoisers import Mixed

diffusers = pytest.importorskip("diffusers")
from diffusers.models.attention_processor import Attention, AttnProcessor2_0  # noqa: E402


def float_processor():
    return QuantAttention({name: torch.nn.Identity() for name in OPERANDS})


@pytest.mark.parametrize(
    ("options", "context"),
    [
        ({"heads": 2, "dim_head": 4}, None),
        ({"heads": 2, "dim_head": 4, "norm_num_groups": 4, "residual_connection": True}, None),
        ({"heads": 4, "dim_head": 2, "cross_attention_dim": 6}, (2, 5, 6)),
        ({"heads": 2, "dim_head": 4, "qk_norm": "layer_norm", "rescale_output_factor": 2.0}, None),
    ],
)
def test_in_float_it_is_diffusers_own_attention(options, context):
    torch.manual_seed(0)
    block = Attention(query_dim=8, processor=AttnProcessor2_0(), **options).eval()
    x = torch.randn(2, 9, 8)
    context = None if context is None else torch.randn(context)
    expected = block(x, encoder_hidden_states=context)
    block.set_processor(float_processor())
    assert torch.allclose(block(x, encoder_hidden_states=context), expected, atol=1e-6)


def test_spatial_input_and_mask():
    block = Attention(query_dim=8, heads=2, dim_head=4, processor=AttnProcessor2_0()).eval()
    image, x = torch.randn(2, 8, 3, 3), torch.randn(2, 9, 8)
    mask = torch.zeros(2, 1, 9)
    mask[:, :, 5:] = -1e4
    expected = block(image), block(x, attention_mask=mask)
    block.set_processor(float_processor())
    assert torch.allclose(block(image), expected[0], atol=1e-6)
    assert torch.allclose(block(x, attention_mask=mask), expected[1], atol=1e-6)


@pytest.fixture(scope="module")
def attended():
    pipe = tdq.models.load_embedded("tiny")
    model = tdq.quantize(
        copy.deepcopy(pipe.unet),
        tdq.Recipe(weights=32, activations=8, attention=8, scale="temporal"),
    )
    calls = tdq.trajectories(pipe.unet, pipe.scheduler, 4, pipe.shape, steps=6, batch=4)
    tdq.calibrate(model, calls, progress=False)
    steps = list(calls)
    x = torch.cat([steps[i][0][:1] for i in (0, 2, 5)])
    t = torch.stack([steps[i][1] for i in (0, 2, 5)])
    return pipe, model, x, t


def test_products_are_quantized_calibrated_and_frozen(attended):
    pipe, model, x, t = attended
    rows = {row.path: row for row in tdq.summary(model)}
    prefix = "unet.mid_block.attentions.0.processor"
    assert all(rows[f"{prefix}.{name}"].input_bits == 8 for name in OPERANDS)
    assert rows[f"{prefix}.probability"].zero_point == 0  # softmax is never negative
    with torch.no_grad():
        exact, found, frozen = pipe.unet(x, t), model(x, t), tdq.freeze(model)(x, t)
        one = torch.cat([model(x[i : i + 1], t[i]) for i in range(3)])
    assert 0 < (found - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert torch.allclose(frozen, found, rtol=1e-4, atol=1e-5)
    assert torch.allclose(one, found, atol=1e-5)


def test_saved_and_loaded(attended, tmp_path):
    _, model, x, t = attended
    frozen = tdq.freeze(model)
    again = tdq.load(tdq.save(frozen, tmp_path / "m"))
    assert torch.equal(again(x, t), frozen(x, t))


def test_a_model_without_attention_blocks():
    with pytest.raises(ConversionError, match="attention"):
        tdq.quantize(Mixed(), tdq.Recipe(attention=8))
