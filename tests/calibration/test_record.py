"""What calibration did beside scales, through copies, files and tables."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch

import tdquant as tdq
from tdquant.calibration.record import RemedyRecord
from tdquant.calibration.report import ProtectedInput, RemedyTrial
from tdquant.cli import main
from tdquant.errors import StorageError
from tdquant.layers import quantized_layers
from tdquant.storage import inspect_saved
from tests.denoisers import Mixed, calls


@pytest.fixture(scope="module")
def model():
    remedies = ("groups", "protection", "rounding")
    recipe = tdq.Recipe(3, 4, scale="static", time_weights=8, remedies=remedies)
    made = tdq.quantize(Mixed().eval(), recipe)
    return tdq.calibrate(made, list(calls(4)), budget=tdq.Budget(protection=0.5), progress=False)


def test_it_says_which_layers_have_which_remedies(model):
    record = model.tdq.remedies
    protected = {one.path for one in model.tdq.calibration.protected}
    assert protected
    assert {p for p, names in record.layers.items() if "protection" in names} == protected
    (trial,) = record.trials
    assert trial.kept
    decided = {p for p, names in record.layers.items() if "rounding" in names}
    assert decided == {p for p, layer in quantized_layers(model) if layer.weight_quantizer.grid}
    assert set(record.macs) == {p for p, _ in quantized_layers(model)} | {"conv_in", "conv_out"}
    assert 1 / 3 < record.time < 1


def test_it_stays_with_copies_and_files(model, tmp_path):
    record, frozen = model.tdq.remedies, tdq.freeze(model)
    assert frozen.tdq.remedies == record
    folder = tdq.save(frozen, tmp_path / "model")
    loaded = tdq.load(folder, Mixed())
    assert loaded.tdq.remedies == record
    assert tdq.summary(loaded) == tdq.summary(frozen)
    assert tdq.summary(loaded).remedies == str(record)
    assert frozen.tdq.calibration is None


def test_tables_show_it(model, tmp_path, capsys):
    frozen = tdq.freeze(model)
    table = tdq.summary(frozen)
    rows = {row.path: row for row in table}
    path = next(iter(model.tdq.calibration.protected)).path
    assert "protection" in rows[path].remedies
    lines = str(table).splitlines()
    assert max(map(len, lines[: len(table) + 1])) <= 100
    (line,) = [line for line in lines if line.startswith(f"{path} ")]
    for words in (" 3 ", " 8 ", " groups ", "protection", "rounding", " % "):
        assert words in line
    assert "% of the float32 bytes" in table.footer
    assert "rounding  kept" in table.footer
    assert "protected inputs: " in table.footer
    assert lines[-1].startswith("5 of 8 layers quantized")
    narrow = table.table(60).splitlines()[: len(table) + 1]
    assert max(map(len, narrow)) <= 60

    folder = tdq.save(frozen, tmp_path / "model")
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert str(model.tdq.remedies) in said
    (line,) = [line for line in said.splitlines() if line.startswith(f"{path} ")]
    assert "protection rounding" in line


def test_codes_that_others_change_are_no_longer_those_of_calibration(model):
    changed = copy.deepcopy(model)
    tdq.reconstruct(changed, list(calls(2)), method="gptq", progress=False)
    record = changed.tdq.remedies
    (trial,) = record.trials
    assert not trial.kept
    assert trial.what.endswith(", until reconstruct")
    assert {name for names in record.layers.values() for name in names} == {"protection"}
    assert record.until("train") == record
    assert model.tdq.remedies.trials[0].kept


def test_models_saved_without_it(model, tmp_path):
    folder = tdq.save(tdq.freeze(model), tmp_path / "model")
    file = folder / "tdquant.json"
    index = json.loads(file.read_text())
    del index["remedies"]
    file.write_text(json.dumps(index))
    loaded = tdq.load(folder, Mixed())
    assert loaded.tdq.remedies is None
    x, t = torch.ones(1, 6, 8, 8), torch.tensor(9)
    with torch.no_grad():
        assert torch.equal(loaded(x, t), tdq.freeze(model)(x, t))
    assert "not kept" not in inspect_saved(folder)
    index["remedies"] = {"basis": 3}
    file.write_text(json.dumps(index))
    with pytest.raises(StorageError, match="basis"):
        tdq.load(folder, Mixed())


def test_json_and_back():
    record = RemedyRecord(
        "single calls",
        (RemedyTrial("rounding", False, 0.5, math.nan, "codes"),),
        (ProtectedInput("a", 32, 0.4, 0.1),),
        {"a": ("protection",)},
        {"a": 12},
        0.2,
        0.5,
    )
    data = json.loads(json.dumps(record.to_dict())) | {"of the future": 1}
    found = RemedyRecord.from_dict(data)
    assert math.isnan(found.trials[0].after)
    assert replace(found, trials=()) == replace(record, trials=())
    assert "not kept  0.5 -> nan" in str(found)
    data["trials"][0]["after"] = None
    assert math.isnan(RemedyRecord.from_dict(data).trials[0].after)


def test_a_compiled_model_shows_kernels_beside_it(model):
    fast = tdq.compile(tdq.freeze(model), "reference")
    table = tdq.summary(fast)
    assert "remedies" in str(table).splitlines()[0]
    assert "kernel" in str(table).splitlines()[0]
    assert "% of the float32 bytes" in table.footer
