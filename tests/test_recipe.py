import copy
import json
import re

import pytest

from tdquant.errors import RecipeError
from tdquant.recipe import REMEDIES, Recipe


@pytest.mark.parametrize("bits", [1, 17, 0, -4, 8.0, True, "8"])
@pytest.mark.parametrize("field", ["weights", "activations", "edges", "time_weights", "attention"])
def test_widths_out_of_range(field, bits):
    with pytest.raises(RecipeError, match=f"{field}={bits!r}"):
        Recipe(**{field: bits})


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(RecipeError) as error:
        Recipe(
            weights=1,
            activations=17,
            scale="temporel",
            granularity="row",
            grid="log",
            overrides={"a.*": {"weights": 99, "colour": 3, "scale": "x"}},
            temporal={"width": 3},
        )
    text = str(error.value)
    assert "9 mistakes" in text
    for word in ("weights=1", "activations=17", "temporel", "row", "log", "99", "colour", "width"):
        assert word in text


def test_round_trip_through_json():
    recipe = Recipe(4, 5, exclude=("a.*",), overrides={"b": {"weights": 8}}, temporal={"depth": 2})
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_what_the_caller_changes_afterwards_changes_no_recipe():
    given = {
        "include": ["a.*"],
        "exclude": ["a.b"],
        "remedies": ["factors"],
        "overrides": {"x": {"weights": 8}},
        "temporal": {"depth": 2},
    }
    recipe, same = Recipe(**given), Recipe(**copy.deepcopy(given))
    given["overrides"]["x"]["weights"] = 1
    given["overrides"]["y"] = {}
    given["temporal"]["depth"] = "many"
    for name in ("include", "exclude", "remedies"):
        given[name].append("z")
    assert recipe == same
    assert recipe.for_layer(["x"], edge=False, time_path=False).weights == 8


@pytest.mark.parametrize(
    "field", ["overrides", "temporal", "include", "exclude", "remedies", "overrides of a layer"]
)
@pytest.mark.parametrize("value", [3, None, "conv_in", True])
def test_what_is_no_container(field, value):
    given = {field: value}
    if field == "overrides of a layer":
        field, given = "overrides['a']=", {"overrides": {"a": value}}
    with pytest.raises(RecipeError, match=re.escape(field)):
        Recipe(**given)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("features", 3), ("features", 0), ("features", "64"), ("hidden", 0), ("hidden", 2.0),
        ("depth", True), ("dropout", 1.0), ("dropout", "0.1"), ("encoding", "sine"),
        ("encoding", []),
    ],
)  # fmt: skip
def test_temporal_options_are_checked_at_once(option, value):
    with pytest.raises(RecipeError, match=re.escape(f"temporal[{option!r}]={value!r}")):
        Recipe(temporal={option: value})


def test_unknown_field_of_a_newer_version():
    with pytest.raises(RecipeError, match="future"):
        Recipe.from_dict({"weights": 4, "future": 1})


def test_layer_plans():
    recipe = Recipe(4, 5, overrides={"x": {"activations": 32}, "y": {"scale": "static"}})
    plain = recipe.for_layer([], edge=False, time_path=False)
    assert (plain.weights, plain.activations, plain.scale) == (4, 5, "auto")
    edge = recipe.for_layer([], edge=True, time_path=False)
    assert (edge.weights, edge.activations) == (32, 32)
    edge = Recipe(4, 5, edges=8).for_layer([], edge=True, time_path=False)
    assert (edge.weights, edge.activations) == (8, 8)
    time = recipe.for_layer([], edge=False, time_path=True)
    assert (time.weights, time.activations) == (5, 32)
    both = recipe.for_layer(["x", "y"], edge=False, time_path=False)
    assert (both.weights, both.activations, both.scale) == (4, 32, "static")


def test_float_operands_stay_float_everywhere():
    recipe = Recipe(weights=32, activations=5, edges=8)
    assert recipe.for_layer([], edge=True, time_path=False).weights == 32
    assert recipe.for_layer([], edge=False, time_path=True).weights == 32


def test_remedies_come_with_automatic_scales():
    assert all(Recipe().uses(name) for name in REMEDIES)
    assert not any(Recipe(scale="temporal").uses(name) for name in REMEDIES)
    assert not any(Recipe(remedies=()).uses(name) for name in REMEDIES)
    one = Recipe(scale="static", remedies=["factors"])
    assert [name for name in REMEDIES if one.uses(name)] == ["factors"]
    assert Recipe.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_mistakes_in_remedies():
    with pytest.raises(RecipeError) as error:
        Recipe(remedies=("factors", "magic"), group=8)
    assert "magic" in str(error.value)
    assert "group=8" in str(error.value)
    with pytest.raises(RecipeError, match="remedies='all'"):
        Recipe(remedies="all")
    with pytest.raises(RecipeError, match="none with grid='published'"):
        Recipe(
            grid="published",
            scale="static",
            time_weights=32,
            granularity="tensor",
            remedies=("factors",),
        )


@pytest.mark.parametrize(
    ("recipe", "bits"),
    [
        (Recipe(4, 8), 5),
        (Recipe(4, 8, time_weights=8), 8),
        (Recipe(4, 8, time_weights=3), 3),
        (Recipe(2, 8), 5),
        (Recipe(5, 8), 6),
        (Recipe(6, 8), 8),
        (Recipe(8, 8), 8),
        (Recipe(16, 8), 8),
        (Recipe(4, 8, scale="temporal"), 8),
        (Recipe(4, 8, scale="temporal", remedies=("rounding",)), 5),
        (Recipe(4, 8, remedies=("groups",)), 8),
        (Recipe.published(4, 4), 32),
    ],
)
def test_bits_of_the_time_path(recipe, bits):
    assert recipe.time_bits == bits
    assert Recipe.from_dict(recipe.to_dict()).time_bits == bits
