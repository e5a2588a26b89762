"""The chapter on what calibration tried."""

import json
import math
import re

import pytest

from tdquant.errors import StorageError
from tdquant.lab.report.pictures import Pictures
from tdquant.lab.report.reading import read_inputs
from tdquant.lab.report.remedies import brief, section
from tdquant.lab.report.runs import section as runs_section
from tests.lab.report.made_up import MODELS, record, remedies, write_run


def bars(made):
    """Path and class of every bar."""
    return [found[::-1] for found in re.findall(r'class="bar (\w+)"><path d="([^"]*)"', made)]


def test_each_trial_has_a_bar_and_a_row():
    made = section(remedies(), "W4A4")
    (_, colours), (_, hollow) = bars(made)[:2]
    assert (colours, hollow) == ("c0", "neutral")  # of the legend
    assert [classes for _, classes in bars(made)[2:]] == ["c0", "c0", "c0", "neutral"]
    for one in remedies()["trials"]:
        assert f'<th scope="row">{one["name"]}</th>' in made
        assert one["what"].replace("'", "&#39;") in made
    assert "<td>not kept</td>" in made
    assert ">139<" in made
    assert "16.7 % of the float32 bytes" in made
    assert "35 % of the float model" in made
    assert "conv_in, in float: 20 % of the error" in made
    assert 'aria-label="What remedies leave of the error of W4A4. ' in made


def test_bars_begin_at_zero_and_are_as_high_as_their_values():
    made = section(remedies(), "W4A4")
    heights = []
    for path, _ in bars(made)[2:]:
        ys = [float(y) for y in re.findall(r"[ ]([\d.]+)", path)]
        assert max(ys) == pytest.approx(256, abs=0.2)
        heights.append(max(ys) - min(ys))
    lefts = [100 * t["after"] / t["before"] for t in remedies()["trials"]]
    kept = [left for left, t in zip(lefts, remedies()["trials"], strict=True) if t["kept"]]
    ratio = heights[0] / kept[0]
    assert heights[:3] == pytest.approx([ratio * left for left in kept], abs=0.3)


def test_what_there_is_nothing_of():
    nothing = {"trials": [], "protected": []}
    assert brief(nothing) == "none was kept"
    made = section(nothing, "W4A4")
    assert "<figure" not in made
    assert "<table" not in made
    assert brief(remedies()) == "kept: bits, rounding, correction, protected inputs"


@pytest.mark.parametrize("before", [0.0, None, math.nan])
def test_errors_without_a_share(before):
    found = remedies()
    found["trials"][0]["before"] = before
    assert "<td>kept</td>" in section(found, "W4A4")
    found["trials"] = found["trials"][:1]
    assert section(found, "W4A4").count("<tbody>") == 2


def test_names_are_no_markup():
    found = remedies()
    found["trials"][0] |= {"name": "<b>", "what": "<script>"}
    made = section(found, "<i>")
    for word in ("<b>", "<i>", "<script>"):
        assert word not in re.sub(r'<script type="application/json">', "", made)


def test_chapters_are_of_runs_that_have_remedies(tmp_path):
    write_run(tmp_path / "a", MODELS[3], 1)
    write_run(tmp_path / "b", MODELS[4], 1)
    made = runs_section(read_inputs([tmp_path]).runs)(Pictures())
    assert made.count("<h3>Remedies of ") == 1
    assert "<h3>Remedies of W4A4 temporal</h3>" in made


def test_damaged_remedies(tmp_path):
    folder = write_run(tmp_path / "a", MODELS[4], 1)
    content = json.loads((folder / "record.json").read_text())
    content["model"]["remedies"]["trials"][0]["kept"] = "yes"
    (folder / "record.json").write_text(json.dumps(content))
    with pytest.raises(StorageError, match="kept"):
        read_inputs([folder])
    del content["model"]["remedies"]
    (folder / "record.json").write_text(json.dumps(content))
    assert read_inputs([folder]).runs[0].record.model.get("remedies") is None
    assert record(*MODELS[4]).model["remedies"]
