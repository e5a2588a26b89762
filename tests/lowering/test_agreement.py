"""An engine that computes something else than the frozen model is refused."""

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import BackendError, ExportError
from tdquant.lowering import exporters
from tdquant.lowering.agreement import ALIKE, DRAWS, difference, require_agreement
from tdquant.lowering.openvino import session as openvino
from tdquant.lowering.session import ENGINES, ExportedModel
from tdquant.numerics.grid import Grid
from tests.lowering.models import One
from tests.lowering.models import frozen as frozen_layers


@pytest.fixture
def linear():
    """A linear layer with 4-bit inputs, whose steps at t = 0 are 0.5."""
    torch.manual_seed(0)
    return frozen_layers(One(nn.Linear(8, 8)), grid=Grid.signed(4, narrow=False))


def agree(run, model, x, t=0.0):
    calls = []

    def counted(*args):
        calls.append(args)
        with torch.no_grad():
            return run(*args)

    time = torch.tensor(t)
    require_agreement(counted, counted(x, time), model, (x, time), {}, "abacus", BackendError)
    return len(calls)


def step_of(model):
    return float(model.layer.input_quantizer.scale(torch.zeros(1), None, None))


def test_a_difference_is_relative_and_knows_no_numbers_where_there_are_none():
    y, nan = torch.tensor([3.0, 4.0]), torch.tensor([3.0, float("nan")])
    assert difference(y * 1.1, y) == pytest.approx(0.01, rel=1e-5)
    assert difference(y, nan) == difference(nan, nan) == 0
    assert difference(nan, y) == difference(y[:1], y) == float("inf")
    assert difference(torch.full((2,), 1e-9), torch.zeros(2)) < ALIKE


def test_equal_arithmetic_is_one_call(linear):
    assert agree(linear, linear, torch.randn(2, 8)) == 1


def test_another_arithmetic_is_refused_with_its_size(linear):
    with pytest.raises(BackendError, match=r"abacus(.|\n)*3 % of its output(.|\n)*onednn"):
        agree(lambda x, t: linear(x, t) * 1.03, linear, torch.randn(2, 8))


def test_an_unlucky_call_is_forgiven(linear):
    """One number that is rounded to the other side, in the first call alone."""
    seen = []

    def once(x, t):
        seen.append(x)
        return linear(x, t) * (1.5 if len(seen) == 1 else 1.0)

    assert agree(once, linear, torch.randn(2, 8)) == 2


def test_every_call_is_compared(linear):
    seen = []

    def run(x, t):
        seen.append(x)
        return -linear(x, t)

    with pytest.raises(BackendError):
        agree(run, linear, torch.randn(2, 8))
    assert len(seen) == DRAWS
    assert not torch.equal(seen[0], seen[1])


def test_numbers_in_the_middle_of_two_codes_fall_to_either_side(linear):
    step, codes = step_of(linear), torch.arange(-8.0, 8).reshape(2, 8).clamp(max=6)
    lower = lambda x, t: linear(x - 1e-4 * step, t)  # noqa: E731
    assert difference(lower((codes + 0.5) * step, 0), linear((codes + 0.5) * step, 0)) > ALIKE
    assert agree(lower, linear, (codes + 0.5) * step) == 1


def test_numbers_that_are_nowhere_near_do_not(linear):
    step, codes = step_of(linear), torch.arange(-8.0, 8).reshape(2, 8).clamp(max=6)
    with pytest.raises(BackendError):
        agree(lambda x, t: linear(x + step, t), linear, codes * step)


def test_numbers_that_are_none_are_refused(linear):
    with pytest.raises(BackendError, match="inf"):
        agree(lambda x, t: linear(x, t) / 0, linear, torch.randn(2, 8))


class Off(nn.Module):
    """A session whose output is 5 percent off."""

    def __init__(self, session):
        super().__init__()
        self.session = session

    def forward(self, *args, **kwargs):
        return self.session(*args, **kwargs) * 1.05


@pytest.fixture
def off(monkeypatch):
    right = openvino._session
    monkeypatch.setattr(openvino, "_session", lambda frozen, call: Off(right(frozen, call)))


def test_compile_refuses_the_engine_and_auto_takes_the_next(frozen, x, off):
    example = (x, torch.tensor(3))
    with pytest.raises(BackendError, match=r"OpenVINO computes something else(.|\n)*5 %"):
        tdq.compile(frozen, "openvino", example)
    choice = tdq.compile(frozen, example=example).tdq_backend
    assert choice.backend == "onednn"
    assert "5 % of its output" in choice.passed_over["openvino"]
    tdq.compile(frozen, "openvino", example, check=False)


def test_the_first_call_is_compared_without_an_example(frozen, x, off):
    named, auto = tdq.compile(frozen, "openvino"), tdq.compile(frozen)
    unchecked = tdq.compile(frozen, "openvino", check=False)
    with torch.no_grad():
        with pytest.raises(BackendError, match="something else"):
            named(x, 3)
        with pytest.warns(UserWarning, match="something else"):
            y = auto(x, 3)
        assert difference(y, frozen(x, 3)) <= ALIKE
        assert difference(unchecked(x, 3), frozen(x, 3)) == pytest.approx(0.05**2, rel=1e-2)


def test_half_precision_models_agree(frozen, x):
    fast = tdq.compile(frozen.bfloat16(), "openvino", (x.bfloat16(), torch.tensor(3)))
    assert isinstance(fast, ExportedModel)


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
def test_export_refuses_a_file_that_computes_something_else(suffix, tmp_path, monkeypatch):
    model = frozen_layers(One(nn.Linear(6, 5)))
    path, example = tmp_path / f"model{suffix}", (torch.randn(2, 6), torch.tensor(3.0))
    right = ENGINES[suffix]

    def off(*args):
        about, engine = right(*args)
        return about, lambda inputs: [1.05 * y for y in engine(inputs)]

    monkeypatch.setitem(exporters.ENGINES, suffix, off)
    with pytest.raises(ExportError, match=r"something else(.|\n)*5 %"):
        tdq.export(model, path, example)
    assert list(tmp_path.iterdir()) == []
    assert tdq.export(model, path, example, check=False).is_file()
