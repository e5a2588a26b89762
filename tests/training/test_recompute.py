import copy

import pytest
import torch

import tdquant as tdq
from tdquant.errors import TrainingError
from tdquant.models import load_embedded
from tdquant.training.recompute import recompute_blocks
from tests.denoisers import Mixed


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradients_are_those_without_it(dropout):
    pipe = load_embedded("tiny")
    recipe = tdq.Recipe(weights=4, activations=4, scale="temporal", temporal={"dropout": dropout})
    net = tdq.quantize(pipe.unet, recipe)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1, 300, 600, 999])
    tdq.calibrate(net, [(x, k) for k in t], progress=False)
    plain, frugal = copy.deepcopy(net).train(), copy.deepcopy(net).train()
    assert recompute_blocks(frugal) > 0
    grads = []
    for model in (plain, frugal):
        torch.manual_seed(1)
        model(x, t).square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], rtol=1e-5, atol=1e-7), name
    assert any("scale" in name and grad.abs().sum() > 0 for name, grad in grads[1].items())


def test_a_model_without_blocks_says_so():
    with pytest.raises(TrainingError, match="gradient_checkpointing, use_checkpoint"):
        recompute_blocks(Mixed())
