import pytest
import torch

from tdquant.errors import TrainingError
from tdquant.quantizers import activation_quantizers
from tdquant.training import parameter_groups
from tests.conftest import quantized


def test_every_parameter_is_in_exactly_one_group():
    model = quantized(weights=4, activations=5)
    groups = parameter_groups(model)
    found = [id(p) for g in groups for p in g["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in model.parameters()}
    assert [g["name"] for g in groups] == ["network", "weight_steps", "temporal", "temporal_bias"]
    groups = parameter_groups(quantized(weights=4, activations=5, scale="static"))
    assert [g["name"] for g in groups] == ["network", "weight_steps", "steps"]


def test_rates_and_decay():
    groups = parameter_groups(quantized(), 1e-3, step_rate=2, decay=0.1)
    table = {g["name"]: (g["lr"], g["weight_decay"]) for g in groups}
    assert table == {
        "network": (1e-3, 0.1),
        "weight_steps": (1e-3, 0.0),
        "temporal": (2e-3, 0.1),
        "temporal_bias": (2e-3, 0.0),
    }


@pytest.mark.parametrize("scale", ["static", "static-log", "table", "pact", "nipq", "temporal"])
def test_a_step_rate_is_of_activation_scales_alone(scale):
    model = quantized(weights=4, activations=5, scale=scale)
    before, groups = (parameter_groups(model, 1e-3, step_rate=x) for x in (None, 10))
    changed = {
        id(p)
        for old, new in zip(before, groups, strict=True)
        for p in new["params"]
        if new["lr"] != old["lr"]
    }
    scales = [q.scale for _, q in activation_quantizers(model)]
    assert changed == {id(p) for s in scales for p in s.parameters()}
    assert {g["lr"] for g in groups} == {1e-3, 1e-2}


@pytest.mark.parametrize("multiple", [-1, float("nan"), float("inf"), "fast", True])
def test_what_is_no_multiple_is_told(multiple):
    with pytest.raises(TrainingError) as raised:
        parameter_groups(quantized(), step_rate=multiple)
    error = raised.value
    assert error.what == f"step_rate={multiple!r}"
    assert (error.where, error.why) == (
        "parameter_groups",
        "it is a multiple of the network's rate",
    )
    assert "a number from 0" in error.fix


def test_decay_does_not_pull_scales_towards_softplus_of_zero(x):
    model = quantized(weights=4, activations=5)
    t = torch.tensor([0, 500, 999])

    def scales():
        with torch.no_grad():
            return torch.cat(
                [q.scale(t, x, q.grid) for _, q in activation_quantizers(model)]
            ), model.linear.weight_quantizer.step.clone()

    before, steps = scales()
    optimizer = torch.optim.SGD(
        [
            {k: v for k, v in g.items() if k != "name"}
            for g in parameter_groups(model, 0.1, decay=0.01)
        ]
    )
    for _ in range(200):  # gradients of zero: decay alone acts
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    after, steps_after = scales()
    assert torch.equal(steps, steps_after)
    assert (
        after / before
    ).max() < 3  # with decayed biases they would rise towards 0.69, tens of times
    assert after.max() < 0.69


def test_published_rates():
    groups = parameter_groups(quantized(weights=4), 1e-3, rates="published")
    table = {g["name"]: (g["lr"], g["weight_decay"]) for g in groups}
    assert table == {
        "network": (1e-3, 0.01),
        "weight_steps": (1e-4, 0.0),
        "temporal": (1e-3, 0.01),
        "temporal_bias": (1e-3, 0.01),
    }


@pytest.mark.parametrize("rates", ["equal", "published"])
@pytest.mark.parametrize("scale", ["static", "static-log", "table", "pact", "nipq"])
def test_no_decay_reaches_a_step(scale, rates):
    model = quantized(weights=4, activations=5, scale=scale)
    groups = parameter_groups(model, rates=rates)
    undecayed = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    named = dict(model.named_parameters())
    steps = {n for n in named if "quantizer" in n}
    assert len(steps) == 12 + 1  # of six inputs and six weights, and of the time path's weight
    assert undecayed == {id(named[n]) for n in steps}


def test_unknown_rates():
    with pytest.raises(TrainingError, match="'fast'"):
        parameter_groups(quantized(), rates="fast")
