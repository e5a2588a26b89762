"""The benchmark: processes of their own, rows for what cannot run, and numbers that are right."""

import json
import math
import os
from typing import ClassVar

import pytest
import torch

import tdquant as tdq
from tdquant.cli import main
from tdquant.errors import BackendError, ModelError
from tdquant.lab.bench import subject_from_embedded, subject_from_folder
from tdquant.lab.bench.run import BenchResult, BenchRow, run_bench
from tdquant.lab.bench.subject import float_model
from tdquant.lab.bench.table import text_table
from tdquant.lab.bench.worker import Worker, WorkerConfig, is_exported
from tdquant.lowering import BACKENDS
from tdquant.models import load_embedded
from tdquant.quantizers import activation_quantizers
from tdquant.support.machine import machine
from tests.conftest import quantized
from tests.lab.bench.saved import saved_unet


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = saved_unet(tmp_path_factory.mktemp("bench") / "model")
    with subject_from_folder(folder) as made:
        yield made


@pytest.fixture(scope="module")
def result(subject):
    """Of two processes."""
    return run_bench(
        subject, ["float", "reference"], runs=3, steps=10, checked=2, batch=2, progress=False
    )


class Pretended:
    """A worker without a process, which tells when it was asked what."""

    said: ClassVar[list] = []

    def __init__(self, config):
        if config.backend == "openvino":
            raise BackendError("the package 'openvino' cannot be imported")
        self.config, self.turns = config, 0
        self.about = {"build_seconds": 1.0, "kernels": {}, "choice": ""}

    def seconds(self):
        self.said.append(self.config.backend)
        self.turns += 1
        if self.config.backend == "cpu" and self.turns == 2:
            raise BackendError("its process ended with status -9")
        return 0.01 * self.turns

    def output(self, x, t):
        return x * 0

    def memory(self):
        return {"bare": 100.0, "building": 300.0, "running": 150.0}

    def close(self):
        self.said.append(f"{self.config.backend} closed")


def test_rows_hold_what_was_measured(subject, result):
    float_row, exact = result.rows[:2]
    assert len(exact.milliseconds) == 3
    assert exact.images_per_second == pytest.approx(2 / (exact.median / 1000 * 10))
    assert exact.megabytes["running"] > exact.megabytes["bare"] > 50
    assert exact.disk == pytest.approx(
        sum(f.stat().st_size for f in subject.folder.iterdir()) / 1e6
    )
    assert sum(exact.kernels.values()) >= 10
    assert exact.kernels["exact integers"] > 0
    assert float_row.mse < 1e-10  # channels last rounds otherwise
    assert not float_row.kernels


def test_errors_are_those_of_the_frozen_model(subject, result):
    float_net, frozen = subject.float_model(), tdq.load(subject.folder)
    pairs = list(
        tdq.trajectories(float_net, subject.scheduler, 4, subject.shape, steps=2, batch=4, seed=2)
    )
    with torch.no_grad():
        errors = [(frozen(x, t) - float_net(x, t)).square().mean() for x, t in pairs]
    assert result.rows[1].mse == pytest.approx(float(sum(errors) / 2), rel=0.05)
    assert 0 < result.rows[1].sqnr < 60


def test_all_take_turns_and_failures_get_rows_that_say_why(subject, monkeypatch):
    monkeypatch.setattr("tdquant.lab.bench.run.Worker", Pretended)
    Pretended.said.clear()
    backends = ["float", "openvino", "cpu", "frozen"]
    for name in ("openvino", "cpu"):
        monkeypatch.setitem(BACKENDS, name, None)
    found = run_bench(subject, backends, runs=3, checked=1, progress=False)
    turns = ["float", "cpu", "frozen", "float", "cpu", "cpu closed", "frozen", "float", "frozen"]
    assert Pretended.said == [*turns, "float closed", "frozen closed"]
    rows = {row.backend: row for row in found.rows}
    assert list(rows) == backends
    assert rows["float"].median == pytest.approx(20)
    assert rows["float"].spread == pytest.approx(0.25)
    assert "openvino" in rows["openvino"].problem
    assert "-9" in rows["cpu"].problem
    table = text_table(found)
    assert "openvino: not run: the package 'openvino' cannot be imported" in table
    assert [line.split()[0] for line in table.splitlines()[2:4]] == ["float", "frozen"]
    assert table.splitlines()[3].split()[5:7] == ["150", "50"]


def test_json_has_medians_and_the_machine(result, tmp_path):
    result.write_json(tmp_path / "b.json")
    record = json.loads((tmp_path / "b.json").read_text())
    assert record["rows"][1]["median_milliseconds"] == result.rows[1].median
    assert record["machine"]["threads"] == record["settings"]["threads"] == 1
    assert record["machine"]["processor"]


@pytest.mark.slow
def test_a_process_that_ends_is_explained(subject):
    threads = os.environ.get("OMP_NUM_THREADS")
    worker = Worker(WorkerConfig("frozen", subject.embedded, subject.folder, subject.shape, 1, 1))
    try:
        assert worker.output(torch.zeros(1, *subject.shape), torch.tensor(3)).shape[0] == 1
        worker._process.kill()
        with pytest.raises(BackendError, match="its process ended"):
            worker.seconds()
    finally:
        worker.close()
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_unknown_backends_are_all_named(subject, tmp_path):
    with pytest.raises(BackendError, match=r"'abacus', 'no\.xml'"):
        run_bench(subject, ["float", "abacus", "no.xml"], progress=False)
    with pytest.raises(BackendError, match="no backends"):
        run_bench(subject, [], progress=False)
    (tmp_path / "some.xml").touch()
    assert is_exported(str(tmp_path / "some.xml"))
    assert not is_exported("cpu")


def check_float_model(folder, shape):
    frozen, plain = tdq.load(folder), float_model(None, folder)
    assert not hasattr(plain, "tdq")
    assert not list(activation_quantizers(plain))
    x = torch.randn(2, *shape)
    weights = dict(plain.named_parameters())
    for name, parameter in frozen.named_parameters():
        if name in weights:
            assert torch.equal(parameter, weights[name])
    with torch.no_grad():
        exact = plain(x, torch.tensor(3))
        assert 0 < (exact - frozen(x, torch.tensor(3))).abs().max() < exact.abs().max()


def test_the_float_model_of_a_folder_has_its_weights(subject):
    check_float_model(subject.folder, subject.shape)


@pytest.mark.slow
def test_an_embedded_model_is_quantized_by_the_recipe():
    recipe = tdq.Recipe(weights=4, activations=8, scale="static", attention=8)
    with subject_from_embedded("tiny", recipe, progress=False) as made:
        assert (
            made.float_model().state_dict().keys()
            == load_embedded("tiny").unet.state_dict().keys()
        )
        assert {row.weight_bits for row in tdq.summary(tdq.load(made.folder))} >= {4, 8}
        check_float_model(made.folder, made.shape)


def test_a_folder_is_a_subject(subject):
    assert subject.shape == (3, 8, 8)
    assert "own weights" in subject.against


def test_a_folder_of_an_unknown_class_says_so(tmp_path):
    path = tdq.save(tdq.freeze(quantized(weights=4)), tmp_path / "m")
    with pytest.raises(ModelError, match="cannot be built"), subject_from_folder(path):
        pass


def test_one_run_has_no_spread():
    row = BenchRow("cpu", milliseconds=[2.0], megabytes={"running": 2.0, "bare": 1.0})
    assert math.isnan(row.spread)
    settings = {"model": "m", "batch": 1, "steps": 1, "runs": 1, "threads": 1, "against": "it"}
    line = text_table(BenchResult([row], settings, machine())).splitlines()[2]
    assert line.split()[:4] == ["cpu", "2.00", "-", "-"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--backends", "abacus"], "no backend 'abacus'"),
        (["--model", "nowhere"], "no such model"),
    ],
)
def test_mistakes_end_before_anything_is_measured(words, error, capsys):
    assert main(["bench", "--model", "tiny", *words]) == 1
    assert error in capsys.readouterr().err
