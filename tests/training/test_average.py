import torch

from tdquant.training.average import Average
from tests.training.runs import model


def test_it_follows_the_formula_and_includes_scales():
    net = model()
    average = Average(net, 0.5)
    scales = [n for n in average.parameters if ".scale." in n or "weight_quantizer.step" in n]
    assert scales
    expected = {n: p.detach().clone() for n, p in net.named_parameters()}
    for n in range(1, 5):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.01)
        average.update(net)
        d = min(0.5, (1 + n) / (10 + n))
        for name, p in net.named_parameters():
            expected[name] = d * expected[name] + (1 - d) * p.detach()
    for name, value in average.parameters.items():
        assert torch.allclose(value, expected[name], atol=1e-6)


def test_the_copy_carries_the_average_and_has_a_clock_of_its_own(x):
    net = model()
    average = Average(net)
    with torch.no_grad():
        net.conv_out.bias.add_(1.0)
    copied = average.copy(net)
    assert copied.tdq.clock is not net.tdq.clock
    assert not copied.training
    before = copied(x, torch.tensor(5))
    with torch.no_grad():
        net.conv_out.bias.add_(1.0)
    assert torch.equal(copied(x, torch.tensor(5)), before)
