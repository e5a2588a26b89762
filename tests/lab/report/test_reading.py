"""Inputs are found, looked through, and refused by name."""

import json

import pytest

from tdquant.errors import StorageError
from tdquant.lab.report.reading import read_inputs
from tests.lab.report.made_up import (
    layers,
    write_everything,
    write_progress,
    write_run,
    write_study,
)


def test_everything_in_folders_is_found(tmp_path):
    write_everything(tmp_path)
    found = read_inputs([tmp_path / "studies", tmp_path / "runs"])
    assert [s.path.stem for s in found.studies] == ["a-qat", "b-ptq", "c-dynamic", "d-large"]
    assert len(found.runs) == 5
    assert [u.path.name for u in found.unfinished] == ["w4a3"]
    assert len(found.runs[0].pictures) == 24
    whole = read_inputs([tmp_path / "studies" / "a-qat.json", tmp_path / "runs/w4a3"])
    assert (len(whole.studies), len(whole.runs), len(whole.unfinished)) == (1, 0, 1)
    record = read_inputs([tmp_path / "runs" / "W4A4-temporal" / "record.json"])
    assert record.runs[0].path.name == "W4A4-temporal"


def test_studies_stand_by_their_position(tmp_path):
    write_everything(tmp_path)
    for name, position in (("d-large", 1), ("b-ptq", 2), ("a-qat", None)):
        file = tmp_path / "studies" / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"position": position}))
    found = read_inputs([tmp_path / "studies"]).studies
    assert [s.path.stem for s in found] == ["d-large", "b-ptq", "a-qat", "c-dynamic"]


def test_every_input_that_cannot_be_shown_is_named(tmp_path):
    write_run(tmp_path / "good")
    (tmp_path / "broken.json").write_text('{"format": "tdquant-st')
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError) as caught:
        read_inputs([tmp_path / n for n in ("good", "broken.json", "empty", "nowhere")])
    words = str(caught.value)
    assert "3 inputs cannot be shown" in words
    for name in ("broken.json", "empty", "nowhere"):
        assert name in words


def test_nothing_is_no_report():
    with pytest.raises(StorageError, match="nothing to report"):
        read_inputs([])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "newer than 1"),
        ({"version": "x"}, "format version 'x'"),
        ({"format": "other"}, "not tdquant-study"),
        ({"verdict": "maybe"}, "verdict input should be 'holds'"),
        ({"title": 3}, "title is not text"),
        ({"tables": [{"title": "x", "columns": []}]}, r"tables\[0\].rows is missing"),
        (
            {"plots": [{"title": "x", "x": {"label": "x"}, "y": {"label": "y"},
                        "lines": [{"name": "a", "x": [1], "y": [1, 2]}]}]},
            "different lengths",
        ),
        (
            {"plots": [{"title": "x", "x": {"label": "x", "words": ["W4A4"]},
                        "y": {"label": "y"}, "lines": [{"name": "a", "x": [1], "y": [1]}]}]},
            "no place of a word",
        ),
        (
            {"plots": [{"title": "x", "x": {"label": "x"}, "y": {"label": "y"}, "lines": [],
                        "note": 3}]},
            r"plots\[0\].note is not text",
        ),
        (
            {"tables": [{"title": "x", "rows": [],
                         "columns": [{"key": "a", "label": "A", "unit": 3}]}]},
            r"tables\[0\].columns\[0\].unit is not text",
        ),
        ({"figures": [{"file": "../../x.png", "title": "", "alt": ""}]}, "outside the study"),
        ({"figures": [{"file": "x.png", "title": "", "alt": ""}]}, "there is no x.png"),
        (
            {"layers": [{**layers(2), "title": "x", "times": [1]}]},
            "steps that are not at most 1 positive",
        ),
    ],
)  # fmt: skip
def test_a_damaged_study_is_named(tmp_path, change, words):
    path = write_study(tmp_path, pictures=False, **change)
    with pytest.raises(StorageError, match=words) as caught:
        read_inputs([path])
    assert "qat.json" in str(caught.value)


def test_a_damaged_run_is_named(tmp_path):
    folder = write_run(tmp_path / "run")
    record = json.loads((folder / "record.json").read_text())
    for change, words in (
        ({"version": 9}, "newer"),
        ({"sampling": {"images": "many"}}, "sampling.images is not"),
        ({"metrics": {"frechet": 3}}, "metrics.frechet is not an object"),
        ({"sqnr": {"times": [1, 2], "decibels": [3]}}, "different lengths"),
    ):
        (folder / "record.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(StorageError, match=words) as caught:
            read_inputs([folder])
        assert "record.json" in str(caught.value)
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "layers.json").write_text("[]")
    with pytest.raises(StorageError, match="tdquant-layers"):
        read_inputs([folder])


def test_progress_that_is_half_written_is_progress(tmp_path):
    folder = write_progress(tmp_path / "run")
    assert read_inputs([folder]).unfinished[0].progress.done == 1280
    (folder / "progress.json").write_text('{"stage": "samp')
    assert read_inputs([folder]).unfinished[0].progress.stage == "starting"


def test_a_folder_of_studies_may_hold_other_json(tmp_path):
    write_study(tmp_path, pictures=False)
    (tmp_path / "notes.json").write_text('{"format": "something else"}')
    assert len(read_inputs([tmp_path]).studies) == 1
