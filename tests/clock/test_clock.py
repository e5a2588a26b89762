import copy
import threading
import warnings

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.clock import Clock, clock_of, find_timestep, outside_message, remove_clock
from tdquant.errors import ClockError, ConversionError
from tdquant.scales import StaticScale, TemporalScale, temporal
from tests.denoisers import Mixed, Plain, calls


class Probe(nn.Module):
    """Returns the time that its clock shows."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x, t, scale=1.0):
        return self.tdq.clock.read() * scale


@pytest.mark.parametrize(
    ("args", "kwargs"), [((None, 7), {}), ((None,), {"t": 7}), ((), {"x": None, "t": 7})]
)
def test_reads_positions_and_keywords(args, kwargs):
    model = Probe()
    Clock(model)
    assert model(*args, **kwargs).item() == 7


def test_forgets_after_the_call_even_if_it_fails():
    model = Probe()
    clock = Clock(model)
    with pytest.raises(TypeError):
        model(None, 7, scale=object())
    with pytest.raises(ClockError, match="no timestep"):
        clock.read()


def test_call_without_a_timestep():
    model = Probe()
    Clock(model)
    with pytest.raises(ClockError, match="without 't'"):
        model(None)


def test_timestep_by_token_is_that_of_the_sample():
    model = Probe()
    clock = Clock(model)
    model(None, torch.tensor([[7.0, 7.0, 7.0], [0.0, 3.0, 3.0]]))  # a given frame stands at 0
    assert clock.last.tolist() == [7.0, 3.0]
    model(None, torch.zeros(2, 1, 1))
    assert clock.last.tolist() == [0.0, 0.0]


def test_several_times_within_a_sample():
    model = Probe()
    Clock(model)
    with pytest.raises(ClockError, match=r"\(2, 3\)"):
        model(None, torch.tensor([[7.0, 7.0, 7.0], [0.0, 3.0, 2.0]]))


def test_argument_that_cannot_be_found():
    with pytest.raises(ConversionError, match="cannot be found"):
        find_timestep(Plain())
    with pytest.raises(ConversionError, match="no argument 'tau'"):
        find_timestep(Plain(), "tau")
    assert find_timestep(Plain(), "when") == ("when", 1)


def test_model_that_is_not_quantized():
    with pytest.raises(ConversionError, match="not quantized"):
        clock_of(Plain())


def test_copies_have_clocks_of_their_own():
    model = Probe()
    Clock(model)
    twin = copy.deepcopy(model)
    assert clock_of(twin) is not clock_of(model)
    assert twin(None, 3).item() == 3
    remove_clock(model)
    assert twin(None, 4).item() == 4


def test_two_models_do_not_share_time():
    outer, inner = Probe(), Probe()
    Clock(outer)
    Clock(inner)

    def both(x, t):
        return inner(None, 5), clock_of(outer).read()

    outer.forward = both
    first, second = outer(None, 9)
    assert (first.item(), second.item()) == (5, 9)


def test_threads_share_one_model(frozen, x):
    times = list(range(0, 960, 120))
    with torch.no_grad():
        expected = [frozen(x, torch.tensor(t)) for t in times]
    found = [None] * len(times)

    def work(i):
        with torch.no_grad():
            for _ in range(5):
                found[i] = frozen(x, torch.tensor(times[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(times))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_times_that_half_precision_rounds_out_of_range_are_no_mistake(frozen, x, dtype):
    """999 arrives as 1000 in bfloat16."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = frozen(x, torch.tensor(999.0).to(dtype))
    assert y.isfinite().all()
    assert outside_message(torch.tensor([0.1426], dtype=dtype), (0.1429, 1.0)) == ""
    assert "1008" in outside_message(torch.tensor(1008.0, dtype=dtype), (0, 999))


def test_out_of_range_is_clamped_with_one_warning(frozen, x):
    with pytest.warns(UserWarning, match="1500 lies outside"):
        y = frozen(x, torch.tensor(1500))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = frozen(x, torch.tensor(1500))
    assert torch.equal(y, again)


@pytest.mark.parametrize("scale", ["temporal", "static"])
@pytest.mark.parametrize("backend", [None, "onednn"])
def test_times_far_from_those_of_calibration_are_warned_of_once(tmp_path, x, backend, scale):
    """As where a model calibrated on image-to-image makes images from noise."""
    few = [(x, torch.tensor(t)) for t in (0, 50, 100, 150, 240)]
    model = tdq.quantize(Mixed().eval(), tdq.Recipe(scale=scale))
    tdq.save(tdq.freeze(tdq.calibrate(model, few, progress=False)), tmp_path)
    loaded = tdq.load(tmp_path, model=Mixed())
    run = loaded if backend is None else tdq.compile(loaded, backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(x, torch.tensor(300))
    with pytest.warns(UserWarning, match="900 is far from all that calibration saw, 0 to 240"):
        run(x, torch.tensor(900))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(x, torch.tensor(900))
        tdq.calibrate(model, few, time_range=(0, 999), progress=False)
        tdq.freeze(model)(x, torch.tensor(900))


@pytest.mark.parametrize("backend", [None, "reference", "onednn"])
@pytest.mark.parametrize("scale", ["temporal", "static"])
def test_an_empty_batch_gives_an_empty_output(x, scale, backend):
    model = tdq.quantize(Mixed().eval(), tdq.Recipe(scale=scale))
    tdq.calibrate(model, calls(4), progress=False)
    frozen = tdq.freeze(model)
    run = frozen if backend is None else tdq.compile(frozen, backend)
    for t in (torch.tensor(7), torch.zeros(0, dtype=torch.long), torch.zeros(0)):
        assert model(x[:0], t).shape == run(x[:0], t).shape == (0, *x.shape[1:])


def test_steps_that_calibration_did_not_fit_warn_of_no_time(x):
    few = [(x, torch.tensor(t)) for t in (0, 100, 240)]
    model = tdq.quantize(Mixed().eval(), tdq.Recipe(scale="dynamic"))
    frozen = tdq.freeze(tdq.calibrate(model, few, progress=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frozen(x, torch.tensor(900))


def test_no_graph_break(frozen, calibrated, x):
    # Fullgraph tracing fails at any data-dependent branch, so this also shows that no layer
    # synchronises.
    for model in (frozen, calibrated):
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with torch.no_grad():
            for t in (torch.tensor(10), torch.tensor([1, 500, 900])):
                assert torch.allclose(compiled(x, t), model(x, t), atol=1e-5)


def counted(monkeypatch):
    found = []

    def evaluate(scales, timestep, inner=temporal.evaluate):
        found.append(len(scales))
        return inner(scales, timestep)

    monkeypatch.setattr(temporal, "evaluate", evaluate)
    return found


def test_all_scales_are_evaluated_once_a_call(calibrated, x, monkeypatch):
    found = counted(monkeypatch)
    calibrated(x, torch.tensor([1, 2, 3]))
    assert found == [6]
    with clock_of(calibrated).at(5):
        calibrated.conv_in(x)  # a part of the model evaluates what it meets
    assert found == [6, 1]


def test_scales_are_found_again_after_observing(calibrated, x, monkeypatch):
    twin = copy.deepcopy(calibrated)
    tdq.observe(twin, calls(), progress=False)  # the first calls, with the quantizers taken out
    found = counted(monkeypatch)
    twin(x, 5)
    assert found == [6]


def test_every_parameter_has_a_gradient(calibrated, x):
    # Which is what DistributedDataParallel wants.
    calibrated(x, torch.tensor([1, 2, 3])).sum().backward()
    assert all(p.grad is not None for p in calibrated.parameters())


def test_a_replaced_scale_is_the_one_that_is_used(calibrated, x, monkeypatch):
    calibrated(x, 5)
    found = counted(monkeypatch)
    calibrated.linear.input_quantizer.scale = StaticScale(1e-3)
    calibrated.conv_in.input_quantizer.scale = TemporalScale(1e-3)
    y = calibrated(x, 5)
    assert found == [5]
    assert torch.allclose(y, copy.deepcopy(calibrated)(x, 5), rtol=1e-4, atol=1e-5)


def test_copies_evaluate_their_own_scales(calibrated, x):
    with torch.no_grad():
        before = calibrated(x, 5)
        twin = copy.deepcopy(calibrated)
        twin.conv_in.input_quantizer.scale.network[-1].bias.add_(2)
        assert not torch.equal(twin(x, 5), before)
        assert torch.equal(calibrated(x, 5), before)
        twin.load_state_dict(calibrated.state_dict())
        assert torch.equal(twin(x, 5), before)


def test_training_a_live_model_by_threads(calibrated, x):
    expected = [calibrated(x, t) for t in (10, 500, 990)]
    found = [None] * 3

    def work(i, t):
        for _ in range(3):
            found[i] = calibrated(x, t)

    threads = [threading.Thread(target=work, args=a) for a in enumerate((10, 500, 990))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_export_of_a_live_model(calibrated, x):
    with torch.no_grad():
        program = torch.export.export(calibrated, (x, torch.tensor(10)))
        y = program.module()(x, torch.tensor(700))
        assert torch.allclose(y, calibrated(x, torch.tensor(700)), atol=1e-5)
