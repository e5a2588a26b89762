"""What a layer computes is worked out once: its geometry and bounds, for every kind of layer."""

import pytest
import torch

import tdquant as tdq
from tdquant.errors import BackendError
from tdquant.lowering import labels
from tdquant.lowering.backends import BACKENDS
from tdquant.lowering.operation import Codes, Operation, attention_reason, saturates
from tdquant.lowering.products import register_product
from tdquant.numerics.grid import Grid
from tests.lowering.models import LAYERS, One
from tests.lowering.models import frozen as random_codes


@pytest.fixture(params=LAYERS)
def operation(request):
    torch.manual_seed(0)
    model = random_codes(One(LAYERS[request.param]()), 4, Grid.affine(8, 100))
    return Operation.of(model.layer, "layer")


def codes_for(operation):
    channels = operation.weight.shape[1] * operation.geometry.groups
    dims = operation.geometry.dims
    shape = (2, channels, *(9, 8, 4)[:dims]) if dims else (2, 3, channels)
    return torch.randint(-100, 156, shape).float()


def exact(operation, q):
    return operation.geometry.convolve(q, operation.weight.float())


def test_windows_times_weights_are_the_product(operation):
    if operation.geometry.groups > 1:
        pytest.skip("windows are of all channels")
    q, g = codes_for(operation), operation.geometry
    rows = g.windows(g.padded(q), operation.taps)
    y = rows @ operation.weight.float().movedim(1, -1).flatten(1).t()
    assert torch.equal(y.movedim(-1, 1) if g.dims else y, exact(operation, q))


def test_two_dimensions_hold_them_all(operation):
    q, g, lifted = codes_for(operation), operation.geometry, operation.lifted()
    if g.dims:
        image = q.reshape(*q.shape[:2], *(1,) * (2 - g.dims), *q.shape[2:])
        y = exact(lifted, image).reshape(exact(operation, q).shape)
    else:
        y = exact(lifted, q.flatten(0, 1)[..., None, None]).reshape(*q.shape[:-1], -1)
    assert torch.equal(y, exact(operation, q))
    assert lifted.is_matrix == operation.is_matrix


def test_a_code_of_one_everywhere(operation):
    q, g = codes_for(operation), operation.geometry
    found = g.ones_product(q, operation.channel_sums())
    assert torch.equal(found.expand_as(exact(operation, q)), exact(operation, torch.ones_like(q)))


def test_sums_of_float_weights_are_no_whole_numbers():
    weight = torch.tensor([[[0.25, -0.5]], [[1.75, 0.125]]])
    floats = Operation(weight, None, None, None)
    assert torch.equal(floats.channel_sums(), weight.sum(1).double())
    codes = Operation((4 * weight).to(torch.int8), torch.ones(2), None, None)
    assert codes.channel_sums().tolist() == [[1, -2], [7, 0]]
    assert codes.channel_sums().dtype == torch.int32


def test_the_border_is_wrapped_first_or_padded_at_once(operation):
    q, g = codes_for(operation), operation.geometry
    assert torch.equal(
        g.inner.convolve(g.wrapped(q), operation.weight.float()), exact(operation, q)
    )


def whole(count, high=255, weight=127):
    codes = torch.full((1, count), weight, dtype=torch.int8)
    return Operation(codes, torch.ones(1), None, Codes(Grid(8, 0, high)))


def test_bounds_are_of_the_codes_that_there_are():
    terms = (2**31 - 1) // (255 * 127)
    assert not whole(terms).int32_reason
    assert whole(terms + 1).int32_reason == labels.WIDE_SUMS
    assert not whole(terms + 1, weight=126).int32_reason
    assert not whole(terms + 1).float_reason
    assert whole(4).saturates
    assert not whole(4, weight=64).saturates
    assert not whole(4, high=127).saturates
    assert saturates(255, 65)
    assert not saturates(255, 64)


def test_reasons_for_float():
    wide = Codes(Grid(9, 0, 256))
    assert Operation(torch.ones(1, 4), None, None, wide).float_reason == labels.FLOAT_OPERAND
    assert Operation(whole(4).weight, torch.ones(1), None, None).float_reason
    assert Operation(whole(4).weight, torch.ones(1), None, wide).int32_reason == labels.WIDE_CODES
    signed, unsigned = Codes(Grid.signed(8)), Codes(Grid.affine(8, 0))
    assert not attention_reason(unsigned, signed, signed=True)
    assert attention_reason(signed, unsigned, signed=True) == labels.UNSIGNED_CODES
    assert not attention_reason(signed, unsigned)
    assert attention_reason(Codes(Grid.affine(8, 0), -0.3), signed) == labels.OFFSET_CODES
    assert attention_reason(signed, wide) == labels.WIDE_CODES


@pytest.fixture
def picky():
    """A backend of one function that refuses convolutions."""

    @register_product("picky")
    def product(operation):
        if operation.geometry.dims:
            raise BackendError("no convolutions")
        weight = operation.weight.double()
        return lambda q: q.double() @ weight.t()

    yield "picky"
    BACKENDS.pop("picky")


def test_an_engine_is_one_function(picky, frozen, x):
    fast = tdq.compile(frozen, picky)
    rows = {row.path: row for row in tdq.summary(fast)}
    assert rows["linear"].kernel == picky
    assert (rows["conv_in"].kernel, rows["conv_in"].note) == ("simulated", "no convolutions")
    with torch.no_grad():
        for t in (torch.tensor(5), torch.tensor([3, 600, 999])):
            y = frozen(x, t)
            assert (fast(x, t) - y).abs().median() <= 1e-5 * y.abs().max()
