import pytest
import torch

from tdquant.refine.correction.fit import FEWEST, GAINS, LIMIT, Tables, solve
from tdquant.refine.correction.moments import Moments


def moments(z, y, times):
    """Moments of predictions ``(R, C, N)``."""
    sums = torch.stack([torch.ones_like(z), z, y, z * z, z * y, y * y], 3).double().sum(2)
    return Moments(torch.as_tensor(times).double(), torch.arange(len(z)), sums)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_least_squares_of_many_samples():
    """Against torch.linalg.lstsq, with a shift for each of three channels."""
    z = noise(400, 3, 64)
    y = 0.8 * z + torch.tensor([0.5, -0.2, 0.1])[:, None] + 0.3 * noise(400, 3, 64, seed=1)
    found = solve(moments(z, y, [7.0] * 400), "least", bias=True)
    columns = torch.zeros(400, 3, 64, 4)
    columns[..., 0] = z
    for c in range(3):
        columns[:, c, :, 1 + c] = 1
    exact = torch.linalg.lstsq(columns.reshape(-1, 4), y.reshape(-1, 1)).solution.flatten()
    assert found.knots.tolist() == [7]
    assert torch.allclose(found.gains.float(), exact[:1], atol=1e-3)
    assert torch.allclose(found.biases[0].float(), exact[1:], atol=1e-3)


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_chance_corrects_next_to_nothing(gain, count):
    """Errors that are independent of everything: what is fitted to them is not there."""
    found = []
    for seed in range(8):
        y = noise(count, 2, 64, seed=2 * seed)
        z = y + 0.3 * noise(count, 2, 64, seed=2 * seed + 1)
        tables = solve(moments(z, y, [5.0] * count), gain, bias=True)
        mean = (y - z).mean((0, 2))
        found.append(float(tables.biases.square().mean() / mean.square().mean()))
        if gain == "none":
            assert float(tables.gains) == 1
        if count == 1:
            assert float(tables.gains) == 1
            assert not tables.biases.any()
    assert sum(found) / len(found) < 0.8


@pytest.mark.parametrize("gain", GAINS)
def test_what_all_samples_share_is_corrected_from_four(gain):
    y = noise(4, 2, 64)
    found = solve(moments(y - torch.tensor([[1.0], [-2.0]]), y, [5.0] * 4), gain, bias=True)
    left = found.errors(moments(y - torch.tensor([[1.0], [-2.0]]), y, [5.0] * 4))
    assert (left < 0.1 * 2.5).all()


def test_times_with_few_rows_are_taken_together():
    y = noise(16, 1, 64)
    found = solve(moments(y - 1, y, range(16)), "none", bias=True)
    assert found.knots.tolist() == [1.5, 5.5, 9.5, 13.5]
    assert len(found.knots) == 16 // FEWEST
    assert torch.allclose(found.biases, torch.ones(4, 1).double())
    one = solve(moments(y[:3] - 1, y[:3], range(3)), "none", bias=True)
    assert one.knots.tolist() == [1]


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize(("z", "y"), [(0.0, 0.0), (0.0, 2.0), (3.0, 0.0), (3.0, 2.0), (2.0, 2.0)])
def test_predictions_that_are_constant(gain, z, y):
    shape = 4, 2, 8
    found = solve(moments(torch.full(shape, z), torch.full(shape, y), [1.0] * 4), gain, bias=True)
    assert found.gains.isfinite().all()
    assert found.biases.isfinite().all()
    assert 1 / LIMIT <= float(found.gains) <= LIMIT
    if gain == "none":
        assert torch.allclose(found.biases, torch.full((1, 2), y - z).double())
    if z == y:
        assert float(found.gains) == 1
        assert not found.biases.any()


def test_errors_are_those_of_corrected_predictions():
    z, y = noise(6, 2, 16), noise(6, 2, 16, seed=1)
    gains, biases = torch.tensor([0.5, 2.0]).double(), torch.tensor([[1.0, 2], [3, 4]]).double()
    tables = Tables(torch.tensor([0.0, 10.0]).double(), gains, biases)
    found = tables.errors(moments(z, y, [0, 1, 4, 9, 10, 30]))
    place = torch.tensor([0, 0, 0, 1, 1, 1])
    left = gains[place, None, None] * z + biases[place][:, :, None] - y
    assert torch.allclose(found, left.square().mean((1, 2)))


def test_facts():
    tables = Tables(torch.zeros(1), torch.tensor([1.5]), torch.tensor([[0.5, -2.0]]))
    assert tables.facts() == {"gain": [1.5, 1.5], "bias": 2.0}
    assert Tables(torch.zeros(1), torch.ones(1)).facts() == {"gain": [1.0, 1.0]}
