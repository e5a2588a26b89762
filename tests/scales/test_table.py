import pytest
import torch

from tdquant.errors import CalibrationError
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.scales import ScaleBank, TableScale
from tdquant.scales.table import training_timesteps

GRID, EMPTY = Grid.signed(8), torch.empty(0)


def steps(scale, t):
    return scale(torch.as_tensor(t), EMPTY, GRID)


def test_exact_on_integer_knots_for_integers_and_floats():
    table = torch.rand(1000) + 0.01
    scale = TableScale(torch.arange(1000.0), table)
    t = torch.arange(1000)
    assert torch.equal(steps(scale, t), table)
    assert torch.equal(steps(scale, t.float()), table)
    assert torch.equal(steps(scale, 17), table[17])


def test_exact_on_continuous_knots_and_log_linear_between():
    knots = torch.tensor([0.0, 0.3, 0.35, 1.0])
    table = torch.tensor([0.1, 0.4, 0.2, 0.8])
    scale = TableScale(knots, table)
    assert torch.equal(steps(scale, knots), table)
    assert steps(scale, 0.15).item() == pytest.approx(0.2, rel=1e-5)  # geometric mean of 0.1, 0.4
    between = steps(scale, torch.linspace(0, 0.3, 20))
    assert (between.diff() > 0).all()


def test_clamped_outside():
    scale = TableScale(torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.2]))
    assert steps(scale, [-5.0, 9.0]).tolist() == pytest.approx([0.1, 0.2])


def test_one_knot_is_static():
    scale = TableScale(torch.zeros(1), torch.tensor([0.3]))
    assert scale.static
    assert steps(scale, [3, 900]).item() == pytest.approx(0.3)


def several():
    return [
        TableScale(torch.arange(1000.0), torch.rand(1000) + 0.01),
        TableScale(torch.zeros(1), torch.tensor([0.3])),
        TableScale(torch.arange(1000.0), torch.rand(1000) + 0.01),
        TableScale(torch.arange(5.0, 9.0), torch.rand(4) + 0.01),
        TableScale(torch.zeros(1), torch.tensor([1e-20])),
    ]


@pytest.mark.parametrize("t", [7, -3, 2000, [2, 999, 0], [[3], [4]]])
def test_one_lookup_for_all_gives_each_its_step_to_the_bit(t):
    scales, t = several(), torch.as_tensor(t)
    found = TableScale.batched_steps(scales, t)
    assert set(found) == set(scales)
    for scale in scales:
        assert torch.equal(found[scale], scale(t, EMPTY, GRID))


def test_what_one_lookup_leaves_to_each():
    between, learned, offloaded = several()[0], several()[0], several()[2].to("meta")
    learned.table.requires_grad_(True)
    static = several()[1]
    assert not TableScale.batched_steps([between, offloaded], torch.tensor(0.5))
    assert not TableScale.batched_steps([learned, offloaded], torch.tensor(3))
    assert set(TableScale.batched_steps([between, static], torch.tensor(0.5))) == {static}


@pytest.mark.parametrize(
    ("knots", "table"),
    [
        ([0.0, 1.0], [0.1]),
        ([], []),
        ([0.0, 0.0], [0.1, 0.1]),
        ([0.0], [0.0]),
        ([0.0], [float("nan")]),
    ],
)
def test_tables_that_cannot_be(knots, table):
    with pytest.raises(CalibrationError):
        TableScale(torch.tensor(knots), torch.tensor(table))


def test_learned_table_gets_gradients_only_where_looked_up():
    scale = TableScale(torch.arange(10.0), torch.ones(10), learned=True)
    steps(scale, [2, 7]).sum().backward()
    assert scale.table.grad.nonzero().flatten().tolist() == [2, 7]


def test_state_dict_of_another_length():
    source = TableScale(torch.arange(100.0), torch.rand(100) + 1)
    target = TableScale(torch.tensor([0.0, 0.5]), torch.ones(2))
    target.load_state_dict(source.state_dict())
    assert torch.equal(steps(target, torch.arange(100)), source.table)


def test_training_timesteps():
    assert torch.equal(training_timesteps(0, 999), torch.arange(1000.0))
    levels = training_timesteps(0.002, 80.0)  # even in the logarithm
    assert len(levels) == 1024
    assert (levels[0], levels[-1]) == (torch.tensor(0.002), 80)
    assert torch.allclose(levels[1:] / levels[:-1], torch.tensor(40000 ** (1 / 1023)))
    assert torch.equal(training_timesteps(0.0, 80.5), torch.linspace(0, 80.5, 1024))
    assert torch.equal(training_timesteps(0.01, 1.0), torch.linspace(0.01, 1, 1024))
    assert torch.equal(training_timesteps(1, 1000), torch.arange(1, 1001.0))


def test_learning_reaches_the_timesteps_that_were_visited_and_no_other():
    x = torch.randn(3, 4, 5)
    scale = TableScale(torch.arange(1000.0), torch.full((1000,), 0.2), learned=True)
    t = torch.tensor([7, 500, 7])
    step = scale(t, x, GRID).reshape(3, 1, 1)
    scale.quantize(x, step, GRID).square().sum().backward()
    assert scale.table.grad.nonzero().flatten().tolist() == [7, 500]


def test_gradient_scale_of_lsq():
    x = torch.randn(2, 3, 5)
    scale = TableScale(torch.arange(10.0), torch.full((10,), 0.02), learned=True)
    scale.quantize(x, scale(torch.tensor(4), x, GRID), GRID).sum().backward()
    s = torch.tensor(0.02, requires_grad=True)
    fake_quantize(x, s, GRID.low, GRID.high).sum().backward()
    assert scale.table.grad[4].item() == pytest.approx(s.grad.item() / (15 * 127) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("knots", [torch.arange(1000.0), torch.linspace(0, 1, 1024)], ids=len)
def test_a_step_between_knots_is_the_same_alone_and_among_others(knots):
    rng = torch.Generator().manual_seed(0)
    scale = TableScale(knots, torch.rand(len(knots), generator=rng) + 0.1)
    times = torch.rand(500, generator=rng) * knots[-1]
    together = steps(scale, times)
    assert torch.equal(together, torch.stack([steps(scale, t) for t in times]))
    bank = ScaleBank([scale])
    assert torch.equal(together, bank(times)[0])
    assert torch.equal(together, torch.stack([bank(t)[0] for t in times]))
