import pytest

from tdquant.errors import ConfigError
from tdquant.files.config import TrainingOptions, training_options


def test_defaults_are_valid_by_their_own_rules():
    defaults = training_options({})
    assert set(defaults) == set(TrainingOptions.model_fields)
    assert training_options({"tdquant": defaults}) == defaults
    assert training_options({"tdquant": None}) == defaults


def test_given_options_win():
    given = {"steps": 7, "rate": 1, "min_snr": 5.0, "scale": "static", "loss": None, "ema": 0}
    found = training_options({"tdquant": given, "model": {}})
    assert {key: found[key] for key in given} == given
    assert found["warmup"] == 5000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0),
        ("steps", 1.5),
        ("steps", True),
        ("steps", None),
        ("steps", "many"),
        ("rate", 0.0),
        ("rate", -1e-4),
        ("rate", float("nan")),
        ("rate", float("inf")),
        ("rate", "1e-4"),
        ("ema", 1.0),
        ("clip", -1),
        ("loss", "l3"),
        ("scale", ["temporal"]),
        ("precision", "float64"),
        ("warmup", -1),
    ],
)
def test_values_out_of_range(key, value):
    with pytest.raises(ConfigError, match=rf"tdquant.{key}="):
        training_options({"tdquant": {key: value}})


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        training_options({"tdquant": {"stepz": 3, "seed": -1, "colour": 1}}, "a.yaml")
    text = str(caught.value)
    assert "3 mistakes in a.yaml" in text
    assert "tdquant.stepz: no such key; nearest: steps" in text
    assert "tdquant.seed=-1: input should be greater than or equal to 0" in text
    with pytest.raises(ConfigError, match="a section of keys is needed"):
        training_options({"tdquant": [1]})
