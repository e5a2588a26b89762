"""Every example runs at its tiny size, and prints what its docstring says."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tdquant as tdq
from tdquant.families import FAMILIES
from tdquant.lab.evaluation import Record

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(file.stem for file in EXAMPLES.glob("*.py"))


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    """A folder of its own, and no families left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TDQUANT_CACHE", str(tmp_path / "cache"))
    before = list(FAMILIES)
    yield
    FAMILIES[:] = before


@pytest.fixture
def run(monkeypatch, capsys):
    def run(name, *arguments):
        """What an example prints."""
        monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def number(words, text):
    """The number behind some words."""
    return float(re.search(rf"{words}\s+([-+.\de]+)", text)[1].rstrip("."))


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_does(name, run, capsys):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) < 100
    assert f"python examples/{name}.py" in text
    with pytest.raises(SystemExit) as stop:
        run(name, "--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--tiny" in shown
    assert "Printed" in shown


def test_quantize_any_denoiser(run):
    shown = run("quantize_any_denoiser", "--tiny", "--bits", 6)
    assert re.search(r"^stem +Linear +float +float\b", shown, re.M)
    assert re.search(r"^level_mlp\.0 +Linear +8 +float\b", shown, re.M)
    assert len(re.findall(r"^body\.\d(?:\.layer)? +Linear +8 +6 ", shown, re.M)) == 4
    for scale in ("static", "auto"):
        assert 0 < number(f"{scale}: median", shown) < 0.01
        assert 0 < number(rf"{scale}: median [-.\de]+, mean", shown) < 0.1


def test_finetune_low_bits(run, tmp_path):
    shown = run("finetune_low_bits", "--tiny", "--bits", 6, "--out", "run")
    assert 0 < number("calibrated: paired MSE", shown) < 0.1
    assert 0 < number("after 3 steps: paired MSE", shown) < 0.1
    frozen = tdq.load(tmp_path / "run/frozen")
    assert {row.input_bits for row in tdq.summary(frozen)} == {6, 32}
    again = run("finetune_low_bits", "--tiny", "--bits", 6, "--out", "run")
    assert again == shown  # it went on from the last step, where there is nothing to do


def test_train_with_accelerate(run, tmp_path):
    shown = run("train_with_accelerate", "--tiny", "--out", "trained")
    assert 0 < number("loss:", shown) < 2
    assert tdq.is_frozen(tdq.load(tmp_path / "trained"))


@pytest.mark.slow
def test_train_with_accelerate_in_two_processes(tmp_path):
    words = ["--nproc_per_node", "2", "--master_port", "29517"]
    script = [EXAMPLES / "train_with_accelerate.py", "--tiny", "--precision", "bf16"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, *script, "--out", tmp_path / "x"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert tdq.is_frozen(tdq.load(tmp_path / "x"))


def test_deploy_onnx(run, tmp_path):
    shown = run("deploy_onnx", "--tiny", "--out", "small.xml", "--threads", 1)
    assert number("largest difference", shown) < 1e-3
    assert "int8" in shown
    assert 0 < number("session", shown) < 1000
    session = tdq.open_session(tmp_path / "small.xml")
    assert session(torch.randn(2, 3, 8, 8), torch.tensor([3, 900])).sample.shape == (2, 3, 8, 8)


def test_diffusers_pipeline(run, tmp_path):
    shown = run("diffusers_pipeline", "--tiny", "--out", "quantized")
    assert 0 < number("mean squared difference", shown) < 0.05
    assert "loaded, the same images: True" in shown
    assert tdq.is_frozen(tdq.load(tmp_path / "quantized/unet"))
    # The written pipeline is one that the example takes, too: its denoiser is frozen already.
    with pytest.raises(tdq.TDQError, match="quantized already"):
        run("diffusers_pipeline", "quantized", "--tiny")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:kernel distance")
def test_evaluate_and_report(run, tmp_path):
    shown = run("evaluate_and_report", "--tiny", "--out", "runs")
    assert re.search(r"^temporal +tiny-temporal W4A5", shown, re.M)
    records = {name: Record.read(tmp_path / "runs" / name) for name in ("float", "temporal")}
    assert records["float"].paired is None
    assert 0 < records["temporal"].paired["metrics"]["mse"]["value"] < 0.05
    page = (tmp_path / "runs/report.html").read_text()
    assert "One model, float and quantized" in page
    assert "tiny-temporal" in page or "W4A5" in page
