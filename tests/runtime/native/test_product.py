import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tdquant.grid import Grid
from tdquant.runtime.native import Codes, Geometry, Product, exact_widths, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def stored(x, scale, codes, row):
    """Codes of rows, formed in torch."""
    q = torch.div(x - codes.offset, scale).round().clamp(codes.grid.low, codes.grid.high)
    return F.pad((q + codes.zero).to(codes.dtype), (0, row - x.shape[1]))


def exact(codes, weight, zero, geometry):
    """Sums of products of codes in int64 arithmetic, by one matrix product a tap."""
    g = geometry
    q = F.pad(codes.long() - zero, (g.padding[1],) * 2 + (g.padding[0],) * 2)
    n, depth, kh, kw = weight.shape
    height, width = (codes.shape[2], codes.shape[3])
    oh, ow = g.size(height, width, (kh, kw))
    y = torch.zeros(codes.shape[0], n, oh, ow, dtype=torch.long)
    for group in range(g.groups):
        out = slice(group * n // g.groups, (group + 1) * n // g.groups)
        inside = slice(group * depth, (group + 1) * depth)
        for i in range(kh):
            for j in range(kw):
                top, left = i * g.dilation[0], j * g.dilation[1]
                part = q[
                    :,
                    inside,
                    top : top + (oh - 1) * g.stride[0] + 1 : g.stride[0],
                    left : left + (ow - 1) * g.stride[1] + 1 : g.stride[1],
                ]
                y[:, out] += torch.einsum("bchw,nc->bnhw", part, weight[out, :, i, j].long())
    return y


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_sums_are_exact_int64_arithmetic(data):
    draw = data.draw
    wide, groups = draw(st.booleans()), draw(st.sampled_from([1, 1, 2, 3]))
    unit = 1 if groups == 1 else (2 if wide else 4)
    depth, outputs = unit * draw(st.integers(1, 9)), groups * draw(st.integers(1, 21))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 2)]))
    geometry = Geometry(
        draw(st.sampled_from([(1, 1), (2, 2), (1, 2)])),
        draw(st.sampled_from([(0, 0), (1, 1), (2, 1)])),
        draw(st.sampled_from([(1, 1), (2, 1)])),
        groups,
    )
    bits_w, bits_a = draw(st.integers(2, 8)), draw(st.integers(2, 8))
    grid = Grid.affine(bits_a, draw(st.integers(0, 2**bits_a - 1)))
    high = Grid.signed(bits_w, narrow=True).high
    rng = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    weight = torch.randint(-high, high + 1, (outputs, depth, *kernel), generator=rng)
    # Extreme codes side by side are what saturates 16 bits.
    weight = torch.where(
        torch.rand(weight.shape, generator=rng) < 0.5, weight.sign() * high, weight
    )
    weight = weight.to(torch.int8)
    if wide not in exact_widths(weight, grid, groups):
        return
    batch, h, w = draw(st.integers(1, 3)), draw(st.integers(5, 9)), draw(st.integers(5, 9))
    codes = Codes(grid, wide)
    q = torch.randint(grid.low, grid.high + 1, (batch, depth * groups, h, w), generator=rng)
    q = torch.where(torch.rand(q.shape, generator=rng) < 0.5, q, grid.high)
    scale = torch.rand(batch, generator=rng) + 0.5
    weight_scale, bias = torch.rand(outputs, generator=rng) + 0.1, torch.randn(outputs)
    product = Product(weight, weight_scale, bias, codes, geometry)
    x = (q * scale.reshape(-1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
    y = product(codes.of(x, scale, product.row), scale, x.shape)
    assert y.is_contiguous(memory_format=torch.channels_last)
    sums = exact(q + codes.zero, weight, codes.zero, geometry)
    each = weight_scale.reshape(-1, 1, 1) * scale.reshape(-1, 1, 1, 1)
    expected = sums.double() * each.double() + bias.reshape(-1, 1, 1).double()
    assert torch.allclose(y.double(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_worst_sums_do_not_saturate(bits):
    """All weights and all inputs at their largest, more of them than any run."""
    high = 2 ** (bits - 1) - 1
    grid = Grid.affine(8, 0)
    weight = torch.full((16, 512, 1, 1), high, dtype=torch.int8)
    weight[1::2] *= -1
    for wide in exact_widths(weight, grid, 1):
        product = Product(weight, torch.ones(16), None, Codes(grid, wide), Geometry())
        x, one = torch.full((7, 512), 255.0), torch.ones(())
        y = product(product.codes.of(x, one, product.row), one, x.shape)
        assert torch.equal(y, (x @ weight.flatten(1).float().t()))


def test_eight_bit_weights_and_inputs_take_sixteen_bit_codes():
    weight = torch.full((4, 8, 1, 1), 127, dtype=torch.int8)
    assert exact_widths(weight, Grid.affine(8, 0), 1) == [True]
    assert exact_widths(weight // 2, Grid.affine(8, 0), 1) == [False, True]


def test_sums_beyond_32_bits_are_refused():
    weight = torch.full((1, 600, 1, 1), 32000, dtype=torch.int16)
    assert exact_widths(weight, Grid.signed(8), 1) == []


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("channels", [1, 7, 16, 40, 67])
def test_codes_round_as_torch_does(wide, channels):
    rng = torch.Generator().manual_seed(channels)
    codes = Codes(Grid.affine(8, 21), wide)
    x = torch.randn(6, channels, generator=rng) * 30
    x[0, 0], x[1, 0], x[2, 0] = 1e30, -1e30, 0.5  # far outside; a tie
    for scale in (torch.tensor(1.0), torch.tensor([0.3, 1.0, 0.7])):
        each = scale if scale.ndim == 0 else scale.repeat_interleave(2)[:, None]
        row = channels + 3
        assert torch.equal(codes.of(x, scale, row), stored(x, each, codes, row))
        q = torch.div(x, each).round().clamp(codes.grid.low, codes.grid.high)
        assert torch.equal(codes.rounded(x, scale), q * each)


def test_threads_do_not_change_a_bit():
    rng = torch.Generator().manual_seed(0)
    weight = torch.randint(-7, 8, (50, 64, 3, 3), generator=rng).to(torch.int8)
    codes = Codes(Grid.affine(8, 20))
    product = Product(weight, torch.rand(50), None, codes, Geometry(padding=(1, 1)))
    x = torch.randn(2, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    scale, before, results = torch.tensor(0.02), torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(product(codes.of(x, scale, product.row), scale, x.shape))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
