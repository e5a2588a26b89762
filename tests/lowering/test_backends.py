"""``compile``: which backend it takes, and how it says why."""

import sys
import threading
import types
import warnings

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import BackendError, ClockError, MissingDependencyError
from tdquant.lowering import backends as compiling
from tdquant.lowering.backends import ALIASES, BACKENDS, Choice, time_calls
from tdquant.lowering.openvino import session as openvino
from tdquant.lowering.session import ExportedModel, Session

EXAMPLE = (torch.zeros(1, 6, 8, 8), torch.tensor(3))


class Named(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x, t):
        return x


def absent(frozen, example=None):
    raise MissingDependencyError(
        "the package 'abacus' cannot be imported", fix='pip install "tdquant[abacus]"'
    )


def broken(frozen, example=None):
    raise RuntimeError("Check 'beads' failed\nat bead.cpp:7")


@pytest.fixture
def backends(monkeypatch):
    """Made-up backends in the place of all: one that is absent, one that breaks, two that run."""
    for name in list(BACKENDS):
        monkeypatch.delitem(BACKENDS, name)
    monkeypatch.setattr(compiling, "PREFERENCE", {"cpu": ("absent", "broken", "good", "last")})
    made = []

    def maker(name):
        def lower(frozen, example=None):
            made.append(name)
            return Named(name)

        return lower

    BACKENDS.update(absent=absent, broken=broken, good=maker("good"), last=maker("last"))
    yield made
    for name in ("absent", "broken", "good", "last"):
        BACKENDS.pop(name, None)


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("example", [None, EXAMPLE])
def test_the_first_that_runs(frozen, backends, capsys, alias, example):
    model = tdq.compile(frozen, alias, example)
    assert backends == ["good"]  # nothing else was even built
    assert model.name == "good"
    assert model.tdq_backend == Choice(
        "good",
        "the first that runs here",
        {
            "absent": "the package 'abacus' cannot be imported (pip install \"tdquant[abacus]\")",
            "broken": "RuntimeError: Check 'beads' failed",
        },
    )
    assert str(tdq.summary(model)).endswith(f"backend: {model.tdq_backend}")
    assert 'pip install "tdquant[abacus]"' in str(model.tdq_backend)
    assert capsys.readouterr() == ("", "")


def test_the_first_choice_is_named_as_such(frozen, backends):
    BACKENDS["absent"] = BACKENDS["last"]
    assert tdq.compile(frozen).tdq_backend == Choice("absent", "the first choice")


def test_nothing_runs(frozen, backends):
    for name in BACKENDS:
        BACKENDS[name] = absent
    with pytest.raises(BackendError, match=r"no backend runs(.|\n)*abacus"):
        tdq.compile(frozen)


def test_a_named_backend_raises_its_own_error(frozen, backends):
    with pytest.raises(MissingDependencyError):
        tdq.compile(frozen, "absent")
    with pytest.raises(RuntimeError, match="beads"):
        tdq.compile(frozen, "broken")
    assert tdq.compile(frozen, "last").tdq_backend == Choice("last", "as asked")


def test_an_unknown_backend_names_all(frozen):
    with pytest.raises(BackendError, match=r"onednn(.|\n)*auto, cpu"):
        tdq.compile(frozen, "abacus")


def test_cpu_is_no_place_for_a_model_elsewhere(frozen):
    with pytest.raises(BackendError, match="'meta'"):
        tdq.compile(frozen.to("meta"), "cpu")


def test_without_openvino_the_extra_is_named(frozen, monkeypatch, x):
    monkeypatch.setitem(sys.modules, "openvino", None)
    fast = tdq.compile(frozen)
    assert fast.tdq_backend.backend == "onednn"
    assert 'pip install "tdquant[openvino]"' in str(tdq.summary(fast))
    with torch.no_grad():
        assert fast(x, torch.tensor(3)).shape == x.shape


@pytest.mark.parametrize("version", ["2024.6.0-17404-4c0f47d2335", "2023.3"])
def test_an_openvino_that_is_too_old(frozen, monkeypatch, version):
    old = types.SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "openvino", old)
    with pytest.raises(MissingDependencyError, match=r"older than 20\d\d"):
        tdq.compile(frozen, "openvino")
    choice = tdq.compile(frozen).tdq_backend
    assert choice.backend == "onednn"
    assert f"openvino {version} is older" in choice.passed_over["openvino"]
    assert "--upgrade" in choice.passed_over["openvino"]


@pytest.fixture
def failing(monkeypatch):
    """OpenVINO that fails when the model is exported; the number of its tries."""
    tries = []

    def fail(frozen, example):
        tries.append(example)
        raise RuntimeError("Check 'false' failed")

    monkeypatch.setattr(openvino, "_session", fail)
    return tries


def test_an_engine_that_fails_with_an_example(frozen, failing):
    choice = tdq.compile(frozen, example=EXAMPLE).tdq_backend
    assert choice.backend == "onednn"
    assert "Check 'false' failed" in choice.passed_over["openvino"]


def test_an_engine_that_fails_at_the_first_call_gives_way_once(frozen, failing, x):
    fast = tdq.compile(frozen)
    assert fast.tdq_backend.backend == "openvino"
    t = torch.tensor([3, 600, 999])
    found = [None] * 4

    def run(i):
        with torch.no_grad():
            found[i] = fast(x, timestep=t) if i % 2 else fast(x, t)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        workers = [threading.Thread(target=run, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    told = [str(w.message) for w in warned if "backend:" in str(w.message)]
    assert len(told) == len(failing) == 1
    assert "onednn" in told[0]
    assert "Check 'false' failed" in told[0]
    assert fast.tdq_backend.backend == "onednn"
    assert "Check 'false' failed" in fast.tdq_backend.passed_over["openvino"]
    assert "int8 onednn" in str(tdq.summary(fast)) or "float" in str(tdq.summary(fast))
    with torch.no_grad():
        exact = frozen(x, t)
    for y in found:
        assert (y - exact).abs().median() <= 1e-5 * exact.abs().max()


def test_a_wrong_first_call_costs_no_engine(frozen, x):
    fast = tdq.compile(frozen)
    with torch.no_grad():
        with pytest.raises(ClockError):
            fast(x, torch.tensor([1, 2]))
        assert fast.tdq_backend == Choice("openvino", "the first choice")
        fast(x, torch.tensor(3))
    assert isinstance(fast, ExportedModel)
    assert isinstance(fast.session, Session)


def test_the_summary_shows_backend_and_kernels(frozen):
    table = str(tdq.summary(tdq.compile(frozen, "reference")))
    assert "exact integers" in table
    assert table.endswith("backend: reference, as asked")


def test_calls_are_timed_in_turns():
    order = []

    def model(name):
        return lambda x, t: order.append(name)

    found = time_calls({"a": model("a"), "b": model("b")}, EXAMPLE, runs=2, warmup=1)
    assert order == ["a", "b"] * 3
    assert set(found) == {"a", "b"}
    assert all(seconds >= 0 for seconds in found.values())
