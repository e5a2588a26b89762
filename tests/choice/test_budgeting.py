"""Budgets of size and time, and the record of what came of them."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.choice import budgeting
from tdquant.choice.size import float_bytes, saved_bytes
from tdquant.choice.time import layer_macs
from tdquant.errors import ConversionError, RecipeError
from tdquant.layers import LowRankLayer, SplitLayer, quantized_layers, replace_module
from tdquant.recipe import FLOAT
from tests.denoisers import Mixed, Video, Wide, calls

EVERYTHING = ("groups", "rotation", "factors", "protection", "rounding", "correction")


def wide():
    return Wide(width=64, depth=6).eval()


def rows(count=6, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 64, generator=rng), torch.tensor(i * 180)) for i in range(count)]


def budgeted(model=None, batches=None, recipe=None, **budget):
    usual = {"weights": 4, "scale": "static", "edges": 8, "remedies": ("groups",)}
    model = tdq.quantize(model or wide(), tdq.Recipe(**usual | (recipe or {})))
    batches = rows() if batches is None else batches
    return tdq.calibrate(model, batches, budget=tdq.Budget(**budget), progress=False)


def share(model, folder):
    file = tdq.save(tdq.freeze(model), folder) / "model.safetensors"
    return file.stat().st_size / (4 * 6 * 64 * 64)


def bits(model):
    return {path: layer.weight_quantizer.grid.bits for path, layer in quantized_layers(model)}


def error(model):
    exact = wide()
    with torch.no_grad():
        return sum(float((model(*c) - exact(*c)).square().mean()) for c in rows(4, seed=3))


@pytest.mark.parametrize(
    "recipe",
    [
        {"scale": "table", "remedies": EVERYTHING},
        {"scale": "static", "edges": 8, "granularity": "tensor", "remedies": ()},
        {"scale": "dynamic", "weights": 3, "remedies": ("groups",)},
        {"weights": FLOAT, "remedies": ("correction",)},
    ],
)
def test_bytes_are_those_of_the_file(recipe, tmp_path):
    model = tdq.quantize(Mixed().eval(), tdq.Recipe(**{"weights": 5, "activations": 5, **recipe}))
    assert float_bytes(model) == 4 * sum(p.numel() for p in Mixed().parameters())
    batches = [(40 * x, t) for x, t in calls(4)]
    tdq.calibrate(model, batches, progress=False)
    file = tdq.save(tdq.freeze(model), tmp_path / "model") / "model.safetensors"
    assert saved_bytes(model) == file.stat().st_size


def test_sizes_are_kept_and_used(tmp_path):
    errors = []
    for size in (0.195, 0.21, 0.24, 0.4):
        model = budgeted(size=size)
        found = share(model, tmp_path / "model")
        assert found <= size
        assert found > 0.93 * size or set(bits(model).values()) == {8}
        assert model.tdq.remedies.size == pytest.approx(found, abs=1e-6)
        (trial,) = model.tdq.calibration.remedies
        assert (trial.name, trial.kept) == ("bits", True)
        errors.append(error(model))
    assert errors == sorted(errors, reverse=True)
    assert bits(model) == dict.fromkeys(bits(model), 8)


def test_bits_go_where_they_help_most():
    model = wide()
    with torch.no_grad():
        model.layers[2].weight.mul_(8)
    found = bits(budgeted(model, size=0.23))
    others = [found[f"layers.{i}"] for i in (1, 3, 4)]
    assert found["layers.2"] > min(others)
    assert found["layers.0"] == found["layers.5"] == 8  # edges


def test_bytes_that_no_factors_need_go_to_weights(monkeypatch):
    recipe = {"remedies": ("groups", "factors")}
    model = budgeted(recipe=recipe, size=0.22)
    bits_first, *_, spent = model.tdq.calibration.remedies
    assert (bits_first.name, spent.name, spent.kept) == ("bits", "spare bytes", True)
    assert spent.after < spent.before
    monkeypatch.setattr(budgeting, "spend_rest", lambda *args: [])
    saving = budgeted(recipe=recipe, size=0.22)
    assert all(bits(model)[path] >= found for path, found in bits(saving).items())
    assert saved_bytes(saving) < saved_bytes(model) <= 0.22 * float_bytes(model)
    assert error(model) < error(saving)


def test_bits_that_the_recipe_sets_are_left_alone(tmp_path):
    recipe = {"overrides": {"layers.1": {"weights": 6}}, "exclude": ("layers.2",)}
    model = budgeted(recipe=recipe, size=0.38)
    assert bits(model)["layers.1"] == 6
    assert type(model.layers[2]) is nn.Linear
    assert share(model, tmp_path / "model") <= 0.38


def test_more_than_there_is_to_choose():
    model = budgeted(recipe={"overrides": {"*": {"weights": 5}}}, size=0.5)
    (trial,) = model.tdq.calibration.remedies
    assert "none is free" in trial.what
    assert set(bits(model).values()) == {5}


def test_branches_keep_their_bits():
    model = tdq.quantize(wide(), tdq.Recipe(4, 8, "static", edges=8, remedies=("groups",)))
    replace_module(model, model.layers[2], LowRankLayer.from_quantized(model.layers[2], rank=2))
    tdq.calibrate(model, rows(), budget=tdq.Budget(size=0.25), progress=False)
    found = bits(model)
    assert found["layers.2.down"] == found["layers.2.up"] == 8
    assert found["layers.2.layer"] in (3, 4, 5, 6, 8)
    assert saved_bytes(model) <= 0.25 * float_bytes(model)


def test_groups_come_and_go_with_the_bits(tmp_path):
    model = budgeted(recipe={"weights": 8}, size=0.2)
    assert min(bits(model).values()) < 8
    assert 0.93 * 0.2 < share(model, tmp_path / "model") <= 0.2
    wider = tdq.calibrate(model, rows(), budget=tdq.Budget(size=0.5), progress=False)
    assert set(bits(wider).values()) == {8}
    assert not any(layer.weight_quantizer.group for _, layer in quantized_layers(wider))


def test_parts_of_a_layer_get_the_same_bits():
    model = budgeted(Video().eval(), list(calls(6, shape=(4, 3, 6, 6))), {}, size=0.85)
    parts = [found for path, found in bits(model).items() if path.startswith("both.parts.")]
    assert len(parts) == 2
    assert len(set(parts)) == 1
    assert saved_bytes(model) <= 0.85 * float_bytes(model)


@pytest.mark.parametrize(
    ("budget", "recipe", "said"),
    [
        ({"size": 0.1}, {}, ["size=0.1 cannot be met", "edges=8 (layers.0", "weights of 3 bits"]),
        ({"size": 0.2}, {"exclude": ("layers.3",)}, ["left in float (layers.3)"]),
        ({"size": 0.2}, {"weights": FLOAT, "edges": 8}, ["weights=32 (layers.1"]),
        ({"size": 0.2}, {"scale": "temporal"}, ["tables of scales"]),
        (
            {"size": 0.2},
            {"overrides": {"layers.4": {"weights": 16}}},
            ["overrides of the recipe (layers.4)"],
        ),
        ({"time": 0.33}, {}, ["least is 0.333", "in 8 bits or fewer"]),
        ({"time": 0.4}, {"edges": FLOAT}, ["least is 0.556", "edges=32 (layers.0, layers.5)"]),
        ({"time": 0.5}, {"activations": FLOAT}, ["least is 1.000", "activations=32"]),
        ({"time": 0.4}, {"overrides": {"layers.2": {"activations": 16}}}, ["overrides of the"]),
    ],
)
def test_budgets_that_cannot_be_met(budget, recipe, said):
    made = {"weights": 4, "activations": 8, "scale": "static", "edges": 8} | recipe
    model = tdq.quantize(wide(), tdq.Recipe(**made))
    before = copy.deepcopy(model)
    with pytest.raises(RecipeError) as caught:
        tdq.calibrate(model, rows(2), budget=tdq.Budget(**budget), progress=False)
    for words in said:
        assert words in str(caught.value)
    assert str(tdq.summary(model)) == str(tdq.summary(before))
    assert model.tdq.calibration is None
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in model.state_dict().items())


def test_what_an_error_says_can_be_met(tmp_path):
    with pytest.raises(RecipeError) as caught:
        budgeted(size=0.01)
    least = float(caught.value.fix.partition(" or more")[0].removeprefix("size="))
    model = budgeted(size=least)
    assert share(model, tmp_path / "model") <= least
    with pytest.raises(RecipeError):
        budgeted(size=least - 0.002)


def test_time_bounds_inputs_in_float():
    recipe = {"remedies": ("protection",)}
    free = budgeted(recipe=recipe, protection=1.0)
    assert free.tdq.remedies.time == pytest.approx(
        1 / 3 + sum(one.cost * 2 / 9 for one in free.tdq.remedies.protected)
    )
    assert free.tdq.remedies.time > 0.5
    model = budgeted(recipe=recipe, protection=1.0, time=0.46)
    assert 1 / 3 < model.tdq.remedies.time <= 0.46
    assert {one.bits for one in model.tdq.remedies.protected} == {FLOAT}


def test_work_is_that_of_layers_and_their_parts():
    batches = [(40 * x, t) for x, t in calls(4)]
    model = tdq.quantize(Mixed().eval(), tdq.Recipe(8, 5, remedies=("factors",)))
    seen = tdq.observe(model, batches, progress=False)
    assert seen.macs["conv_in"] == 12 * 6 * 9 * 64
    assert seen.macs["grouped"] == 12 * 4 * 9 * 16
    tdq.calibrate(model, seen, progress=False)
    replace_module(model, model.reflect, SplitLayer.from_quantized(model.reflect, (4, 8)))
    found = layer_macs(model, seen.macs)
    assert sum(found.values()) == sum(seen.macs.values())
    assert found["reflect.parts.1"] == 2 * found["reflect.parts.0"]
    assert {p for p in found if "quantizer" in p} == set()


def test_published_quantizers_have_no_budget():
    model = tdq.quantize(wide(), tdq.Recipe(4, 4))
    model.tdq.recipe = tdq.Recipe.published(4, 4)
    with pytest.raises(RecipeError, match="published"):
        tdq.calibrate(model, rows(2), budget=tdq.Budget(size=0.5), progress=False)


def test_weights_that_are_elsewhere_have_no_bits_to_choose():
    model = tdq.quantize(wide(), tdq.Recipe(4, 8, "static"))
    model.layers[1]._hf_hook = SimpleNamespace(offload=True)  # as accelerate's
    with pytest.raises(ConversionError, match="budget of size"):
        tdq.calibrate(model, rows(2), budget=tdq.Budget(size=0.5), progress=False)
