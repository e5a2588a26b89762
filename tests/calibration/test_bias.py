import pytest
import torch

import tdquant as tdq
from tdquant.calls.observing import in_float
from tests.denoisers import Mixed, calls


def test_correction_moves_the_mean_output_towards_the_float_models():
    exact = Mixed().eval()
    errors = []
    for correct in (False, True):
        model = tdq.quantize(
            Mixed().eval(), tdq.Recipe(weights=2, edges=2, activations=32, remedies=())
        )
        assert not hasattr(model.conv_in.input_quantizer, "grid")
        model = tdq.quantize(
            Mixed().eval(), tdq.Recipe(weights=2, edges=2, activations=8, remedies=())
        )
        tdq.calibrate(model, calls(), bias_correction=correct, progress=False)
        with torch.no_grad():
            shift = sum((model(x, t) - exact(x, t)).mean((0, 2, 3)) for x, t in calls())
        errors.append(shift.square().sum().item())
    assert errors[1] < 0.5 * errors[0]


def biases(model):
    own = {n: p for n, p in model.named_parameters() if "quantizer" not in n}
    return {n: p.detach().clone() for n, p in own.items() if n.endswith("bias")}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def corrected():
    model = tdq.quantize(Mixed().eval(), tdq.Recipe(2, 8, "static", edges=2, remedies=()))
    return tdq.calibrate(model, list(calls()), bias_correction=True, progress=False)


def test_calibrating_again_starts_from_the_float_biases():
    model, given = corrected(), list(calls())
    float_biases, once = biases(Mixed()), biases(model)
    assert not torch.equal(once["reflect.bias"], float_biases["reflect.bias"])
    tdq.calibrate(model, given, bias_correction=True, progress=False)
    assert same(biases(model), once)
    tdq.calibrate(model, given, progress=False)
    assert same(biases(model), float_biases)


def test_the_float_model_has_the_float_biases():
    model, exact = corrected(), Mixed().eval()
    before = biases(model)
    x, t = next(iter(calls(seed=5)))
    with in_float(model), torch.no_grad():
        assert torch.equal(model(x, t), exact(x, t))
    assert same(biases(model), before)


def test_biases_that_were_trained_since_are_their_own():
    model = corrected()
    with torch.no_grad():
        model.reflect.bias.add_(1)
    before = biases(model)["reflect.bias"]
    with in_float(model):
        assert torch.equal(model.reflect.bias, before)
    tdq.calibrate(model, list(calls()), progress=False)
    assert torch.equal(model.reflect.bias, before)
    assert torch.equal(model.linear.bias, Mixed().linear.bias)


def test_a_calibration_that_fails_leaves_the_biases(monkeypatch):
    def fail(*args):
        raise RuntimeError("no memory")

    for model in (corrected(), tdq.quantize(Mixed().eval(), tdq.Recipe(2, 8, "static", edges=2))):
        before = biases(model)
        monkeypatch.setattr("tdquant.choice.calibrating.record_remedies", fail)
        with pytest.raises(RuntimeError):
            tdq.calibrate(model, list(calls()), bias_correction=True, progress=False)
        assert same(biases(model), before)
        monkeypatch.undo()
        tdq.calibrate(model, list(calls()), progress=False)
        assert same(biases(model), biases(Mixed()))


def test_a_split_layer_is_corrected_for_all_of_its_parts():
    class Joined(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.a, self.b = torch.nn.Linear(4, 8), torch.nn.Linear(4, 8)
            self.c = torch.nn.Linear(16, 4)

        def forward(self, x, t):
            x = x * (1 + t / 1000)
            return self.c(torch.cat([self.a(x).relu() + 1, 50 * self.b(x).relu() + 1], -1))

    rng = torch.Generator().manual_seed(0)
    given = [(torch.randn(64, 4, generator=rng), torch.tensor(100 * i)) for i in range(8)]
    shifts = []
    for correct in (False, True):
        recipe = tdq.Recipe(2, 8, edges=2, overrides={"b": {"activations": 8}}, remedies=())
        model = tdq.quantize(Joined().eval(), recipe)
        tdq.calibrate(model, given, margin=-10.0, bias_correction=correct, progress=False)
        assert hasattr(model.c, "parts")
        whole = torch.cat([part.weight for part in model.c.parts], 1)
        shifts.append(_shift(model, whole, Joined().c.bias, given))
    assert shifts[1] < 0.2 * shifts[0]


@torch.no_grad()
def _shift(model, weight, bias, given):
    """Mean error of the split layer's output, by what its quantized parts see."""
    errors = []

    def look(layer, args, y):
        slices = zip(layer.parts, args[0].split(layer.sizes, -1), strict=True)
        seen = torch.cat([part.input_quantizer(x) for part, x in slices], -1)
        errors.append((y - torch.nn.functional.linear(seen, weight, bias)).mean(0))

    handle = model.c.register_forward_hook(look)
    for call in given:
        model(*call)
    handle.remove()
    return torch.stack(errors).mean(0).norm().item()


def test_a_shared_bias_stays():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = (torch.nn.Linear(8, 8) for _ in range(3))
            self.b.bias = self.a.bias

        def forward(self, x, t):
            return self.c(self.b(self.a(x).tanh()))

    model = tdq.quantize(Tied().eval(), tdq.Recipe(weights=3, edges=3, remedies=()))
    before = {name: value.clone() for name, value in model.named_parameters() if "bias" in name}
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    tdq.calibrate(model, [(x, 5)], bias_correction=True, progress=False)
    assert model.a.bias is model.b.bias
    assert torch.equal(model.a.bias, before["a.bias"])
    assert not torch.equal(model.c.bias, before["c.bias"])
