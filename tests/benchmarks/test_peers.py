"""The comparison with other quantizers, on made-up ones and a tiny model."""

import json
import os
import signal
from typing import ClassVar

import pytest
import torch
from benchmarks.peers import __main__ as command
from benchmarks.peers import graphs, world
from benchmarks.peers.apart import EndedError, apart
from benchmarks.peers.nncf import NNCF, SAMPLES, samples
from benchmarks.peers.ours import BITS, Default, InPyTorch, Linear
from benchmarks.peers.products import linear_macs, torch_products
from benchmarks.peers.registry import PEERS
from scripts.results.peers import beside_peers, peers_by_bytes, peers_in_short
from torch import nn

import tdquant as tdq
from tdquant.errors import ModelError
from tests.docs.programs import DOCS

CALLS = {"count": 4, "steps": 3, "batch": 4}


class Rounding(InPyTorch):
    """Rounds weights to a fixed step, and counts how often."""

    name = "rounding"
    settings: ClassVar = {"W8A8": 2.0**-7, "W4A8": 2.0**-3}
    note = "for tests"
    made = 0

    def quantize(self, model, calls):
        type(self).made += 1
        assert sum(len(x) for x, _ in calls) == 12
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_((weight / self.options).round() * self.options)
        return model

    def layers(self, model):
        return {path: (True, "conv" in path) for path, _ in model.named_modules()}


class Absent(Rounding):
    name = "absent"
    package = "no_such_package.inside"
    distribution = "no-such-package"


class Crashing(Rounding):
    name = "crashing"
    settings: ClassVar = {"W8A8": None}

    def quantize(self, model, calls):
        os.kill(os.getpid(), signal.SIGKILL)


class Failing(Rounding):
    name = "failing"
    settings: ClassVar = {"W8A8": None}

    def quantize(self, model, calls):
        raise RuntimeError("no kernel\nfor this processor")


def here(function, *args, threads):
    torch.set_num_threads(threads)
    return function(*args)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "RECORDED", CALLS)
    monkeypatch.setattr(command, "RECORDED", CALLS)
    monkeypatch.setattr(Rounding, "made", 0)
    threads = torch.get_num_threads()

    def call(*words, peers=(InPyTorch, Rounding, Absent, Failing), apart=here):
        given = "--models tiny --bits W8A8 W4A8 --images 3 --steps 2 --rounds 1 --batch 2"
        out = tmp_path / "peers.json"
        call.status = command.main([*given.split(), "--out", str(out), *words], peers, apart)
        found = json.loads(out.read_text())
        return found, {(row["setting"], row["project"]): row for row in found["rows"]}

    yield call
    torch.set_num_threads(threads)


def test_rows_have_error_bytes_share_and_time(run):
    found, rows = run()
    assert found["machine"]["cores"] >= 1
    exact, eight, four = (rows[key] for key in (("float", "float, PyTorch"), ("W8A8", "rounding"),
                                                ("W4A8", "rounding")))  # fmt: skip
    assert exact["mean"] == exact["geometric"] == exact["weights"] == 0
    for name in ("mean", "median", "geometric"):
        assert 0 < eight[name] < four[name]
    assert eight["geometric"] <= eight["mean"]
    assert eight["weights"] == 1
    assert 0 < eight["inputs"] < 1
    parameters = sum(p.numel() for p in world.load("tiny").unet.parameters())
    assert 4 * parameters < eight["bytes"] < 4.5 * parameters
    assert eight["integer"] == 0 < eight["products"]
    assert min(eight["ms"], eight["float_ms"], eight["seconds"]) > 0


def test_what_is_not_there_or_fails_says_so(run):
    _, rows = run("--parts", "error")
    assert rows["W8A8", "absent"]["missing"] == "pip install no-such-package"
    assert rows["W8A8", "failing"]["failed"] == "RuntimeError: no kernel"
    assert "mean" not in rows["W8A8", "failing"]
    assert run.status == 0


def test_a_run_of_which_every_row_fails_has_failed(run, capsys):
    run("--parts", "error", peers=(Failing,))
    assert run.status == 1
    assert "1 of 1 rows failed" in capsys.readouterr().err
    run("--parts", "error", peers=(Failing,))  # it is not tried again unasked
    assert run.status == 0


def test_a_crash_is_a_row(run):
    _, rows = run("--parts", "error", peers=(Rounding, Crashing), apart=apart)
    assert rows["W8A8", "crashing"]["failed"] == "ended by SIGKILL"
    assert rows["W8A8", "rounding"]["mean"] < rows["W4A8", "rounding"]["mean"]
    assert Rounding.made == 0


def test_an_error_in_a_process_of_its_own_is_an_error_here(capfd):
    with pytest.raises(EndedError, match="ended with 1"):
        apart(int, "one", threads=1)
    assert "invalid literal" in capfd.readouterr().err


def test_a_second_run_adds_what_is_missing_alone(run):
    _, first = run("--parts", "error")
    assert Rounding.made == 2
    _, second = run("--parts", "error")
    assert Rounding.made == 2
    assert second == first
    _, timed = run("--parts", "time", "--only", "rounding")
    assert Rounding.made == 4
    row = timed["W4A8", "rounding"]
    assert row["ms"] > 0
    assert row["mean"] == first["W4A8", "rounding"]["mean"]
    assert "ms" not in timed["float", "float, PyTorch"]
    run("--again", "round", "--parts", "error")
    assert Rounding.made == 6


def test_samples_of_a_row_do_not_depend_on_the_run(run, tmp_path):
    _, first = run("--parts", "error", "--only", "rounding")
    (tmp_path / "peers.json").unlink()
    _, second = run("--parts", "error")
    assert second["W4A8", "rounding"]["mean"] == first["W4A8", "rounding"]["mean"]


def test_rows_of_other_settings_are_not_mixed_in(run):
    run("--only", "rounding", "--parts", "error")
    with pytest.raises(SystemExit, match=r"another images.*\n.*another --out"):
        run("--images", "4")


def test_models_are_those_of_the_package_and_of_the_studies():
    assert world.load("anywhere/tiny").name == "tiny"
    with pytest.raises(ModelError, match="no small model 'unheard-of'"):
        world.load("studies/models/unheard-of")


def test_multiplications_of_layers():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(2, 4, 3, groups=2), nn.Linear(4, 5)

        def forward(self, x, t):
            return self.linear(self.conv(x).flatten(2).transpose(1, 2))

    model = Model()
    call = torch.randn(1, 2, 5, 5), torch.tensor(3)
    # Nine places of four channels from nine values of one channel each; nine rows.
    assert linear_macs(model, call) == {"conv": 9 * 4 * 9, "linear": 9 * 5 * 4}
    assert not model.conv._forward_hooks
    assert torch_products(model, call) == (0, 2)


def test_integer_products_are_counted():
    def model(x, t):
        return torch._int_mm(x, x) + (x.float() @ x.float()).int()

    assert torch_products(model, (torch.ones(32, 32, dtype=torch.int8), torch.tensor(0))) == (1, 2)


def small(x, t):
    return nn.functional.silu(x)


class Convolutions(nn.Module):
    """16 channels in and out, of which the first layer has a ninth of the work of the second."""

    def __init__(self):
        super().__init__()
        self.point, self.square = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.time = nn.Linear(1, 16)

    def forward(self, x, t):
        time = self.time(t.reshape(-1, 1).float())
        return self.square(small(self.point(x) + time[:, :, None, None], t))


def test_the_share_of_a_float_graph_is_nothing():
    pytest.importorskip("openvino")
    from benchmarks.graphs import float_graph

    model, call = Convolutions(), (torch.randn(1, 16, 8, 8), torch.tensor([5]))
    graph = float_graph(model, call)
    assert graphs.quantized_share(graph) == 0
    engine = graphs.OnOpenVINO(graph, threads=1)
    x = torch.randn(3, 16, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(engine(x, torch.tensor(5)), model(x, torch.tensor([5])))
    assert engine.products(x)[0] == 0


@pytest.mark.slow
def test_nncf_quantizes_all_convolutions():
    pytest.importorskip("nncf")
    torch.manual_seed(0)
    model = Convolutions().eval()
    calls = [(torch.randn(4, 16, 8, 8), torch.tensor(t)) for t in (1, 5, 9)]
    peer = NNCF("W8A8")
    graph = peer.quantize(model, calls)
    assert graphs.quantized_share(graph) > 0.99
    run = peer.sampled(graph, calls[0])
    with torch.no_grad():
        exact = model(*calls[1])
    error = (run(*calls[1]) - exact).square().mean() / exact.square().mean()
    assert 0 < error < 0.01
    integer, products = peer.products(graph, run, calls[0])
    assert 2 <= integer <= products
    assert peer.bytes(graph) < 4 * sum(p.numel() for p in model.parameters())


def test_samples_for_calibration_are_single_and_distinct():
    calls = [(torch.full((16, 1), 100.0 * i) + torch.arange(16)[:, None], torch.tensor(i))
             for i in range(50)]  # fmt: skip
    drawn = samples(calls)
    assert len({float(x[0, 0]) for x, _ in drawn}) == SAMPLES
    assert all(x.shape == (1, 1) and x[0, 0] // 100 == t[0] for x, t in drawn)


def test_registered_quantizers_can_be_told_apart_and_installed():
    assert len({kind.name for kind in PEERS}) == len(PEERS)
    assert all(set(kind.settings) <= {"float", *BITS} for kind in PEERS)
    lines = (DOCS.parent / "pyproject.toml").read_text().splitlines()
    extras = [
        line for line in lines if line.startswith(("bench = ", "compress = ", "openvino = "))
    ]
    named = " ".join([*extras, "torch tdquant"])
    assert all(kind.pip().split()[-1] in named for kind in PEERS)


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.several = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.one = nn.Linear(4, 4)

    def forward(self, x, t):
        return self.one(self.several(x))


def test_the_parts_of_a_layer_speak_for_it():
    recipe = tdq.Recipe(8, 8, edges=8, exclude=("several.1", "one"))
    layers = Default("W8A8").layers(tdq.quantize(Parts(), recipe))
    assert layers["several.0"] == layers["several"] == (True, True)
    assert layers["several.1"] == layers["one"] == (False, False)


def test_our_linear_row_is_for_models_with_convolutions():
    assert Linear.applies(Convolutions())
    assert not Linear.applies(nn.Sequential(nn.Linear(2, 2)))


ROW = {
    "model": "m", "setting": "W8A8", "note": "", "version": "x 1", "weights": 1.0, "inputs": 0.9,
    "mean": 0.02, "median": 0.01, "geometric": 0.004, "bytes": 12345, "integer": 3,
    "products": 4, "ms": 2.0, "float_ms": 8.0, "seconds": 7.0,
}  # fmt: skip
SHARED = {
    "machine": {"processor": "P", "cores": 2, "instructions": "I", "torch": "T"},
    "settings": {"images": 3, "steps": 2, "rounds": 1, "threads": 1},
}


def test_the_table_shows_what_was_measured_and_what_was_not():
    key = {"model": "m", "setting": "W8A8", "note": ""}
    untimed = {**ROW, "project": "untimed", "note": "eager"}
    del untimed["ms"]
    rows = [
        {**ROW, "project": "good"},
        untimed,
        {**key, "project": "gone", "missing": "pip install g"},
        {**key, "project": "lost", "failed": "ImportError: no"},
    ]
    shown = beside_peers({**SHARED, "rows": rows})
    errors = "100% | 90% | 0.01 | 0.004 | 0.02 | 12 | 3 of 4"
    assert f"| W8A8 | good | {errors} | 2.0 | 0.25 | 7 |\n" in shown
    assert f"| W8A8 | untimed (eager) | {errors} | - | - | 7 |\n" in shown
    assert "| gone: not installed, `pip install g` | - | - |" in shown
    assert "| lost: `ImportError: no` | - | - |" in shown


def test_the_short_table_leaves_out_those_that_quantize_little():
    others = [
        ("tdquant, default", 0.9, 0.03),
        ("tdquant, static", 0.9, 0.01),
        ("all of it", 0.9, 0.02),
        ("little of it", 0.1, 0.001),
    ]
    rows = [{**ROW, "project": n, "inputs": i, "median": m} for n, i, m in others]
    shown = peers_in_short({**SHARED, "rows": rows})
    assert "| m | 1.5 / 1 all of it |" in shown
    assert "little" not in shown


def test_the_short_table_compares_with_static_scales_where_nobody_else_can():
    found = [("tdquant, default", 0.03), ("tdquant, static", 0.06)]
    rows = [{**ROW, "project": n, "setting": "W8A5", "median": m} for n, m in found]
    assert "| m | - | - | - | 0.5 / 1 static |" in peers_in_short({**SHARED, "rows": rows})
    assert "| m | - | - | - | - |" in peers_in_short({**SHARED, "rows": rows[:1]})


def test_the_short_table_compares_what_leaves_as_little_in_float():
    found = [
        ("tdquant, default", 0.7, 0.01),
        ("tdquant, edges of 8 bits", 1.0, 0.03),
        ("x", 1, 0.06),
    ]
    rows = [{**ROW, "project": n, "weights": w, "median": m} for n, w, m in found]
    assert "| m | 0.5 / 1 x, edges=8 |" in peers_in_short({**SHARED, "rows": rows})
    assert "| m | 0.17 / 1 x |" in peers_in_short({**SHARED, "rows": [rows[0], rows[2]]})


def test_errors_in_no_more_bytes():
    def row(project, setting, bytes, median, weights=1.0):
        return {
            "model": "m", "project": project, "setting": setting, "bytes": bytes,
            "weights": weights, "median": median, "mean": 2 * median,
        }  # fmt: skip

    rows = [
        row("x", "W4A8", 2000, 0.4),
        row("tdquant, default", "W8A8", 3000, 0.01),
        row("tdquant, default", "W5A8", 2000, 0.1),
        row("tdquant, default", "W4A8", 1000, 0.3),
        row("tdquant, static", "W8A8", 500, 0.001),
        row("y", "W4A8", 900, 0.1),
        row("linear layers alone", "W4A8", 9000, 0.1, weights=0.01),
    ]
    shown = peers_by_bytes({**SHARED, "rows": rows})
    assert "| m | x | W4A8 | 2 | W5A8 | 2 | 0.25 / 0.25 |" in shown
    assert "| m | y | W4A8 | 1 | - | - | - |" in shown
    assert "linear layers" not in shown
