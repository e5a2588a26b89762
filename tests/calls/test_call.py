import pytest
import torch
from torch import nn

from tdquant.calls.call import Reservoir, batch_size, few_samples, run
from tdquant.errors import CalibrationError


class Named:
    def __init__(self, sample):
        self.sample = sample


class Echo(nn.Module):
    def forward(self, x, t):
        return {0: x, 1: (x, t), 2: Named(x), 3: "text"}[int(t)]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_outputs_of_every_form(kind):
    x = torch.ones(2)
    assert run(Echo(), (x, kind)) is x
    assert run(Echo(), {"x": x, "t": kind}) is x


class Give(nn.Module):
    def forward(self, x, t):
        return t


class Take(nn.Module):
    def forward(self, x, t):
        return {"sample": [2 * part for part in x]}


def test_nests_of_tensors_are_one_row_a_sample():
    """As ControlNets give residuals, LTX-2 pictures and sound."""
    a, b = torch.randn(2, 3, 4), torch.randn(4, 5)
    nest = {"down": [a, torch.arange(2)], "mid": (b,)}
    found = run(Give(), (torch.zeros(2, 1), nest))
    assert torch.equal(found, torch.cat([a.flatten(1), b.reshape(2, -1)], 1))
    with pytest.raises(CalibrationError, match="not those of 3 samples"):
        run(Give(), (torch.zeros(3, 1), nest))


def test_lists_of_samples_of_other_sizes():
    """As Z-Image takes and gives images."""
    x = [torch.randn(2, 3), torch.randn(4, 3), torch.randn(1, 3)]
    found = run(Take(), {"x": x, "t": torch.arange(3.0)})
    assert found.shape == (3, 12)
    assert torch.equal(found[0], torch.cat([2 * x[0].flatten(), torch.zeros(6)]))
    assert torch.equal(found[1], 2 * x[1].flatten())


def test_outputs_and_batches_of_no_known_form():
    with pytest.raises(CalibrationError, match="output of type str"):
        run(Echo(), (torch.ones(2), 3))
    with pytest.raises(CalibrationError, match="batch of type Tensor"):
        run(Echo(), torch.ones(2))


def test_cutting_to_a_few_samples():
    call = {
        "x": torch.ones(5, 3),
        "t": torch.arange(5),
        "scalar": torch.tensor(3),
        "c": {"e": torch.ones(5)},
    }
    cut = few_samples(call, 2)
    assert batch_size(call) == 5
    assert cut["x"].shape == (2, 3)
    assert cut["t"].tolist() == [0, 4]  # of a guided batch one of each half
    assert cut["scalar"] == 3
    assert cut["c"]["e"].shape == (2,)
    assert cut["x"].data_ptr() != call["x"].data_ptr()


def test_reservoir_is_bounded_even_and_seeded():
    def kept(seed):
        reservoir = Reservoir(10, 1, seed)
        for i in range(500):
            reservoir.offer((torch.tensor([i]),))
        return sorted(int(c[0]) for c in reservoir.calls)

    assert len(kept(0)) == 10
    assert kept(0) == kept(0)
    assert kept(0) != kept(1)
    mean = torch.tensor([kept(s) for s in range(40)]).float().mean()
    assert 200 < mean < 300


def test_a_timestep_is_the_last_to_say_how_many_samples_there_are():
    assert batch_size({"t": torch.tensor([5]), "x": torch.zeros(4, 3)}) == 4
    assert batch_size((torch.tensor(3), torch.tensor([5, 6]))) == 2
