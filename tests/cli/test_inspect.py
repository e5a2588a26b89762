import json
import os
import shutil
from pathlib import Path

import pytest

import tdquant as tdq
from tdquant.cli import main
from tests.conftest import quantized
from tests.lab.report.made_up import write_progress, write_run, write_study


def inspect(path, capsys):
    status = main(["inspect", str(path)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return status, out or err


@pytest.mark.parametrize("name", ["", "record.json", "record.previous.json"])
def test_an_evaluation(tmp_path, capsys, name):
    run = write_run(tmp_path / "run", pictures=1)
    if name == "record.previous.json":
        (run / "record.json").rename(run / name)
    status, text = inspect(run / name, capsys)
    assert status == 0
    assert "an evaluation of 2026-11-20T12:00:00+00:00, tdquant 0.1.0" in text
    assert "cats-ddpm W4A4 temporal: 5000 images, 50 steps of DDIM" in text
    assert "Frechet EfficientNet-Lite0 distance" in text
    assert "tdquant evaluate models/W4A4-temporal" in text


@pytest.mark.parametrize("name", ["", "progress.json"])
def test_an_evaluation_that_is_not_finished(tmp_path, capsys, name):
    run = write_progress(tmp_path / "run")
    status, text = inspect(run / name, capsys)
    assert status == 0
    assert "sampling, 1280 of 5000, at 2026-11-22T20:10:00" in text
    (run / "progress.json").write_text("{")  # caught half written
    assert "starting" in inspect(run / name, capsys)[1]


def test_a_study(tmp_path, capsys):
    file = write_study(tmp_path, pictures=False, verdict="holds in part")
    study = json.loads(file.read_text())
    status, text = inspect(file, capsys)
    assert status == 0
    assert f"the study qat: {study['title']}" in text
    assert "verdict: holds in part" in text
    assert f"measured: {study['measured']}" in text
    del study["verdict"]
    file.write_text(json.dumps(study))
    status, text = inspect(file, capsys)
    assert status == 1
    assert "verdict is missing" in text
    assert str(file) in text


def test_the_studies_that_are_here(capsys):
    for file in (Path(__file__).parents[2] / "studies" / "results").glob("*.json"):
        status, text = inspect(file, capsys)
        assert status == 0
        assert text.startswith(f"the study {file.stem}: ")


def test_damaged_and_other_json(tmp_path, capsys):
    run = write_run(tmp_path / "run", pictures=0)
    record = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps(record | {"sampling": {}}))
    status, text = inspect(run, capsys)
    assert status == 1
    assert "sampling.images is missing" in text
    (tmp_path / "notes.json").write_text('{"format": "mine"}')
    status, text = inspect(tmp_path / "notes.json", capsys)
    assert status == 1
    assert "not a file of tensors" in text
    assert "JSON of the format mine" in text


def test_a_terminal_is_not_overrun_and_a_pipe_gets_everything(tmp_path, capsys, monkeypatch):
    import sys

    saved = tdq.save(tdq.freeze(quantized()), tmp_path / "model")
    _, whole = inspect(saved, capsys)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((60, 24)))
    assert inspect(saved, capsys)[1] == whole
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, text = inspect(saved, capsys)
    table = text[text.index("layer ") :].splitlines()[:-1]
    assert max(map(len, table)) <= 60 < max(map(len, whole.splitlines()))
