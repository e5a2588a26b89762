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
    recipe = tdq.Recipe(3, 8, edges=3, scale="static", remedies=())
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
    assert error(rounded, Chain()) < 0.75 * error(model, Chain())


def test_later_layers_make_up_for_earlier_ones(model):
    together = rounded_weights(model, calls(), waves=1, progress=False)
    apart = rounded_weights(model, calls(), waves=99, progress=False)
    order = [path for path in called(model, calls()[0]) if path in apart]
    assert order == ["first", *(f"blocks.{i}" for i in range(4)), "last"]
    same = {path for path in order if torch.equal(together[path].codes, apart[path].codes)}
    assert "first" in same
    assert "last" not in same
    assert error(apply(model, apart), Chain()) < 0.9 * error(apply(model, together), Chain())


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
