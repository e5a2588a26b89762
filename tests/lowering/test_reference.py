import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tdquant as tdq
from tdquant.clock import Clock
from tdquant.errors import BackendError, ConversionError, FreezeError
from tdquant.layers import QUANTIZED
from tdquant.lowering.operation import Operation
from tdquant.lowering.products import ProductLayer
from tdquant.lowering.reference import ExactProduct
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer, FrozenWeight
from tdquant.scales import TableScale
from tests.conftest import quantized
from tests.denoisers import Mixed


class Root(torch.nn.Module):
    def forward(self, x, t):
        return x


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_sums_are_exact_int64_arithmetic(data):
    draw = data.draw
    groups = draw(st.sampled_from([1, 2, 3]))
    inputs, outputs = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
    kernel, stride, padding = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 2)),
        draw(st.integers(0, 2)),
    )
    bits_w, bits_a = draw(st.sampled_from([2, 4, 8, 16])), draw(st.sampled_from([2, 5, 8, 16]))
    side = draw(st.integers(kernel, 7))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    grid_w = Grid.signed(bits_w, narrow=True)
    grid_a = Grid.affine(bits_a, draw(st.integers(0, 2**bits_a - 1)))
    layer = torch.nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, bias=False
    )
    codes = torch.randint(grid_w.qmin, grid_w.qmax + 1, layer.weight.shape, generator=rng)
    step = torch.rand(outputs, generator=rng) + 0.5
    with torch.no_grad():
        layer.weight.copy_(codes * step.reshape(-1, 1, 1, 1))
    quant = QUANTIZED[torch.nn.Conv2d].from_float(layer)
    quant.weight_quantizer = FrozenWeight(grid_w, step)
    clock = Clock(Root())
    one = TableScale(torch.zeros(1), torch.tensor([0.25]))
    quant.input_quantizer = ActivationQuantizer(grid_a, one, clock)
    x_codes = torch.randint(grid_a.low, grid_a.high + 1, (2, inputs, side, side), generator=rng)
    operation = Operation.of(quant, "layer")
    product, reference = ExactProduct(operation), ProductLayer(quant, "layer", operation)
    reference.use(product, "exact")
    with clock.at(0):
        found = reference(x_codes * 0.25)
    exact = torch.nn.functional.conv2d(
        x_codes.long(), codes.long(), stride=stride, padding=padding, groups=groups
    )
    assert torch.equal(product(x_codes.float()).long(), exact)
    expected = exact.double() * 0.25 * step.double().reshape(-1, 1, 1)
    assert torch.equal(found, expected.float())


def test_unknown_backend_and_unfrozen_model(frozen, calibrated):
    with pytest.raises(BackendError, match="no backend 'abacus'"):
        tdq.compile(frozen, "abacus")
    with pytest.raises(FreezeError):
        tdq.compile(calibrated)
    with pytest.raises(ConversionError):
        tdq.compile(Mixed())


def test_sixteen_bits_do_not_overflow(x):
    frozen = tdq.freeze(quantized(weights=16, activations=16, edges=16, scale="static"))
    found = tdq.compile(frozen, "reference")(x, 5)
    assert torch.allclose(found, frozen(x, 5), rtol=1e-3, atol=1e-4)
