"""``compile``: which backend it takes, and how it says why."""

import time

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import BackendError, MissingDependencyError
from tdquant.runtime import compile as compiling
from tdquant.runtime.compile import BACKENDS, Choice, time_calls

EXAMPLE = (torch.zeros(1, 6, 8, 8), torch.tensor(3))


class Slow(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x, t):
        time.sleep(self.seconds)
        return x


def absent(frozen, example=None):
    raise MissingDependencyError("the package 'abacus' cannot be imported", fix="pip install it")


@pytest.fixture
def backends(monkeypatch):
    """Three made-up backends in the place of all: one that is absent, a slow one, a fast one."""
    for name in list(BACKENDS):
        monkeypatch.delitem(BACKENDS, name)
    module = __import__("sys").modules[compiling.__module__]
    monkeypatch.setattr(module, "PREFERENCE", {"cpu": ("absent", "slow", "fast", "last")})
    monkeypatch.setattr(module, "SLOW", ("last",))
    made = []

    def maker(name, seconds):
        def lower(frozen, example=None):
            made.append(name)
            return Slow(seconds)

        return lower

    BACKENDS["absent"] = absent
    BACKENDS["slow"] = maker("slow", 0.02)
    BACKENDS["fast"] = maker("fast", 0.001)
    BACKENDS["last"] = maker("last", 0.0)
    yield made
    for name in ("absent", "slow", "fast", "last"):
        BACKENDS.pop(name, None)


def test_without_an_example_the_first_that_runs(frozen, backends, capsys):
    model = tdq.compile(frozen)
    assert backends == ["slow"]  # nothing else was even built
    choice = model.tdq_backend
    assert choice.backend == "slow"
    assert "abacus" in choice.passed_over["absent"]
    said = capsys.readouterr().out
    assert said.startswith("backend: slow")
    assert "abacus" in said


def test_with_an_example_the_fastest(frozen, backends, capsys):
    model = tdq.compile(frozen, example=EXAMPLE, verbose=False)
    assert model.tdq_backend.backend == "fast"
    assert set(model.tdq_backend.seconds) == {"slow", "fast"}  # the last resort is not timed
    assert "last" not in backends
    assert not capsys.readouterr().out


def test_the_last_resort(frozen, backends):
    BACKENDS["slow"] = BACKENDS["fast"] = absent
    model = tdq.compile(frozen, example=EXAMPLE, verbose=False)
    assert model.tdq_backend == Choice(
        "last",
        "the only one that runs here",
        passed_over=dict.fromkeys(("absent", "slow", "fast"), absent_words()),
    )


def absent_words():
    with pytest.raises(MissingDependencyError) as raised:
        absent(None)
    return raised.value.what


def test_nothing_runs(frozen, backends):
    for name in BACKENDS:
        BACKENDS[name] = absent
    with pytest.raises(BackendError, match=r"no backend runs(.|\n)*abacus"):
        tdq.compile(frozen)


def test_a_named_backend_raises_its_own_error(frozen, backends):
    with pytest.raises(MissingDependencyError):
        tdq.compile(frozen, "absent")
    assert tdq.compile(frozen, "last").tdq_backend == Choice("last", "as asked")


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
