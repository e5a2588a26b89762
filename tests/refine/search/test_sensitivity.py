import copy
import itertools
import json

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import CalibrationError, ConversionError, RecipeError, StorageError
from tdquant.layers import SplitLayer, quantized_layers
from tdquant.layers.structure import names_of
from tdquant.quantizers import ActivationQuantizer
from tdquant.recipe import FLOAT
from tdquant.refine.search import Sensitivity, search, sensitivity
from tests.conftest import quantized
from tests.denoisers import Plain, calls


class Fragile(nn.Module):
    """Residual blocks alike, but for one whose branch is fifty times as strong."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))
        self.conv_out = nn.Conv2d(8, 3, 1)
        with torch.no_grad():
            self.blocks[2].weight *= 50

    def forward(self, x, t):
        level = 1 + 4 * torch.as_tensor(t).float().reshape(-1, 1, 1, 1) / 1000
        h = self.conv_in(x * level)
        for block in self.blocks:
            h = h + 0.1 * block(nn.functional.silu(h))
        return self.conv_out(h)


def fragile(**recipe):
    return tdq.quantize(Fragile().eval(), tdq.Recipe(**recipe))


def batches(count=16, batch=8, mixed=False):
    return list(calls(count, batch, (3, 8, 8), mixed=mixed))


@pytest.fixture(scope="module")
def measured():
    return sensitivity(fragile(activations=4, weights=4), batches(), progress=False)


def test_the_fragile_layer_comes_first(measured):
    for operand in ("weights", "activations"):
        errors = {p: measured.error(p, operand, 4) for p in measured.layers}
        assert max(errors, key=errors.get) == "blocks.2"
        assert errors["blocks.2"] > 20 * sorted(errors.values())[-2]
    assert str(measured).splitlines()[2].split()[1] == "blocks.2"
    assert measured.bits == (2, 3, 4, 5, 6, 8)


def test_facts(measured):
    facts = measured.layers["blocks.1"]
    assert (facts.weights, facts.macs) == (8 * 8 * 9, 8 * 8 * 9 * 64)
    assert (facts.weight_bits, facts.activation_bits, facts.role) == (4, 4, "")
    edges = sensitivity(fragile(edges=8), batches(4), bits=[4], progress=False)
    assert edges.layers["conv_in"].role == edges.layers["conv_out"].role == "edge"
    mixed = sensitivity(quantized(calibrated=False), calls(4), bits=[4], progress=False)
    assert mixed.layers["time_mlp"].role == "time path"
    assert mixed.layers["time_mlp"].activation_bits == FLOAT
    assert mixed.bits == (4, 8)


def test_errors_fall_with_bits_and_temporal_is_never_worse(measured):
    for path in measured.layers:
        for operand in ("weights", "activations"):
            errors = [measured.error(path, operand, b) for b in measured.bits]
            assert all(b < 0.7 * a for a, b in itertools.pairwise(errors))
            assert measured.error(path, operand, FLOAT) == 0
        for bits in measured.bits:
            static, temporal = (
                measured.error(path, "activations", bits, k) for k in ("static", "temporal")
            )
            assert temporal <= static


def alone(weights, activations, estimator="minmax"):
    """Measured output error of the model with its second block alone quantized."""
    bits = {"weights": weights, "activations": activations, "scale": "static"}
    recipe = tdq.Recipe(include=("blocks.1",), **bits)
    model = tdq.quantize(Fragile().eval(), recipe)
    if activations != FLOAT:
        tdq.calibrate(model, batches(), estimator=estimator, progress=False)
    return difference(model)


def difference(model):
    exact = Fragile().eval()
    with torch.no_grad():
        errors = [(model(x, t) - exact(x, t)).square().mean() for x, t in batches()]
    return float(torch.stack(errors).mean())


@pytest.mark.parametrize("bits", [4, 8])
def test_predicted_error_of_one_layer_is_the_measured_one(measured, bits):
    weight = measured.error("blocks.1", "weights", bits)
    assert weight == pytest.approx(alone(bits, FLOAT), rel=0.5)
    activation = measured.error("blocks.1", "activations", bits, "static")
    least = min(alone(FLOAT, bits, estimator) for estimator in ("mse", "minmax"))
    assert activation == pytest.approx(least, rel=0.5)


@pytest.mark.parametrize("bits", [6, 8])
def test_predicted_error_of_the_model_is_the_measured_one(measured, bits):
    model = fragile(weights=bits, activations=bits, scale="static")
    tdq.calibrate(model, batches(), progress=False)
    everywhere = dict.fromkeys(measured.layers, bits)
    kinds = dict.fromkeys(measured.layers, (bits, "static"))
    predicted = measured.predict(everywhere, kinds)
    assert predicted / 2 < difference(model) < 2 * predicted


def test_batches_may_be_divided_anyhow():
    model = fragile()
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.arange(8) * 120
    whole = sensitivity(model, [(x, t)], bits=[4], progress=False)
    pairs = [(x[i : i + 2], t[i : i + 2]) for i in range(0, 8, 2)]
    split = sensitivity(model, pairs, bits=[4], progress=False)
    assert torch.equal(whole.times, split.times)
    assert len(whole.times) == 8
    for path in whole.layers:
        assert torch.allclose(whole.weights[path], split.weights[path], rtol=1e-2, atol=1e-9)
        for kind in ("static", "temporal"):
            a, b = (s.activations[kind][path] for s in (whole, split))
            assert torch.allclose(a, b, rtol=1e-2, atol=1e-9)


def test_time_is_resolved(measured):
    assert measured.counts.tolist() == [8.0] * 16
    late = measured.over_time("blocks.0", "activations", 4, "static")
    assert late[0] > late[-1] or late[-1] > 0  # one number for each range of time
    assert late.shape == measured.times.shape
    many = sensitivity(fragile(), batches(40, 2), bits=[4], progress=False)
    assert len(many.times) == 16
    assert float(many.counts.sum()) == 80


def test_the_model_is_left_as_it_was():
    model = fragile(weights=5, activations=5, scale="static")
    tdq.calibrate(model, batches(), estimator="mse", progress=False)
    x, t = batches(1)[0]
    before = model(x, t)
    state = copy.deepcopy(model.state_dict())
    sensitivity(model, batches(6), bits=[4], progress=False)
    assert torch.equal(model(x, t), before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(layer._forward_hooks for _, layer in quantized_layers(model))


def test_observations_and_their_seed():
    model = fragile()
    seen = tdq.observe(model, batches(6), progress=False)
    first, again, other = (
        sensitivity(model, seen, bits=[4], seed=s, progress=False).error("blocks.0", "weights", 4)
        for s in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_split_layers_count_as_the_layer_that_they_stand_for():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 4, 1)
            self.middle = nn.Conv2d(4, 4, 1)
            self.both = nn.Conv2d(8, 4, 1)
            self.last = nn.Conv2d(4, 3, 1)
            with torch.no_grad():
                self.both.weight[:, :4] /= 300

        def forward(self, x, t):
            h = self.first(x)
            return self.last(self.both(torch.cat([300 * self.middle(h), h], 1)))

    def made():
        return tdq.quantize(Skip().eval(), tdq.Recipe(activations=4))

    whole = made()
    calibrated = made()
    tdq.calibrate(calibrated, batches(), progress=False)
    assert isinstance(calibrated.both, SplitLayer)
    a, b = (sensitivity(m, batches(), bits=[4], progress=False) for m in (whole, calibrated))
    assert list(a.layers) == list(b.layers) == ["middle", "both"]
    assert a.layers == b.layers
    assert a.error("both", "activations", 4) == pytest.approx(b.error("both", "activations", 4))
    found = search(b, target_bits=4)
    tdq.quantize(Skip(), found.recipe)  # whose layer is whole


def test_saved_and_loaded(measured, tmp_path):
    measured.save(tmp_path / "s.json")
    again = Sensitivity.load(tmp_path / "s.json")
    assert str(again) == str(measured)
    assert again.layers == measured.layers
    assert again.recipe == measured.recipe
    assert all(torch.equal(again.weights[p], measured.weights[p]) for p in measured.weights)
    assert search(again, target_bits=4).weights == search(measured, target_bits=4).weights


def test_a_file_of_version_0_1_is_read(measured, tmp_path):
    """On one line, and with NaN where there was no number."""
    path = tmp_path / "s.json"
    measured.save(path)
    content = json.loads(path.read_text())
    content["weights"]["blocks.0"][0][0] = float("nan")
    path.write_text(json.dumps(content))
    again = Sensitivity.load(path)
    assert again.weights["blocks.0"][0, 0].isnan()
    assert torch.equal(again.weights["blocks.1"], measured.weights["blocks.1"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c | {"format": "other"}, "foreign"),
        (lambda c: c | {"version": 99}, "newer"),
        (lambda c: {k: v for k, v in c.items() if k != "counts"}, "damaged"),
        (lambda c: c | {"layers": {"a": {"odd": 1}}}, "damaged"),
        (lambda c: [c], "foreign"),
    ],
)
def test_files_that_are_none(measured, tmp_path, change, words):
    path = tmp_path / "s.json"
    measured.save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(StorageError, match=words):
        Sensitivity.load(path)
    path.write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        Sensitivity.load(path)
    with pytest.raises(StorageError, match="missing"):
        Sensitivity.load(tmp_path / "missing.json")


def test_pictures(measured, tmp_path):
    measured.plot(tmp_path / "heat.png")
    measured.plot(tmp_path / "heat.svg", operand="weights")
    search(measured, target_bits=4).plot(tmp_path / "curve.png")
    assert all(p.stat().st_size > 2000 for p in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 3
    bare = sensitivity(fragile(activations=32), batches(2), bits=[4], progress=False)
    with pytest.raises(CalibrationError, match="no activations are quantized"):
        bare.plot(tmp_path / "none.png")


def test_what_cannot_be_measured():
    with pytest.raises(ConversionError, match="not quantized"):
        sensitivity(Fragile(), batches())
    with pytest.raises(RecipeError, match="from 2 to 16"):
        sensitivity(fragile(), batches(), bits=[1, 4])
    with pytest.raises(RecipeError, match="widths"):
        sensitivity(fragile(), batches(), bits=[])
    with pytest.raises(CalibrationError, match="no batches"):
        sensitivity(fragile(), [], progress=False)
    foreign = tdq.observe(quantized(calibrated=False), calls(4), progress=False)
    with pytest.raises(CalibrationError, match="not in the observations"):
        sensitivity(fragile(), foreign, progress=False)


def test_what_was_not_measured(measured):
    with pytest.raises(CalibrationError, match="7 bits were not measured"):
        measured.error("blocks.0", "weights", 7)
    with pytest.raises(CalibrationError, match="nowhere"):
        measured.error("nowhere", "weights", 4)


def test_every_kind_of_layer_and_shared_inputs_and_mixed_times():
    model = quantized(calibrated=False)
    found = sensitivity(model, calls(12, mixed=True), bits=[4, 8], progress=False)
    assert set(found.layers) == {p for p, _ in quantized_layers(model)}
    assert all(found.error(p, "weights", 4) > found.error(p, "weights", 8) for p in found.layers)
    assert isinstance(model.conv_in.input_quantizer, ActivationQuantizer)


def test_balanced_times_count_alike(measured):
    balanced = measured.balanced()

    def by_time(s):
        weights = sum(s.over_time(p, "weights", 4) for p in s.layers)
        inputs = sum(s.over_time(p, "activations", 4, s.kind(p)) for p in s.layers)
        return (weights + inputs) * s.counts

    shares = by_time(balanced)
    assert torch.allclose(shares, shares.mean().expand(len(shares)), rtol=1e-3)
    assert by_time(measured).max() > 1.5 * by_time(measured).min()
    assert torch.equal(balanced.weights["blocks.0"], measured.weights["blocks.0"])
    assert search(balanced, target_bits=4).bits <= 4


class InPlace(Fragile):
    """The same, with what follows a block done to its output in place."""

    def forward(self, x, t):
        level = 1 + 4 * torch.as_tensor(t).float().reshape(-1, 1, 1, 1) / 1000
        h = self.conv_in(x * level)
        for block in self.blocks:
            branch = block(nn.functional.silu(h))
            branch.mul_(0.1)
            h = h + branch
        return self.conv_out(h)


def test_changing_outputs_in_place_changes_no_sensitivity(measured):
    model = tdq.quantize(InPlace().eval(), tdq.Recipe(4, 4))
    found = sensitivity(model, batches(), progress=False)
    for path in measured.layers:
        for bits in (2, 4, 8):
            wanted = measured.error(path, "weights", bits)
            assert found.error(path, "weights", bits) == pytest.approx(wanted, rel=1e-2)


def test_a_balanced_model_is_searched_and_quantized_anew():
    rng = torch.Generator().manual_seed(0)
    given = [(torch.randn(8, 4, generator=rng), torch.tensor(100 * i)) for i in range(4)]
    net = Plain().eval()
    assert set(tdq.balance(net, given, progress=False).tdq.balance) == {"a", "b"}
    trial = tdq.quantize(copy.deepcopy(net), tdq.Recipe(4, 8, edges=8), timestep="when")
    measured = sensitivity(trial, given, bits=[2, 4, 8], progress=False)
    recipe = search(measured, target_bits=4, also=["*"]).recipe
    model = tdq.quantize(copy.deepcopy(net), recipe, timestep="when")
    assert {names_of(model, path)[0] for path, _ in quantized_layers(model)} == {"a", "b"}
    assert set(measured.layers) == {"a", "b"}
