import copy
import json

import pytest
import torch

import tdquant as tdq
from tdquant.errors import ConversionError, DataError
from tdquant.lab.evaluation import layer_report
from tdquant.layers import quantized_layers
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.scales import TableScale
from tests.denoisers import Mixed, calls

KEYS = {
    "path", "type", "weight_bits", "input_bits", "scale", "zero_point", "steps", "error",
    "error_static", "saved", "weight_error", "range", "correlation", "parameters",
}  # fmt: skip


def test_the_report_is_what_the_format_says(whole):
    report = json.loads((whole[0] / "layers.json").read_text())
    assert (report["format"], report["version"]) == ("tdquant-layers", 1)
    assert report["times"] == [0.0, 500.0]
    for row in report["layers"]:
        assert set(row) == KEYS
        assert row["steps"] == [] if row["scale"] == "float" else len(row["steps"]) == 2
    quantized = [row for row in report["layers"] if row["input_bits"] == 4]
    assert quantized
    assert all(0 < row["error"] < 1 for row in quantized)


def test_errors_are_those_of_the_layer(frozen):
    path = "reflect"
    layer = frozen.get_submodule(path)
    seen, errors = [], []

    def keep(module, args):
        x = args[0].detach()
        off = x - layer.input_quantizer(x)
        errors.append(float(off.square().sum() / x.square().sum()))
        seen.append(x)

    report = layer_report(frozen, calls(6), Mixed())
    handle = layer.register_forward_pre_hook(keep)
    for call in calls(6):
        frozen(*call)
    handle.remove()
    row = next(r for r in report["layers"] if r["path"] == path)
    assert row["error"] == pytest.approx(sum(errors) / 6, rel=1e-4)
    # No single step of a fine search does better than what is told, beyond the search's spacing.
    grid = layer.input_quantizer.grid
    best = min(
        sum(
            float((x - fake_quantize(x, torch.tensor(s), grid.low, grid.high)).square().sum())
            / float(x.square().sum())
            for x in seen
        )
        / 6
        for s in torch.logspace(-3, 1, 200).tolist()
    )
    assert row["error_static"] == pytest.approx(best, rel=0.1)
    assert row["saved"] == pytest.approx(1 - row["error"] / row["error_static"])
    weight = Mixed().get_submodule(path).weight
    off = layer.weight - weight
    assert row["weight_error"] == pytest.approx(
        float(off.detach().square().sum() / weight.detach().square().sum()), rel=1e-4
    )


def test_a_scale_that_follows_the_spread_saves_and_a_flat_one_does_not(frozen):
    report = {row["path"]: row for row in layer_report(frozen, calls(12))["layers"]}
    # The input of conv_in grows fourfold with time: edges are 8 bits in this model.
    row = report["conv_in"]
    assert row["correlation"] > 0.9
    assert row["range"] > 2
    flat = copy.deepcopy(frozen)
    for _, layer in quantized_layers(flat):
        scale = getattr(layer.input_quantizer, "scale", None)
        if isinstance(scale, TableScale):
            middle = scale.table.detach().log().mean().exp()[None]
            layer.input_quantizer.scale = TableScale(torch.zeros(1), middle)
    flat_row = {r["path"]: r for r in layer_report(flat, calls(12))["layers"]}["conv_in"]
    assert flat_row["scale"] == "static"
    assert flat_row["range"] == 1
    assert flat_row["saved"] < row["saved"]


def test_hooks_are_gone_and_outputs_unchanged(frozen):
    call = next(iter(calls(1)))
    before = frozen(*call)
    layer_report(frozen, calls(3))
    assert torch.equal(frozen(*call), before)
    assert not any(layer._forward_pre_hooks for _, layer in quantized_layers(frozen))


def test_without_calls_or_with_too_many_times(frozen):
    with pytest.raises(DataError, match="0 times"):
        layer_report(frozen, [])
    with pytest.raises(DataError, match="70 times"):
        layer_report(frozen, calls(70, batch=1))
    with pytest.raises(ConversionError):
        layer_report(Mixed(), calls(3))


def test_calls_by_keyword_and_dynamic_scales():
    model = tdq.quantize(Mixed(), tdq.Recipe(4, 6, "dynamic", edges=6))
    tdq.calibrate(model, calls(), progress=False)
    found = layer_report(tdq.freeze(model), [{"x": x, "timestep": t} for x, t in calls(4)])
    kinds = {row["scale"] for row in found["layers"]}
    assert "dynamic" in kinds
    row = next(r for r in found["layers"] if r["path"] == "conv_in")
    assert len(row["steps"]) == 4
    assert row["range"] > 2


def test_following_the_timestep_saves_nothing_where_nothing_follows_it():
    """Of every layer, however wide the rows of its input are: what is tried is drawn at random."""
    pipe = tdq.models.load_embedded("cats-ddpm")
    model = tdq.quantize(pipe.unet, tdq.Recipe(4, 4, scale="static"))
    given = list(tdq.trajectories(tdq.models.load_embedded("cats-ddpm"), 1, steps=2))
    tdq.calibrate(model, given, estimator="mse", split=False, progress=False)
    rows = layer_report(tdq.freeze(model), given)["layers"]
    assert len(rows) > 30
    assert all(row["saved"] <= 1e-6 for row in rows)
