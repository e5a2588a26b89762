"""Weights that come one at a time become the codes that ``quantize`` and ``freeze`` give."""

import pytest
import torch

import tdquant as tdq
from tdquant.errors import ConversionError, RecipeError, StorageError
from tdquant.quantizers import CodedWeight
from tdquant.storage.incremental import awaiting, code_weight, complete, quantize_empty
from tests.denoisers import Mixed, Wide, calls
from tests.live import LiveBytes

RECIPES = [
    {"weights": 4, "scale": "static"},
    {"weights": 2, "activations": 32},
    {"weights": 8, "granularity": "tensor", "grid": "symmetric", "scale": "temporal"},
    {"weights": 12, "activations": 8, "scale": "dynamic", "edges": 6},
    {"weights": 5, "scale": "static", "remedies": ("groups",), "group": 16},
    {"weights": 4, "activations": 32, "overrides": {"linear": {"weights": 32}}},
]


def empty_like(model):
    return type(model)().to(model.conv_in.weight.dtype).to("meta")


def fill(model, state):
    """Hands the weights over, in an order that is not the model's."""
    places = awaiting(model)
    for name in sorted(places, reverse=True):
        code_weight(places[name], state.pop(name), name.removesuffix(".weight"))
    model.load_state_dict(state, strict=False, assign=True)
    return complete(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", RECIPES)
def test_as_quantized_whole(options, dtype):
    if dtype == torch.bfloat16 and options["weights"] > 8:
        pytest.skip("its numbers are too coarse for these codes")
    recipe = tdq.Recipe(**options)
    whole = Mixed().to(dtype)
    empty = quantize_empty(empty_like(whole), recipe)
    model = fill(empty, dict(whole.state_dict()))
    tdq.quantize(whole, recipe)
    coded = {n for n, m in model.named_modules() if isinstance(m, CodedWeight)}
    assert coded == {
        n
        for n, m in whole.named_modules()
        if n.endswith("weight_quantizer") and hasattr(m, "grid")
    }
    some = [(x.to(dtype), t) for x, t in calls()]
    if options.get("activations", 8) != 32:
        # The weights of one are rounded while it is observed, and those of the other are not: the
        # scales differ, and are put on the other for the comparison.
        assert not tdq.is_frozen(model) or options["scale"] == "dynamic"
        for live in (whole, model):
            tdq.calibrate(live, some, estimator="minmax", split=False, progress=False)
        for name, module in whole.named_modules():
            if name.endswith("input_quantizer"):
                model.set_submodule(name, module)
                module.clock = model.tdq.clock
        frozen = tdq.freeze(model)
        for name, module in model.named_modules():
            if name.endswith("input_quantizer"):
                module.clock = whole.tdq.clock
    else:
        assert tdq.is_frozen(model)
        frozen = tdq.freeze(model)
    expected = tdq.freeze(whole)
    for x, t in some:
        assert torch.equal(frozen(x, t), expected(x, t))
    assert str(tdq.summary(frozen)) == str(tdq.summary(expected))


def test_saved_and_loaded(tmp_path):
    whole = Mixed()
    model = quantize_empty(empty_like(whole), tdq.Recipe(weights=4, scale="temporal"))
    fill(model, dict(whole.state_dict()))
    tdq.calibrate(model, calls(), estimator="minmax", progress=False)
    frozen = tdq.freeze(model)
    back = tdq.load(tdq.save(frozen, tmp_path / "m"), model=Mixed(seed=5))
    for x, t in calls():
        assert torch.equal(back(x, t), frozen(x, t))


def test_live_scales_of_coded_weights_learn():
    whole = Mixed()
    model = quantize_empty(empty_like(whole), tdq.Recipe(weights=4, scale="temporal"))
    fill(model, dict(whole.state_dict()))
    tdq.calibrate(model, calls(), estimator="minmax", progress=False)
    x, t = next(iter(calls()))
    model(x, t).square().sum().backward()
    learned = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("input_quantizer" in name for name in learned)
    assert "linear.bias" in learned
    assert "linear.weight" not in learned


def test_no_weight_is_held_in_float():
    state = Wide(width=256, depth=32).state_dict()
    weight = 256 * 256 * 4
    recipe = tdq.Recipe(weights=4, activations=32, edges=4)
    model = quantize_empty(Wide(width=256, depth=32).to("meta"), recipe)
    with LiveBytes() as live:
        fill(model, dict(state))
    assert 8 * weight < live.peak < 12 * weight  # codes take a quarter of 32


@pytest.mark.parametrize(
    ("value", "match"), [(float("nan"), "1 weights are NaN"), (0.0, "all weights are zero")]
)
def test_unusable_weights_are_named(value, match):
    model = quantize_empty(empty_like(Mixed()), tdq.Recipe(weights=4, activations=32))
    weight = torch.zeros(12, 12)
    weight[3, 4] = value
    with pytest.raises(ConversionError, match=match) as info:
        code_weight(awaiting(model)["linear.weight"], weight, "linear")
    assert info.value.where == "linear"


def test_weights_that_did_not_come():
    model = quantize_empty(empty_like(Mixed()), tdq.Recipe(weights=4, activations=32))
    code_weight(awaiting(model)["linear.weight"], torch.randn(12, 12), "linear")
    assert "linear.weight" not in awaiting(model)
    with pytest.raises(StorageError, match="weights are not in the checkpoint") as info:
        complete(model)
    assert "linear" not in info.value.where
    assert "sequence.weight" in info.value.where


def test_published_quantizers_start_from_float_weights():
    with pytest.raises(RecipeError, match="published"):
        quantize_empty(empty_like(Mixed()), tdq.Recipe.published())
