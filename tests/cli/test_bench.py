"""``tdquant bench`` and ``tdquant export`` on a saved model."""

import json

import pytest
import torch

import tdquant as tdq
from tdquant.cli import main
from tdquant.errors import BackendError
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


class Broken(Pretended):
    """A worker that ends when it is to work, unless it runs one of some backends."""

    fine = ()

    def seconds(self):
        if self.config.backend in self.fine:
            return super().seconds()
        raise BackendError("the process has ended", where=self.config.backend)


@pytest.mark.parametrize(
    ("fine", "status"),
    [((), 1), (("float",), 1), (("openvino",), 0), (("float", "openvino", "auto"), 0)],
)
def test_bench_fails_where_nothing_that_was_asked_about_ran(
    saved, tmp_path, monkeypatch, capsys, fine, status
):
    monkeypatch.setattr("tdquant.lab.bench.run.Worker", Broken)
    monkeypatch.setattr(Broken, "fine", fine)
    out = tmp_path / "b.json"
    words = ["--model", str(saved), "--backends", "float,auto,openvino", "--checked", "1"]
    assert main(["bench", *words, "--runs", "2", "--quiet", "--out", str(out)]) == status
    said = capsys.readouterr()
    failed = {"float", "auto", "openvino"} - set(fine)
    assert {name for name in failed if f"{name}: not run: the process" in said.out} == failed
    if status:
        assert "none of 2 backends ran" in said.err
        assert "auto: the process has ended; openvino: the process has ended" in said.err
    else:
        assert not said.err
    assert [bool(row["problem"]) for row in json.loads(out.read_text())["rows"]] == [
        name in failed for name in ("float", "auto", "openvino")
    ]


def test_bench_of_the_float_model_alone(saved, monkeypatch):
    monkeypatch.setattr("tdquant.lab.bench.run.Worker", Pretended)
    assert main(["bench", "--model", str(saved), "--backends", "float", "--checked", "1"]) == 0


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
