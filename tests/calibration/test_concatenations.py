import copy
import json

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.calibration.choose import WHOLE
from tdquant.calibration.concatenations import ConcatenationMode
from tdquant.errors import CalibrationError
from tdquant.layers import SplitLayer, quantized_layers, structured_layers
from tdquant.quantizers import activation_quantizers
from tdquant.training.structure import describe, restore


class Skip(nn.Module):
    """A main path a hundred times as large as the shortcut beside it, on (B, 4, 6, 6)."""

    def __init__(self, gain=100.0):
        super().__init__()
        torch.manual_seed(0)
        self.gain = gain
        self.conv_in = nn.Conv2d(4, 6, 3, padding=1)
        self.middle = nn.Conv2d(6, 6, 3, padding=1)
        self.both = nn.Conv2d(12, 6, 1)
        self.normed = nn.Conv2d(12, 6, 1)
        self.conv_out = nn.Conv2d(6, 4, 1)
        with torch.no_grad():
            self.both.weight[:, :6] /= gain

    def forward(self, x, t):
        level = 1 + torch.as_tensor(t).float().reshape(-1, 1, 1, 1) / 1000
        skip = self.conv_in(x * level)
        h = torch.cat([self.gain * self.middle(skip), skip], 1)
        return self.conv_out(self.both(h) + 0.01 * self.normed(nn.functional.silu(h)))


def calls(count=24, batch=4):
    rng = torch.Generator().manual_seed(0)
    for i in range(count):
        yield torch.randn(batch, 4, 6, 6, generator=rng), torch.tensor(i * 999 // (count - 1))


def made(activations=4, weights=8, scale="auto", model=None, **options):
    model = tdq.quantize(
        (model or Skip()).eval(),
        tdq.Recipe(weights=weights, activations=activations, scale=scale, remedies=()),
    )
    return model, tdq.calibrate(model, calls(), progress=False, **options).tdq.calibration


def error(model):
    exact = Skip().eval()
    with torch.no_grad():
        return sum(float((model(x, t) - exact(x, t)).square().mean()) for x, t in calls())


@pytest.mark.parametrize("scale", ["auto", "static", "temporal", "table", "pact"])
def test_what_takes_a_concatenation_is_split_where_that_helps(scale):
    model, report = made(scale=scale)
    assert [(s.path, s.sizes) for s in report.splits] == [("both", (6, 6))]
    assert isinstance(model.both, SplitLayer)
    assert not isinstance(model.normed, SplitLayer)  # SiLU stands between
    assert report.splits[0].error < 0.9 * report.splits[0].whole_error
    assert report.trials[report.chosen] < report.trials[WHOLE]
    assert "split along their concatenations: 1 layers" in str(report)
    pieces = zip(model.both.parts, torch.ones(2, 1, 6, 6, 6), strict=True)
    with torch.no_grad(), model.tdq.clock.at(500):
        steps = [float(part.input_quantizer.step(x)) for part, x in pieces]
    assert steps[0] > 10 * steps[1]
    whole, _ = made(scale=scale, split=False)
    assert not list(structured_layers(whole))
    assert error(model) < 0.5 * error(whole)


def test_ranges_that_agree_are_left_together():
    class Alike(Skip):
        def forward(self, x, t):
            h = self.conv_in(x)
            return self.conv_out(self.both(torch.cat([h, h.flip(2)], 1)))

    model = Alike()
    del model.middle, model.normed
    with torch.no_grad():
        model.both.weight.fill_(0.3)
    base = tdq.quantize(model.eval(), tdq.Recipe(activations=4, remedies=()))
    observations = tdq.observe(base, calls(), progress=False)
    assert observations.parts["both.input_quantizer"].sizes == (6, 6)
    assert not tdq.calibrate(base, observations, progress=False).tdq.calibration.splits
    assert not list(structured_layers(base))


def test_a_concatenation_along_another_dimension_is_none():
    class Wide(Skip):
        def forward(self, x, t):
            h = self.conv_in(x)
            return self.conv_out(self.middle(torch.cat([h, 50 * h], 2)))

    model = Wide()
    del model.both, model.normed
    _, report = made(model=model)
    assert not report.splits


def test_a_layer_whose_concatenation_changes_is_left_whole():
    class Two(Skip):
        def forward(self, x, t):
            skip = self.conv_in(x)
            h = self.gain * self.middle(skip)
            size = 6 if float(t) < 500 else 3
            h = torch.cat([h[:, :size], skip, h[:, size:]], 1)
            return self.conv_out(self.both(h))

    model = Two()
    del model.normed
    _, report = made(model=model)
    assert not report.splits


def test_observations_serve_every_recipe_and_split_models_too():
    base = tdq.quantize(Skip().eval(), tdq.Recipe(remedies=()))
    observations = tdq.observe(base, calls(), progress=False)
    assert {n: p.sizes for n, p in observations.parts.items()} == {"both.input_quantizer": (6, 6)}
    for activations in (4, 6):
        model = tdq.quantize(Skip().eval(), tdq.Recipe(activations=activations, scale="static"))
        report = tdq.calibrate(model, observations, progress=False).tdq.calibration
        assert [s.path for s in report.splits] == ["both"]
    before = {n: q.grid for n, q in activation_quantizers(model)}
    again = tdq.calibrate(
        model, observations, progress=False
    ).tdq.calibration  # of the whole layers
    assert not again.splits
    assert {n: q.grid for n, q in activation_quantizers(model)} == before
    own = tdq.observe(model, calls(), progress=False)
    tdq.calibrate(model, own, progress=False)
    with pytest.raises(CalibrationError, match="not in the observations"):
        tdq.calibrate(base, own, progress=False)


def test_a_calibrated_layer_is_not_split_later():
    model, _ = made(split=False)
    assert not tdq.calibrate(model, calls(), progress=False).tdq.calibration.splits


def test_dead_parts_and_dead_weights_are_no_reason_to_fail():
    model = Skip()
    with torch.no_grad():
        model.both.weight[:, 6:] = 0
    _, report = made(model=model)
    assert not report.splits
    model = Skip()
    with torch.no_grad():
        model.middle.weight.zero_()[0, 0, 0, 0] = 1e-20
        model.middle.bias.zero_()
    tdq.calibrate(
        tdq.quantize(model, tdq.Recipe(exclude=("middle",), remedies=())),
        calls(),
        progress=False,
    )


def test_dynamic_scales_need_no_split():
    model, report = made(scale="dynamic")
    assert not report.splits
    assert not list(structured_layers(model))


def test_frozen_compiled_saved_and_trained_like_any_other(tmp_path):
    model, _ = made(activations=6)
    frozen = tdq.freeze(model)
    x, t = next(iter(calls()))
    with torch.no_grad():
        y = frozen(x, t)
        assert torch.equal(y, model(x, t))
        assert torch.equal(copy.deepcopy(frozen)(x, t), y)
        for backend in ("reference", "onednn"):
            assert torch.allclose(
                tdq.compile(frozen, backend=backend)(x, t), y, rtol=1e-4, atol=1e-4
            )
    tdq.save(frozen, tmp_path / "saved")
    assert torch.equal(tdq.load(tmp_path / "saved", model=Skip())(x, t), y)
    assert [n for n, _ in quantized_layers(frozen)] == [
        "middle",
        "both.parts.0",
        "both.parts.1",
        "normed",
    ]
    model(x, t).square().mean().backward()
    assert all(p.weight.grad.abs().sum() > 0 for p in model.both.parts)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_exported(tmp_path, suffix):
    frozen = tdq.freeze(made(activations=6, scale="temporal")[0])
    x, t = next(iter(calls()))
    tdq.export(frozen, tmp_path / f"model{suffix}", example=(x, t))
    session = tdq.open_session(tmp_path / f"model{suffix}")
    with torch.no_grad():
        y = frozen(x, t)
        assert float((session(x, t) - y).norm() / y.norm()) < 0.02


def test_the_mode_knows_living_results_alone():
    mode = ConcatenationMode()
    a, b = torch.ones(2, 3), torch.ones(2, 4)
    with mode:
        x = torch.cat([a, b], dim=-1)
        y = torch.concatenate((a, a), axis=0)
        empty = torch.cat([a, a[:, :0]], 1)
    z = torch.cat([a, b], 1)
    assert mode.parts(x, -1) == (3, 4)
    assert mode.parts(x, -2) is None
    assert mode.parts(y, -2) == (2, 2)
    assert mode.parts(x.clone(), -1) is None
    assert mode.parts(z, -1) is None  # made outside
    assert mode.parts(empty, -1) is None
    mode.forget()
    assert mode.parts(x, -1) is None


@pytest.mark.parametrize("version", ["0.1", "now"])
def test_a_checkpoint_of_training_brings_its_split_layers_back(version):
    model, _ = made()
    description = json.loads(json.dumps(describe(model)))
    found = description["structures"]
    assert found == [{"path": "both", "structure": "split", "sizes": [6, 6]}]
    if version == "0.1":
        del description["structures"]
        description["splits"] = {"both": [6, 6]}
    again = tdq.quantize(
        Skip().eval(), tdq.Recipe(weights=8, activations=4, scale="auto", remedies=())
    )
    restore(again, description)
    again.load_state_dict(model.state_dict())
    x, t = next(iter(calls()))
    assert torch.equal(again(x, t), model(x, t))
    restore(again, description)  # which is there already
    assert torch.equal(again(x, t), model(x, t))
