"""The CUDA backend: its arithmetic on the CPU, and on a GPU where there is one."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tdquant as tdq
from tdquant.clock import Clock
from tdquant.errors import BackendError
from tdquant.layers import QUANTIZED
from tdquant.lowering.cuda import lower_on
from tdquant.lowering.cuda.backend import CudaLayer
from tdquant.lowering.cuda.kernels import FloatProduct, MatrixProduct
from tdquant.lowering.geometry import Geometry
from tdquant.lowering.operation import Codes, Operation
from tdquant.lowering.products import ProductLayer
from tdquant.lowering.reference import ExactProduct
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer, FrozenWeight, OffsetQuantizer
from tdquant.scales import TableScale
from tests.conftest import quantized


class Root(torch.nn.Module):
    def forward(self, x, t):
        return x


def layer(float_layer, weights=8, activations=8, offset=None, zero=0, seed=0):
    """A frozen quantized layer over a clock, with a step that moves with time."""
    rng = torch.Generator().manual_seed(seed)
    grid = Grid.signed(weights, narrow=True)
    codes = torch.randint(grid.qmin, grid.qmax + 1, float_layer.weight.shape, generator=rng)
    step = torch.rand(len(codes), generator=rng) + 0.5
    with torch.no_grad():
        float_layer.weight.copy_(codes * step.reshape(-1, *[1] * (codes.ndim - 1)))
    quant = QUANTIZED[type(float_layer)].from_float(float_layer).requires_grad_(False)
    quant.weight_quantizer = FrozenWeight(grid, step)
    clock = Clock(Root())
    scale = TableScale(torch.arange(4.0), torch.tensor([0.01, 0.02, 0.03, 0.04]))
    if offset is None:
        affine = Grid.affine(activations, zero) if zero else Grid.signed(activations)
        quant.input_quantizer = ActivationQuantizer(affine, scale, clock)
    else:
        quant.input_quantizer = OffsetQuantizer(Grid.affine(activations, 0), scale, clock, offset)
    return quant, clock


def cuda_layer(frozen, fp8):
    return CudaLayer(frozen, "layer", Operation.of(frozen, "layer"), fp8)


def reference_layer(frozen):
    operation = Operation.of(frozen, "layer")
    found = ProductLayer(frozen, "layer", operation)
    found.use(ExactProduct(operation), "exact")
    return found


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_kernel_is_exact_int64_arithmetic(data):
    draw = data.draw
    dims = draw(st.sampled_from([0, 1, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 3])) if dims else 1
    inputs, outputs = groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 9))
    kernel, stride, dilation, padding = (
        draw(st.integers(*r)) for r in ((1, 3), (1, 2), (1, 2), (0, 2))
    )
    side = draw(st.integers(dilation * (kernel - 1) + 1, 8))
    bits_w, bits_a = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from([2, 5, 8]))
    zero = draw(st.integers(0, 2**bits_a - 1))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    grid_w, grid_a = Grid.signed(bits_w, narrow=True), Grid.affine(bits_a, zero)
    shape = (outputs, inputs // groups, *[kernel] * dims)
    codes = torch.randint(grid_w.qmin, grid_w.qmax + 1, shape, generator=rng)
    batch = draw(st.integers(1, 40)) if not dims else 2
    q = torch.randint(
        grid_a.low, grid_a.high + 1, (batch, inputs, *[side] * dims), generator=rng
    ).float()
    if dims == 0:
        exact, geometry = q.long() @ codes.t(), Geometry()
    else:
        convolution = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[dims - 1]
        float_layer = convolution(
            inputs, outputs, kernel, stride, padding, dilation, groups, bias=False
        )
        functional = getattr(torch.nn.functional, f"conv{dims}d")
        exact = functional(q.long(), codes, None, stride, padding, dilation, groups)
        geometry = Geometry.of(QUANTIZED[convolution].from_float(float_layer))
    operation = Operation(codes.to(torch.int8), torch.ones(outputs), None, Codes(grid_a), geometry)
    kernels = {"codes": FloatProduct(operation, torch.float32)}
    if groups == 1:
        kernels["int8"] = MatrixProduct(operation, torch.int8)
        if bits_w < 8 and max(grid_a.high, -grid_a.low) <= 16:
            kernels["fp8"] = MatrixProduct(operation, torch.float8_e4m3fn)
    for name, product in kernels.items():
        assert torch.equal(product(q).long(), exact), name


@pytest.mark.parametrize("kernel", ["int8", "codes", "fp8"])
@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize(
    "float_layer",
    [
        lambda: torch.nn.Linear(24, 16),
        lambda: torch.nn.Linear(7, 5, bias=False),
        lambda: torch.nn.Conv2d(6, 10, 3, padding=1),
        lambda: torch.nn.Conv2d(6, 10, 3, stride=2, padding=1, padding_mode="reflect"),
        lambda: torch.nn.Conv2d(6, 10, 1, bias=False),
        lambda: torch.nn.Conv1d(6, 10, 3, padding="same", dilation=2, padding_mode="circular"),
        lambda: torch.nn.Conv3d(6, 10, (3, 1, 2), stride=2, padding=(1, 0, 1)),
        lambda: torch.nn.Conv3d(6, 10, 3, padding=1, padding_mode="replicate"),
    ],
)
@pytest.mark.parametrize("offset", [None, -0.2785])
def test_a_layer_equals_the_reference(float_layer, kernel, zero, offset):
    torch.manual_seed(0)
    plain = float_layer()
    dims = plain.weight.ndim - 2
    shape = (3, 6, *(9, 8, 4)[:dims]) if dims else (3, plain.weight.shape[1])
    if zero and offset is not None:
        pytest.skip("a published grid has no zero point")
    bits = 4 if kernel == "fp8" else 8
    frozen, clock = layer(plain, bits, bits, offset, zero * 2 ** (bits - 4))
    lowered = cuda_layer(frozen, fp8=True)
    lowered.take(kernel)
    reference = reference_layer(frozen)
    x = torch.randn(shape)
    with torch.no_grad():
        for t in (torch.tensor(2), torch.tensor([0, 3, 1]), torch.tensor(1.5)):
            with clock.at(t):
                expected, found = reference(x), lowered(x)
            assert found.shape == expected.shape
            assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_neither_overflows_nor_loses_codes(dtype):
    plain = torch.nn.Conv2d(64, 8, 3, padding=1, bias=False)
    frozen, clock = layer(plain, 8, 8, zero=20)
    with torch.no_grad():  # the worst case: every code at its end, sums near 2^24
        frozen.weight.copy_((127 * torch.ones_like(frozen.weight)) / 127)
    frozen.weight_quantizer = FrozenWeight(Grid.signed(8, True), torch.tensor(1 / 127))
    frozen = frozen.to(dtype)
    lowered = cuda_layer(frozen, fp8=False)
    lowered.take("codes")
    assert lowered.sums.kernel.weight.dtype == dtype
    x = torch.rand(2, 64, 6, 6).to(dtype) * 4 + 1
    with torch.no_grad(), clock.at(2):
        found, exact = lowered(x), reference_layer(frozen)(x)
    assert found.dtype == dtype
    assert (found.double() - exact.double()).abs().max() <= 3 * torch.finfo(
        dtype
    ).eps * exact.abs().max()


def test_fp8_only_for_codes_that_it_holds():
    for weights, activations, possible in (
        (4, 4, True),
        (5, 5, True),
        (8, 4, False),
        (4, 6, False),
    ):
        frozen, _ = layer(torch.nn.Linear(64, 64), weights, activations)
        assert ("fp8" in cuda_layer(frozen, fp8=True).options) == possible
        assert "fp8" not in cuda_layer(frozen, fp8=False).options


def test_layers_that_stay_say_why():
    frozen = tdq.freeze(quantized(weights=16, activations=8, edges=8))
    rows = {row.path: row for row in tdq.summary(lower_on(frozen, "cpu"))}
    assert rows["reflect"].kernel == "simulated"
    assert "more than 8 bits" in rows["reflect"].note
    assert rows["conv_in"].kernel == "float32 codes"


def test_the_example_decides(frozen, x):
    measured = lower_on(frozen, "cpu", (x, torch.tensor(5)), fp8=True)
    rows = {row.path: row for row in tdq.summary(measured)}
    assert "measured, us: int8" in rows["reflect"].note
    assert not rows["grouped"].note  # groups leave one kernel: there is nothing to measure
    y = frozen(x, 5)
    assert (measured(x, 5) - y).abs().median() <= 1e-5 * y.abs().max()


def test_a_kernel_that_is_wrong_here_is_not_taken(frozen, x, monkeypatch):
    right = FloatProduct.forward
    monkeypatch.setattr(FloatProduct, "forward", lambda self, q: right(self, q) + 1)
    frozen.grouped.input_quantizer = torch.nn.Identity()
    measured = lower_on(frozen, "cpu", (x, torch.tensor(5)))
    assert {row.kernel for row in tdq.summary(measured) if row.weight_bits < 32} == {
        "int8",
        "simulated",
    }


def test_the_frozen_model_stays(frozen, x):
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    y = frozen(x, 5)
    fast = lower_on(frozen, "cpu")
    copied = copy.deepcopy(fast)
    assert torch.equal(frozen(x, 5), y)
    assert torch.equal(copied(x, 5), fast(x, 5))
    assert all(torch.equal(before[k], v) for k, v in frozen.state_dict().items())


def test_threads_share_a_model(frozen, x):
    fast = lower_on(frozen, "cpu")
    times = list(range(0, 1000, 50))
    with torch.no_grad():
        alone = [fast(x, torch.tensor(t)) for t in times]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda t: fast(x, torch.tensor(t)), times))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(frozen):
    with pytest.raises(BackendError, match="no CUDA device"):
        tdq.compile(frozen, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("measured", [False, True])
def test_on_a_gpu(frozen, x, measured):
    t = torch.tensor([3, 600, 999])
    fast = tdq.compile(frozen, "cuda", example=(x, t) if measured else None)
    y = frozen(x, t)
    with torch.no_grad():
        eager = fast(x.cuda(), t.cuda())
        compiled = torch.compile(fast, fullgraph=True)(x.cuda(), t.cuda())
    for found in (eager, compiled):
        assert (found.cpu() - y).abs().median() <= 1e-5 * y.abs().max()
