"""``tdquant bench`` and ``tdquant export`` on a saved model."""

import json

import pytest
import torch

import tdquant as tdq
from tdquant.cli import main
from tests.conftest import quantized
from tests.lab.bench.saved import saved_unet


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return saved_unet(tmp_path_factory.mktemp("cli") / "model")


class Pretended:
    """A worker without a process."""

    def __init__(self, config):
        self.config = config
        self.about = {"build_seconds": 1.0, "kernels": {"int8": 3}, "choice": "why not"}

    def seconds(self):
        return 0.01

    def output(self, x, t):
        return x * 0

    def memory(self):
        return {"bare": 100.0, "building": 300.0, "running": 150.0}

    def close(self):
        pass


def test_bench_prints_a_table_and_writes_json(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tdquant.lab.bench.run.Worker", Pretended)
    threads = torch.get_num_threads()
    words = ["--model", str(saved), "--backends", "float,auto", "--threads", "1", "--batch", "2"]
    out = tmp_path / "b.json"
    try:
        assert main(["bench", *words, "--steps", "10", "--checked", "1", "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "auto: why not: 3 int8" in said
    assert "1 threads of" in said
    record = json.loads(out.read_text())
    assert record["settings"]["model"] == str(saved)
    assert [row["backend"] for row in record["rows"]] == ["float", "auto"]
    assert record["rows"][1]["images_per_second"] == pytest.approx(2 / (0.01 * 10))


def test_export_writes_a_file_that_opens(saved, tmp_path, capsys):
    out = tmp_path / "model.xml"
    assert main(["export", "--model", str(saved), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    frozen, session = tdq.load(saved), tdq.open_session(out)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 800])
    with torch.no_grad():
        exact = frozen(x, t)
        assert (session(x, t) - exact).abs().mean() <= 1e-2 * exact.abs().max()


def test_export_explains_what_it_cannot(saved, tmp_path, capsys):
    assert main(["export", "--model", str(saved), "--out", str(tmp_path / "m.bin")]) == 1
    assert "no exporter for '.bin'" in capsys.readouterr().err
    unknown = tdq.save(tdq.freeze(quantized(weights=4)), tmp_path / "unknown")
    assert main(["export", "--model", str(unknown), "--out", str(tmp_path / "m.xml")]) == 1
    assert "cannot be built" in capsys.readouterr().err
