import itertools
import math
from dataclasses import replace

import pytest
import torch

import tdquant as tdq
from tdquant.errors import CalibrationError, RecipeError
from tdquant.layers import quantized_layers
from tdquant.refine.search import search, sensitivity
from tests.refine.search.test_sensitivity import Fragile, batches, difference, fragile


@pytest.fixture(scope="module")
def measured():
    model = fragile(weights=4, activations=8, edges=8, remedies=())
    return sensitivity(model, batches(), progress=False)


def test_multipliers_of_groups_count_in_the_budget(measured):
    layers = {p: f.model_copy(update={"columns": 64}) for p, f in measured.layers.items()}
    base = tdq.Recipe(weights=4, edges=8, remedies=("groups",), group=16)
    measured = replace(measured, layers=layers)
    found = search(measured, target_bits=4.25, base=base)
    plain = search(measured, target_bits=4.25)
    assert found.error > plain.error
    overhead = {2: 5, 3: 5, 4: 4, 5: 3, 6: 2, 8: 0}
    size = sum(layers[p].weights * (b + overhead[b] / 16) for p, b in found.weights.items())
    assert found.bits == pytest.approx(size / sum(layers[p].weights for p in found.weights))
    assert found.bits <= 4.25
    assert [bits for bits, _ in found.uniform] == [b + n / 16 for b, n in overhead.items()]


def average(weights, measured):
    total = sum(measured.layers[p].weights for p in weights)
    return sum(measured.layers[p].weights * b for p, b in weights.items()) / total


def test_the_budget_is_kept_and_used_where_it_matters(measured):
    found = search(measured, target_bits=4)
    assert set(found.weights) == {f"blocks.{i}" for i in range(5)}
    assert found.bits == pytest.approx(average(found.weights, measured))
    assert 3.5 < found.bits <= 4
    assert found.weights["blocks.2"] == max(found.weights.values()) > 4
    assert found.error < 0.5 * dict(found.uniform)[4.0]
    assert f"{found.bits:.2f} bits on average" in str(found)


def test_the_searched_model_is_better_than_the_uniform_one_of_the_same_size(measured):
    errors = {}
    uniform = tdq.Recipe(weights=4, activations=8, edges=8, scale="static")
    searched = search(measured, target_bits=4, base=uniform).recipe
    for name, recipe in (("uniform", uniform), ("searched", searched)):
        model = tdq.quantize(Fragile().eval(), recipe)
        tdq.calibrate(model, batches(), estimator="minmax", progress=False)
        errors[name] = difference(model)
    assert errors["searched"] < 0.6 * errors["uniform"]


def test_more_bits_are_never_predicted_worse(measured):
    errors = [search(measured, target_bits=2 + i / 7).error for i in range(43)]
    assert errors == sorted(errors, reverse=True)
    curve = search(measured, target_bits=4).curve
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(curve))


def test_a_budget_of_error_gives_the_smallest_model(measured):
    curve = search(measured, target_bits=8).curve
    for bits, error in curve[::7]:
        found = search(measured, max_error=error * (1 + 1e-9))
        assert found.bits == pytest.approx(bits)
        assert found.error <= error * (1 + 1e-6)


def test_deterministic(measured):
    assert search(measured, target_bits=3.3) == search(measured, target_bits=3.3)


def test_the_recipe_says_what_the_search_says(measured):
    found = search(measured, target_bits=4, target_activation_bits=5)
    model = tdq.quantize(Fragile(), found.recipe)
    layers = dict(quantized_layers(model))
    for path, bits in found.weights.items():
        assert layers[path].weight_quantizer.grid.bits == bits
    for path, (bits, kind) in found.activations.items():
        assert layers[path].input_quantizer.grid.bits == bits
        assert layers[path].input_quantizer.wanted == kind
    assert layers["conv_in"].weight_quantizer.grid.bits == 8
    assert set(found.activations) == set(found.weights)
    assert 4 < found.activation_bits <= 5
    assert "inputs of" in str(found)
    bits = [b for b, _ in found.activation_curve]
    assert bits[0] == 2
    assert bits[-1] == 8
    assert dict(found.activation_curve)[found.activation_bits] == pytest.approx(found.error)
    assert tdq.Recipe.from_dict(found.recipe.to_dict()) == found.recipe


def test_scales_are_assigned_only_where_the_base_leaves_them_open(measured):
    kinds = {kind for _, kind in search(measured, target_bits=4).activations.values()}
    assert kinds <= {"static", "temporal"}
    static = search(measured, target_bits=4, base=tdq.Recipe(weights=4, scale="static"))
    assert {kind for _, kind in static.activations.values()} == {"static"}
    assert not any("scale" in o for o in static.recipe.overrides.values())


def test_edges_are_searched_on_request(measured):
    found = search(measured, target_bits=4, also=["conv_*"])
    assert {"conv_in", "conv_out"} < set(found.weights)
    model = tdq.quantize(Fragile(), found.recipe)
    layers = dict(quantized_layers(model))
    assert layers["conv_in"].weight_quantizer.grid.bits == found.weights["conv_in"]
    assert layers["conv_in"].input_quantizer.grid.bits == 8
    with pytest.raises(RecipeError, match=r"'nothing\*'"):
        search(measured, target_bits=4, also=["nothing*"])


def test_what_the_base_decides_stays():
    recipe = {"overrides": {"blocks.2": {"weights": 3}}, "weights": 5}
    found = search(
        sensitivity(fragile(**recipe), batches(4), bits=[3, 5], progress=False), target_bits=5
    )
    assert "blocks.2" not in found.weights
    assert found.recipe.overrides["blocks.2"]["weights"] == 3


@pytest.mark.parametrize("budgets", [{}, {"target_bits": 4, "max_error": 1.0}])
def test_one_budget(measured, budgets):
    with pytest.raises(RecipeError, match="give one of them"):
        search(measured, **budgets)


@pytest.mark.parametrize("target", [1.9, -1, math.nan, math.inf])
def test_sizes_out_of_reach(measured, target):
    with pytest.raises(RecipeError, match=r"2\.00 to 8\.00 bits"):
        search(measured, target_bits=target)
    with pytest.raises(RecipeError, match=r"target_activation_bits.*\n.*2\.00 to 8\.00 bits"):
        search(measured, target_bits=4, target_activation_bits=target)


@pytest.mark.parametrize("error", [0.0, -1.0, math.nan])
def test_errors_out_of_reach(measured, error):
    with pytest.raises(RecipeError, match="attainable"):
        search(measured, max_error=error)


def test_nothing_to_search():
    model = fragile(weights=32)
    found = sensitivity(model, batches(2), bits=[8], progress=False)
    with pytest.raises(RecipeError, match="no weights to search"):
        search(found, target_bits=8)


def test_later_overrides_of_the_base_do_not_undo_the_search(measured):
    base = tdq.Recipe(weights=4, overrides={"blocks.2": {"scale": "static"}, "blocks.*": {}})
    found = search(measured, target_bits=4, base=base)
    assert next(iter(found.recipe.overrides)) == "blocks.*"
    assert found.recipe.overrides["blocks.2"]["scale"] == "static"
    assert found.recipe.overrides["blocks.2"]["weights"] == found.weights["blocks.2"]


def test_activations_that_were_not_measured(measured):
    bare = sensitivity(fragile(weights=4, activations=32), batches(2), bits=[4], progress=False)
    assert search(bare, target_bits=4.2).activations == {}
    with pytest.raises(RecipeError, match="in float"):
        search(bare, target_bits=4.2, base=tdq.Recipe(weights=4, activations=8))
    with pytest.raises(CalibrationError, match="7 bits were not measured"):
        search(measured, target_bits=4, base=tdq.Recipe(weights=4, activations=7))


def test_paths_with_glob_characters_match_their_layer_alone():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.all = torch.nn.ModuleDict(
                {k: torch.nn.Linear(4, 4) for k in ("in", "a*", "ab", "[ab]", "out")}
            )

        def forward(self, x, t):
            for layer in self.all.values():
                x = layer(x).tanh()
            return x

    def made(recipe):
        return tdq.quantize(Odd().eval(), recipe)

    inputs = [(torch.randn(4, 4), torch.tensor(t)) for t in (1, 2)]
    found = search(
        sensitivity(made(tdq.Recipe()), inputs, bits=[2, 4, 8], progress=False), target_bits=5.4
    )
    layers = dict(quantized_layers(made(found.recipe)))
    assert len(set(found.weights.values())) > 1
    for path, bits in found.weights.items():
        assert layers[path].weight_quantizer.grid.bits == bits


def test_what_the_base_recipe_sets_counts_as_it_is_set(measured):
    overrides = {
        "blocks.0": {"weights": 2}, "blocks.1": {"activations": 4, "scale": "static"}
    }  # fmt: skip
    base = tdq.Recipe(weights=4, activations=8, edges=8, overrides=overrides)
    found = search(measured, target_bits=4, base=base)
    assert found.activations["blocks.1"] == (4, "static")
    facts = measured.layers
    weights = {p: facts[p].weight_bits for p in measured.weights} | {"blocks.0": 2}
    wanted = measured.predict(weights | dict(found.weights), found.activations)
    assert found.error == pytest.approx(wanted)
    plain = search(measured, target_bits=4, base=tdq.Recipe(weights=4, activations=8, edges=8))
    assert found.error > plain.error
