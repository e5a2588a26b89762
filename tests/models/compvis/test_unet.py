import pytest
import torch

import tdquant as tdq
from tdquant.errors import ModelError
from tdquant.families import family_of
from tdquant.models import UNetModel
from tdquant.quantizers import activation_quantizers
from tdquant.scales import TemporalScale
from tests.models.compvis.emulation import UNet
from tests.models.compvis.examples import BASE, CASES, case, inputs, randomize


def build(config, seed=0):
    model = UNetModel(**config).eval()
    model.load_state_dict(randomize(model.state_dict(), seed))
    return model


@pytest.mark.parametrize("name", CASES)
def test_equals_the_published_arithmetic(name):
    config = case(name)
    model = build(config)
    x, t, context, y = inputs(config)
    with torch.no_grad():
        found = model(x, t, context, y)
        expected = UNet(config, model.state_dict())(x, t, context, y)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_names_of_published_checkpoints():
    learned = set(build(case("plain")).state_dict())
    residual = set(build(case("residual resampling")).state_dict())
    context = set(build(case("context")).state_dict())
    assert {
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "input_blocks.2.0.op.weight",
        "input_blocks.3.1.qkv.weight",
        "input_blocks.3.0.skip_connection.bias",
        "middle_block.1.proj_out.weight",
        "output_blocks.1.2.conv.weight",
        "out.2.weight",
    } <= learned
    assert "input_blocks.2.0.in_layers.2.weight" in residual
    assert not any("_upd" in name or ".op." in name for name in residual)
    block = "input_blocks.3.1.transformer_blocks.1."
    assert {block + "attn2.to_k.weight", block + "ff.net.0.proj.weight"} <= context
    assert "label_emb.weight" in build(case("classes")).state_dict()
    assert "id_predictor.1.weight" in build(case("codebook entries")).state_dict()


def test_starts_as_published_models_do():
    # Residual branches and the output are zero: the prediction is, too.
    x, t, *_ = inputs(BASE)
    assert not UNetModel(**BASE)(x, t).any()


@pytest.mark.parametrize("t", [7, 7.0, torch.tensor(7), torch.tensor([7])])
def test_forms_of_a_timestep(t):
    model, (x, *_) = build(BASE), inputs(BASE)
    with torch.no_grad():
        assert torch.equal(model(x, t), model(x, torch.tensor([7, 7, 7])))


def test_half_precision():
    model, (x, t, *_) = build(BASE), inputs(BASE)
    with torch.no_grad():
        full, half = model(x, t), model.bfloat16()(x.bfloat16(), t)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().max() < 0.1 * full.abs().max()


MISTAKES = {
    "no heads at all": ({"num_heads": -1}, "both -1"),
    "a transformer without context": ({"use_spatial_transformer": True}, "without context_dim"),
    "context for nothing": ({"context_dim": 8}, "without use_spatial_transformer"),
    "three dimensions": ({"dims": 3}, "dims=3"),
    "odd width": ({"model_channels": 40}, "multiple of 32"),
    "wide first level": ({"channel_mult": [2, 2]}, "first must be 1"),
    "indivisible heads": ({"num_heads": 5}, "not 5 heads"),
    "heads of no width": ({"num_heads": 0}, "positive, or -1"),
    "wide heads": ({"num_head_channels": 128}, "wider heads"),
    "no blocks": ({"num_res_blocks": 0}, "at least 1"),
    "a transformer on a line": (
        {"use_spatial_transformer": True, "context_dim": 8, "dims": 1},
        "with dims=1",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_contradictory_options(name):
    options, match = MISTAKES[name]
    with pytest.raises(ModelError, match=match):
        UNetModel(**{**BASE, **options})


def test_all_mistakes_are_listed():
    with pytest.raises(ModelError, match=r"3 mistakes(.|\n)*dims=4(.|\n)*33: a multi(.|\n)*both"):
        UNetModel(**{**BASE, "dims": 4, "model_channels": 33, "num_heads": -1})


def test_classes_are_given_to_whom_they_belong():
    x, t, _, y = inputs(case("classes"))
    with pytest.raises(ModelError, match="classes are missing"):
        build(case("classes"))(x, t)
    with pytest.raises(ModelError, match="classes for a model that has none"):
        build(BASE)(x, t, None, y)


def test_a_context_that_is_missing_or_of_another_width():
    config = case("context")
    model, (x, t, context, _) = build(config), inputs(config)
    with pytest.raises(ModelError, match="not 24"):
        model(x, t)
    with pytest.raises(ModelError, match="width 7, not 24"):
        model(x, t, context[..., :7])


@pytest.mark.parametrize("name", ["plain", "context"])
def test_recomputing_gives_the_same_gradients(name):
    config = case(name)
    x, t, context, _ = inputs(config)
    grads = []
    for recompute in (False, True):
        model = build({**config, "use_checkpoint": recompute}).train()
        model(x, t, context).square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_recomputing_a_quantized_model_sees_its_timesteps():
    x, t, *_ = inputs(BASE)
    grads = []
    for recompute in (False, True):
        model = build({**BASE, "use_checkpoint": recompute})
        tdq.quantize(model, tdq.Recipe(scale="temporal"))
        torch.manual_seed(0)
        for _, quantizer in activation_quantizers(model):
            quantizer.scale = TemporalScale(0.05)
        model.train()
        model(x, t).square().mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    assert any("scale.network" in name for name in grads[0])
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name


def test_family_and_recipe():
    model = build(BASE)
    assert family_of(model).name == "compvis-unet"
    tdq.quantize(model, tdq.Recipe(weights=4))
    bits = {row.path: row.weight_bits for row in tdq.summary(model)}
    assert bits["input_blocks.0.0"] == bits["out.2"] == 32
    assert bits["time_embed.0"] == bits["middle_block.0.emb_layers.1"] == 5
    assert bits["middle_block.1.qkv"] == bits["middle_block.0.in_layers.2"] == 4


def test_saved_and_rebuilt_from_its_options(tmp_path):
    model, (x, t, *_) = build(BASE), inputs(BASE)
    tdq.quantize(model, tdq.Recipe(weights=4, scale="dynamic"))
    frozen = tdq.freeze(model)
    again = tdq.load(tdq.save(frozen, tmp_path / "m"))
    assert isinstance(again, UNetModel)
    with torch.no_grad():
        assert torch.equal(again(x, t), frozen(x, t))
