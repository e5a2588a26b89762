"""Where the gain lives: how savings are cumulated and counted, and the study on a toy model."""

import json
import sys

import pytest
import torch
from diffusers import DDIMScheduler

from tdquant.lab.report.formats import StudyFile
from tdquant.models.pipe import Pipe
from tests.studies.test_alternatives import Toy
from tests.studies.test_studies import studies

__all__ = ["studies"]


def test_inputs_that_save_most_come_first(studies):
    gain = studies("gain")
    runs = [
        {"layer": name, "error": error, "static": static}
        for name, error, static in (("a", 1, 2), ("b", 2, 10), ("c", 4, 4), ("d", 5, 4))
    ]  # fmt: skip
    inputs, shares = gain.ranked(runs)
    assert [run["layer"] for run in inputs] == ["b", "a", "c", "d"]
    assert shares == pytest.approx([8 / 20, 9 / 20, 9 / 20, 8 / 20])
    assert gain.needed(shares) == 2
    assert gain.needed([0.4, 0.44, 0.441]) == 1
    assert gain.needed([0.0, -0.1]) == 0


def test_the_input_that_moves_has_the_gain(studies, monkeypatch, tmp_path):
    gain, protocol = studies("gain"), studies("protocol")
    torch.manual_seed(0)
    pipe = Pipe(Toy().eval(), None, DDIMScheduler(clip_sample=False), (4, 2, 2), "toy")
    monkeypatch.setattr(protocol, "load", lambda name: pipe)
    monkeypatch.setattr(gain, "MODELS", ("toy",))
    small = {"trajectories": 2, "calibration_steps": 8, "calls": 8}
    monkeypatch.setattr(gain, "SETTINGS", small)
    monkeypatch.setattr(sys, "argv", ["gain", "--bits", "W8A5"])
    gain.main()
    study = json.loads((tmp_path / "gain.json").read_text())
    StudyFile.model_validate(study)
    rows = study["tables"][0]["rows"]
    assert rows[0]["layer"] == "moving"
    assert rows[0]["spread"] > 1.5
    assert rows[-1]["cumulated"] == pytest.approx(sum(row["saved"] for row in rows))
    assert study["measured"].endswith("1 of 2 runs made.")
    (line,) = study["plots"][0]["lines"]
    assert (line["x"][0], line["y"][0]) == (0, 0.0)
    assert len(line["y"]) == len(study["runs"]) + 1
