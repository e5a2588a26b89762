import copy

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.choice import rounding
from tdquant.choice.rounding import rounded_weights
from tdquant.quantizers import activation_quantizers
from tdquant.refine.reconstruction.blocks import called, learned_layers

WIDTH = 24


class Chain(nn.Module):
    """Layers one behind the other, registered in another order than they are called in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(WIDTH, 8)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.idle = nn.Linear(WIDTH, WIDTH)
        self.first = nn.Linear(8, WIDTH)

    def forward(self, x, t):
        h = self.first(x) + t.reshape(-1, 1, 1) / 1000
        for block in self.blocks:
            h = h + torch.relu(block(h))
        return self.last(h)


def calls(count=6):
    draw = torch.Generator().manual_seed(1)
    mix = torch.randn(8, 8, generator=draw)
    return [
        (torch.randn(4, 6, 8, generator=draw) @ mix, torch.tensor(i * 100)) for i in range(count)
    ]


@pytest.fixture(scope="module")
def model():
    recipe = tdq.Recipe(3, 8, edges=8, scale="static", remedies=())
    model = tdq.quantize(Chain(), recipe)
    return tdq.calibrate(model, calls(), progress=False)


def apply(model, found):
    model = copy.deepcopy(model)
    for path, layer in learned_layers(model):
        if path in found:
            layer.weight_quantizer = found[path]
    return model


@torch.no_grad()
def error(model, exact):
    return sum(float((model(*call) - exact(*call)).square().mean()) for call in calls(12))


def test_codes_lower_the_error_of_the_output(model):
    rounded = apply(model, rounded_weights(model, calls(), progress=False))
    assert error(rounded, Chain()) < 0.25 * error(model, Chain())


def test_later_layers_make_up_for_earlier_ones(model):
    together = rounded_weights(model, calls(), waves=1, progress=False)
    apart = rounded_weights(model, calls(), waves=99, progress=False)
    order = [path for path in called(model, calls()[0]) if path in apart]
    assert order == ["first", *(f"blocks.{i}" for i in range(4)), "last"]
    same = {path for path in order if torch.equal(together[path].codes, apart[path].codes)}
    assert "first" in same
    assert "last" not in same
    assert error(apply(model, apart), Chain()) < 0.7 * error(apply(model, together), Chain())


def test_the_model_stays_as_it_is_and_codes_are_the_same_again(model):
    before = {path: layer.weight_quantizer for path, layer in learned_layers(model)}
    scales = {path: q.scale for path, q in activation_quantizers(model)}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = rounded_weights(model, calls(), progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(layer.weight_quantizer is before[path] for path, layer in learned_layers(model))
    assert all(q.scale is scales[path] for path, q in activation_quantizers(model))
    again = rounded_weights(model, calls(), progress=False)
    assert all(torch.equal(first[path].codes, again[path].codes) for path in first)


def test_what_no_call_reaches_is_left_out(model):
    assert "idle" not in rounded_weights(model, calls(), progress=False)


def test_an_error_on_the_way_puts_the_quantizers_back(model, monkeypatch):
    before = {path: layer.weight_quantizer for path, layer in learned_layers(model)}
    seen = []

    def fail(layer, *args, **kwargs):
        seen.append(layer)
        if len(seen) > 2:
            raise RuntimeError("no memory")
        return original(layer, *args, **kwargs)

    original = rounding.gptq
    monkeypatch.setattr(rounding, "gptq", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        rounded_weights(model, calls(), progress=False)
    assert all(layer.weight_quantizer is before[path] for path, layer in learned_layers(model))


class Timed(nn.Module):
    """A trunk of many rows a call beside an embedding of the timestep."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.time_embedding = nn.Linear(16, WIDTH)
        self.conv_in = nn.Linear(8, WIDTH)
        self.shift = nn.Linear(WIDTH, WIDTH)
        self.conv_out = nn.Linear(WIDTH, 8)

    def forward(self, x, timestep):
        angles = timestep.reshape(-1, 1) / 1000 * torch.arange(1, 9)
        emb = torch.relu(self.time_embedding(torch.cat([angles.sin(), angles.cos()], 1)))
        h = torch.relu(self.conv_in(x)) + self.shift(emb)[:, None]
        return self.conv_out(h)


def calls_seen(monkeypatch, model, batches):
    """Path -> calls that its codes were chosen by."""
    seen, original = {}, rounding._weigh

    def weigh(model, calls, wave, *args):
        counts = dict.fromkeys(wave, 0)
        add = rounding.Hessian.add
        paths = {id(layer): path for path, layer in wave.items()}

        def counted(self, x, *rest):
            counts[paths[id(self.layer)]] += 1
            add(self, x, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(rounding.Hessian, "add", counted)
            found = original(model, calls, wave, *args)
        seen.update(counts)
        return found

    monkeypatch.setattr(rounding, "_weigh", weigh)
    rounded_weights(model, batches, progress=False)
    return seen


def test_layers_on_the_time_path_come_first_and_see_all_calls(monkeypatch):
    batches = [(x[:, :3], t) for x, t in calls(30)]
    model = tdq.quantize(Timed(), tdq.Recipe(4, 8, "static", edges=8, remedies=()))
    tdq.calibrate(model, batches, progress=False)
    assert model.tdq.roles.time_path == {"time_embedding", "shift"}
    seen = calls_seen(monkeypatch, model, batches)
    assert list(seen) == ["time_embedding", "shift", "conv_in", "conv_out"]
    assert list(seen.values()) == [30, 30, rounding.ENOUGH, rounding.ENOUGH]


@pytest.mark.parametrize(("samples", "count"), [(4, 12), (3, 16), (1, 30)])
def test_layers_that_see_few_rows_take_more_calls(monkeypatch, model, samples, count):
    batches = [(x[:samples, :1], t) for x, t in calls(30)]
    assert calls_seen(monkeypatch, model, batches)["blocks.1"] == count


def test_coarse_inputs_do_not_make_weights_smaller():
    model = tdq.quantize(Chain(), tdq.Recipe(8, 3, "static", edges=8, remedies=()))
    tdq.calibrate(model, calls(), progress=False)
    found = rounded_weights(model, calls(), progress=False)
    for path in [f"blocks.{i}" for i in range(4)]:
        weight = model.get_submodule(path).weight
        rounded = found[path](weight)
        along = float((rounded * weight).sum() / weight.square().sum())
        assert along == pytest.approx(1, abs=0.005)
