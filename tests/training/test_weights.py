import copy
from contextlib import nullcontext

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

import tdquant as tdq
from tdquant.quantizers import WeightQuantizer
from tdquant.training.weights import forgetting_weights
from tests.conftest import quantized
from tests.denoisers import calls


def gradients(model, forget, autocast=False):
    """Gradients of every parameter."""
    model = copy.deepcopy(model).train()
    torch.manual_seed(0)
    x, t = next(iter(calls()))[:2]
    forgetting = forgetting_weights(model) if forget else nullcontext()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), forgetting:
        loss = model(x, t).float().square().mean()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("scale", ["static", "temporal", "pact", "nipq"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_gradients_are_the_same_to_the_bit(scale, granularity):
    model = quantized(4, 4, scale=scale, granularity=granularity)
    a, b = gradients(model, False), gradients(model, True)
    assert set(a) == set(b)
    for name, grad in a.items():
        assert (grad is None) == (b[name] is None)
        assert grad is None or torch.equal(grad, b[name]), name


def test_gradients_under_autocast():
    model = quantized(4, 4)
    a, b = gradients(model, False, True), gradients(model, True, True)
    assert all(g is None or torch.equal(g, b[n]) for n, g in a.items())


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Conv1d(8, 8, 1)

    def forward(self, x, t):
        return self.second(self.first(x)[..., None])


def two():
    model = Two()
    tdq.quantize(model, tdq.Recipe(4, 4, scale="static", edges=4))
    tdq.calibrate(model, [(torch.randn(4, 8), torch.tensor(5))], progress=False)
    return model.train()


@pytest.mark.parametrize("forget", [False, True])
def test_quantized_weights_are_not_kept(forget, monkeypatch):
    model, made, forward = two(), [], WeightQuantizer.forward

    def watched(self, weight):
        output = forward(self, weight)
        made.append(StorageWeakRef(output.untyped_storage()))
        return output

    monkeypatch.setattr(WeightQuantizer, "forward", watched)
    with forgetting_weights(model) if forget else nullcontext():
        loss = model(torch.randn(2, 8), torch.tensor(5)).square().mean()
    assert [storage.expired() for storage in made] == [forget] * 2
    loss.backward()


def test_quantizers_with_hooks_of_others_are_left_alone():
    model = two()
    quantizer = model.first.weight_quantizer
    quantizer.register_forward_hook(lambda module, args, output: 0.5 * output)
    a, b = gradients_of(model, False), gradients_of(model, True)
    assert all(torch.equal(a[name], b[name]) for name in a)


def gradients_of(model, forget):
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    with forgetting_weights(model) if forget else nullcontext():
        model(torch.randn(2, 8), torch.tensor(5)).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_a_step_that_changes_before_the_backward_pass_is_an_error():
    model = two()
    with forgetting_weights(model):
        loss = model(torch.randn(2, 8), torch.tensor(5)).square().mean()
    with torch.no_grad():
        model.second.weight_quantizer.step.mul_(2)
    with pytest.raises(RuntimeError, match="modified"):
        loss.backward()


def test_a_weight_that_changes_before_the_backward_pass_is_an_error():
    model = two()
    with forgetting_weights(model):
        loss = model(torch.randn(2, 8), torch.tensor(5)).square().mean()
    with torch.no_grad():
        model.second.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()


def test_nothing_is_left_behind():
    model = quantized(4, 4).train()
    hooks = [len(m._forward_hooks) for m in model.modules()]
    with pytest.raises(ZeroDivisionError), forgetting_weights(model):
        raise ZeroDivisionError
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
