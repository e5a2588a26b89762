import torch

from tdquant.flow.sketches import Sketch, changed


def test_a_change_that_one_sum_misses():
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    one, other = torch.zeros(2, 2, 3, 4)
    one[0, 0, 1], other[0, 2, 3] = 1.0, 1.0
    a, b = (Sketch.of(d).sums[0].reshape(2, -1)[0, 0] for d in (one, other))
    hidden = x + one * b - other * a  # changes a sample, and not its first weighted sum
    where = changed(Sketch.of(x), Sketch.of(hidden))
    assert where[0].tolist() == [True, False]


def test_a_change_is_found_where_it_is():
    x = torch.randn(2, 3, 4)
    y = x.clone()
    y[1, 2, 0] += 1
    where = changed(Sketch.of(x), Sketch.of(y))
    assert [w.nonzero().flatten().tolist() for w in where] == [[1], [2], [0]]
    assert changed(Sketch.of(x), Sketch.of(x[:1])) is None
