import copy
import functools
import math
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import tdquant as tdq
from tdquant.clock import clock_of
from tdquant.errors import BackendError, ClockError
from tdquant.layers import quantized_layers
from tdquant.lowering.geometry import Geometry
from tdquant.lowering.onednn import kernels, layer
from tdquant.lowering.onednn.kernels import Float, OneDnn, exact_kernels
from tdquant.lowering.operation import Codes, Operation
from tdquant.numerics.grid import Grid
from tdquant.quantizers import OffsetQuantizer
from tdquant.support.machine import instructions
from tdquant.support.memory import resident_bytes
from tests.conftest import quantized
from tests.denoisers import Blocks

VNNI = bool(instructions() & {"vnni", "amx"})


@functools.cache
def frozen_blocks(weights, activations, **recipe):
    model = Blocks().eval()
    recipe = tdq.Recipe(weights, activations, edges=8, remedies=(), **recipe)
    tdq.quantize(model, recipe)
    rng = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(2, 3, 12, 12, generator=rng), torch.tensor(t)) for t in range(0, 1000, 90)
    ]
    tdq.calibrate(model, batches, progress=False)
    return tdq.freeze(model)


@pytest.fixture(scope="module")
def w4a8():
    return frozen_blocks(4, 8)


@pytest.fixture
def image():
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def layer_errors(frozen, fast, x, t):
    """Relative error of every lowered layer on the very input that the frozen one had."""
    seen = {}
    hooks = [
        frozen_layer.register_forward_hook(
            lambda _, args, y, path=path: seen.__setitem__(path, (args[0], y))
        )
        for path, frozen_layer in quantized_layers(frozen)
    ]
    with torch.no_grad():
        frozen(x, t)
        with fast.tdq.clock.at(t):
            errors = {
                path: float((fast.get_submodule(path)(a) - y).norm() / y.norm())
                for path, (a, y) in seen.items()
            }
    for hook in hooks:
        hook.remove()
    return errors


@pytest.mark.parametrize("bits", [(8, 8), (7, 8), (4, 8), (8, 5), (3, 3), (8, 16), (12, 8)])
@pytest.mark.parametrize("maker", ["int8 onednn", "float"])
def test_every_kernel_is_exact_layer_by_layer(bits, maker, image, monkeypatch):
    frozen = frozen_blocks(*bits)
    original = exact_kernels

    def only(operation):
        found = original(operation)
        return {maker: found[maker]} if maker in found else {"float": Float}

    monkeypatch.setattr(layer, "exact_kernels", only)
    fast = tdq.compile(frozen, "onednn", example=(image, torch.tensor(500)))
    for t in (torch.tensor(0), torch.tensor(431), torch.tensor([3, 999, 500])):
        errors = layer_errors(frozen, fast, image, t)
        assert max(errors.values()) < 1e-5, errors
    exact = max(bits) <= 8 and (VNNI or min(bits) < 8)
    if maker == "float" or (exact and instructions()):
        assert {row.kernel for row in tdq.summary(fast) if row.input_codes} == {maker}


def test_whole_model_equals_the_reference(w4a8, image):
    fast, exact = tdq.compile(w4a8, "onednn"), tdq.compile(w4a8, "reference")
    with torch.no_grad():
        for t in (torch.tensor(7), torch.tensor([1, 500, 998])):
            error = (fast(image, t) - exact(image, t)).abs()
            assert error.median() < 1e-6
            assert error.max() < 0.1 * exact(image, t).abs().max()  # a code that fell elsewhere


@pytest.mark.parametrize(
    ("found", "bits", "why"),
    [
        ({"avx2"}, (8, 8), "without VNNI"),
        ({"avx2"}, (7, 8), ""),
        ({"avx2", "vnni"}, (8, 8), ""),
        ({"avx512", "amx"}, (8, 8), ""),
        (set(), (4, 8), "no int8 operators"),
        ({"avx2", "vnni"}, (8, 16), "more than 8 bits"),
        ({"avx2", "vnni"}, (12, 8), "more than 8 bits"),
        ({"avx2", "vnni"}, (32, 8), "float"),
    ],
)
def test_int8_runs_only_where_it_is_exact_and_the_summary_says_why(
    found, bits, why, image, monkeypatch
):
    monkeypatch.setattr(kernels, "instructions", lambda: frozenset(found))
    frozen = frozen_blocks(*bits)
    operation = Operation.of(frozen.get_submodule("skip"), "skip").lifted()
    assert (OneDnn.name in exact_kernels(operation)) == (not why)
    if why:
        fast = tdq.compile(frozen, "onednn", example=(image, torch.tensor(1)))
        rows = {row.path: row for row in tdq.summary(fast)}
        assert rows["skip"].kernel == "float"
        assert why in rows["skip"].note
        t = torch.tensor([3, 999, 500])
        assert max(layer_errors(frozen, fast, image, t).values()) < 1e-5


def images(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    height, width = padding
    return Geometry(stride, dilation, groups, (width, width, height, height))


def operation_of(weight, activations=8, zero=0, **geometry):
    codes = Codes(Grid.affine(activations, zero))
    return Operation(weight, torch.ones(len(weight)), None, codes, images(**geometry))


def test_sums_beyond_32_bits_are_left_to_float(monkeypatch):
    monkeypatch.setattr(kernels, "instructions", lambda: frozenset({"vnni"}))
    terms = (2**31 - 1) // (255 * 127)
    for count, fits in ((terms, True), (terms + 1, False), (67_000, False)):
        weight = torch.full((1, count, 1, 1), 127, dtype=torch.int8)
        assert (kernels.obstacle(operation_of(weight)) == "") == fits
    weight[:, ::2] = 1  # the codes that there are decide, not their type
    assert not kernels.obstacle(operation_of(weight))


def test_a_layer_of_67000_products_is_right():
    q = torch.full((1, 67_000), 255.0)
    weight = torch.full((2, 67_000, 1, 1), 127, dtype=torch.int8)
    operation = operation_of(weight)
    (make,) = exact_kernels(operation).values()
    y = make(operation, q.shape)(q, torch.ones(()))
    assert torch.allclose(y.double(), torch.full((1, 2), 67_000 * 255 * 127.0).double(), rtol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "beyond"),
    [
        ((2, 2), (2, 1), (1, 1), True),  # garbage with torch 2.13
        ((2, 2), (1, 1), (1, 1), False),
        ((3, 3), (2, 2), (1, 1), False),
        ((2, 2), (2, 2), (2, 2), False),
        ((1, 3), (0, 3), (1, 1), True),
        ((1, 1), (0, 0), (1, 1), False),
        ((1, 1), (1, 0), (1, 1), True),
    ],
)
def test_borders_as_wide_as_the_window_are_not_for_onednn(kernel, padding, dilation, beyond):
    geometry = images(stride=(1, 1), padding=padding, dilation=dilation, groups=1)
    assert geometry.lies_beyond(kernel) == beyond


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_sums_are_exact_int64_arithmetic(data):
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    depth, outputs = draw(st.integers(1, 33)), groups * draw(st.integers(1, 21))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 2)]))
    geometry = {
        "stride": draw(st.sampled_from([(1, 1), (2, 2), (1, 2)])),
        "padding": draw(st.sampled_from([(0, 0), (1, 1), (2, 1)])),
        "dilation": draw(st.sampled_from([(1, 1), (2, 1)])),
        "groups": groups,
    }
    bits_w, bits_a = draw(st.integers(2, 8)), draw(st.integers(2, 8))
    zero = draw(st.integers(0, 2**bits_a - 1))
    high = Grid.signed(bits_w, narrow=True).high
    rng = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    weight = torch.randint(-high, high + 1, (outputs, depth, *kernel), generator=rng)
    # Extreme codes side by side are what saturates 16 bits.
    extreme = torch.rand(weight.shape, generator=rng) < 0.5
    weight = torch.where(extreme, weight.sign() * high, weight)
    operation = Operation(
        weight.to(torch.int8),
        torch.rand(outputs, generator=rng) + 0.1,
        draw(st.sampled_from([None, torch.randn(outputs, generator=rng)])),
        Codes(Grid.affine(bits_a, zero)),
        images(**geometry),
    )
    if kernels.obstacle(operation):
        return
    batch, h, w = draw(st.integers(1, 3)), draw(st.integers(5, 9)), draw(st.integers(5, 9))
    grid = operation.inputs.grid
    q = torch.randint(grid.low, grid.high + 1, (batch, depth * groups, h, w), generator=rng)
    q = torch.where(torch.rand(q.shape, generator=rng) < 0.5, q, grid.high)
    scale = torch.rand(draw(st.sampled_from([1, batch])), generator=rng) + 0.5
    scale = scale.reshape(-1, 1, 1, 1) if len(scale) > 1 else scale.reshape(())
    x = (q * scale).contiguous(memory_format=torch.channels_last)
    y = OneDnn(operation, x.shape)(x, scale)
    sums = F.conv2d(q, weight, None, *geometry.values())
    each = operation.step.reshape(-1, 1, 1) * scale
    expected = sums.double() * each.double()
    if operation.bias is not None:
        expected = expected + operation.bias.reshape(-1, 1, 1).double()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(y.double(), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_worst_sums_do_not_saturate(bits):
    """All weights and all inputs at their largest."""
    high = 2 ** (bits - 1) - 1
    weight = torch.full((16, 512, 1, 1), high, dtype=torch.int8)
    weight[1::2] *= -1
    operation = operation_of(weight)
    x = torch.full((7, 512), 255.0)
    expected = x @ weight.flatten(1).float().t()
    for make in exact_kernels(operation).values():
        assert torch.equal(make(operation, x.shape)(x, torch.ones(())), expected)
    image = torch.full((1, 512, 3, 3), 255.0).contiguous(memory_format=torch.channels_last)
    window = operation_of(weight.expand(-1, -1, 3, 3).contiguous())
    if not kernels.obstacle(window):
        y = OneDnn(window, image.shape)(image, torch.ones(()))
        assert torch.allclose(y.flatten(1), 9 * expected[:1], rtol=1e-7)


def test_threads_do_not_change_a_bit():
    rng, before = torch.Generator().manual_seed(0), torch.get_num_threads()
    weight = torch.randint(-7, 8, (50, 64, 3, 3), generator=rng).to(torch.int8)
    operation = operation_of(weight, zero=20, padding=(1, 1))
    x = torch.randn(2, 64, 16, 16, generator=rng).contiguous(memory_format=torch.channels_last)
    kernel, results = OneDnn(operation, x.shape), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(kernel(x, torch.tensor(0.02)))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_nan_stays_in_its_sample_where_samples_have_scales_of_their_own():
    weight = torch.ones(2, 3, 1, 1, dtype=torch.int8)
    operation, x = operation_of(weight, zero=20), torch.ones(4, 5, 3)
    x[1, 2, 0], x[2, 0, 0], x[3, 0, 0] = math.nan, math.inf, -math.inf
    kernel = OneDnn(operation, x.shape)
    y = kernel(x, torch.ones(4, 1, 1))
    assert y.isnan().all((1, 2)).tolist() == [False, True, False, False]
    finite = x.clamp(-20, 235) @ weight.flatten(1).float().t()
    assert torch.equal(y[[0, 2, 3]], finite[[0, 2, 3]])
    assert kernel(x, torch.ones(())).isnan().all()


@pytest.mark.parametrize("kernel", [Float, OneDnn])
@pytest.mark.parametrize("sides", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 0)])
def test_the_authors_offset_grid_is_exact(kernel, sides, w4a8):
    frozen = copy.deepcopy(w4a8)
    old = frozen.conv1
    # As torch itself pads where padding="same" is uneven.
    frozen.conv1.padding = (sides[2], sides[0]) if sides[0] == sides[1] else "same"
    frozen.conv1._reversed_padding_repeated_twice = list(sides)
    q = old.input_quantizer
    frozen.conv1.input_quantizer = OffsetQuantizer(
        Grid.affine(4, 0),
        q.scale,
        q.clock,
    )
    x = F.silu(torch.randn(2, 20, 6, 6)).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), frozen.tdq.clock.at(torch.tensor(300)):
        step = frozen.conv1.input_quantizer.step(x)
        inputs = F.pad(frozen.conv1.input_quantizer(x), sides)
        expected = F.conv2d(inputs, frozen.conv1.weight, frozen.conv1.bias)
        y = kernel(Operation.of(frozen.conv1, "conv1").lifted(), x.shape)(x, step)
    assert torch.allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_inference_mode_gives_the_same(w4a8, image):
    fast = tdq.compile(w4a8, "onednn")
    with torch.no_grad():
        expected = fast(image, torch.tensor(5))
    with torch.inference_mode():
        assert torch.allclose(fast(image, torch.tensor(5)), expected, atol=1e-4)


def test_eight_threads_share_a_model(w4a8):
    fast, threads = tdq.compile(w4a8, "onednn"), torch.get_num_threads()
    inputs = [
        torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(i)) for i in range(8)
    ]
    found = [None] * 8

    def run(i):
        torch.set_num_threads(1)
        with torch.no_grad():  # the first call of all, so kernels are chosen in the crowd
            found[i] = [fast(inputs[i], torch.tensor(111 * i)) for _ in range(3)]

    workers = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    torch.set_num_threads(1)
    with torch.no_grad():
        for i, results in enumerate(found):
            alone = fast(inputs[i], torch.tensor(111 * i))
            assert all(torch.allclose(y, alone, atol=1e-6) for y in results)
    torch.set_num_threads(threads)


def test_the_frozen_model_stays_as_it_is_and_weights_are_not_doubled(w4a8, image):
    before = {k: v.clone() for k, v in w4a8.state_dict().items()}
    fast = tdq.compile(w4a8, "onednn", example=(image, torch.tensor(1)))
    assert all(torch.equal(before[k], v) for k, v in w4a8.state_dict().items())
    assert not any(
        "weight" in name and p.numel() for name, p in fast.named_parameters() if "norm" not in name
    )
    assert fast.norm.weight.data_ptr() == w4a8.norm.weight.data_ptr()


def test_a_compact_model_takes_half_of_the_float_models_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(layer, "_times", lambda makers, *_: dict.fromkeys(makers, 1.0))
    torch.manual_seed(0)
    model, rng = Rows(256).eval(), torch.Generator().manual_seed(0)
    before = resident_bytes(model)
    batch = [(torch.randn(2, 3, 5, 256, generator=rng), torch.tensor(5))]
    tdq.quantize(model, tdq.Recipe(4, 8, edges=7))
    tdq.calibrate(model, batch, progress=False)
    tdq.save(tdq.freeze(model), tmp_path)
    fast = tdq.compile(tdq.load(tmp_path, model=Rows(256), compact=True), "onednn", batch[0])
    if instructions():
        assert {row.kernel for row in tdq.summary(fast)} == {OneDnn.name}
        assert resident_bytes(fast) < before / 2


def test_the_summary_tells_every_kernel(w4a8, image):
    fast = tdq.compile(w4a8, "onednn")
    assert "untried" in str(tdq.summary(fast))
    with torch.no_grad():
        fast(image, torch.tensor(1))
    text = str(tdq.summary(fast))
    assert "untried" not in text
    assert "as fast as float" in text or "the time as integers" in text
    assert "backend: onednn" in text


def test_half_precision_goes_in_and_comes_out(w4a8, image):
    frozen = copy.deepcopy(w4a8).to(torch.bfloat16)
    with torch.no_grad():
        t = torch.tensor(9)
        y, expected = (
            tdq.compile(frozen, "onednn")(image.bfloat16(), t),
            frozen(image.bfloat16(), t),
        )
    assert y.dtype == torch.bfloat16
    assert (y - expected).float().norm() < 0.05 * expected.float().norm()


def test_a_batch_that_fits_no_timesteps(w4a8, image):
    fast = tdq.compile(w4a8, "onednn")
    with torch.no_grad(), fast.tdq.clock.at(torch.tensor([1, 2])), pytest.raises(ClockError):
        fast.conv1(torch.randn(3, 20, 4, 4))


def test_a_model_on_another_device_is_refused(w4a8):
    with pytest.raises(BackendError, match="meta"):
        tdq.compile(copy.deepcopy(w4a8).to("meta"), "onednn")


def test_dynamic_scales_run_too(image):
    frozen = tdq.freeze(quantized(scale="dynamic"))
    x = torch.randn(3, 6, 8, 8)
    fast = tdq.compile(frozen, "onednn", example=(x, torch.tensor(3)))
    assert max(layer_errors(frozen, fast, x, torch.tensor(3)).values()) < 1e-5


def test_an_empty_batch(w4a8):
    fast = tdq.compile(w4a8, "onednn", example=(torch.randn(1, 3, 12, 12), torch.tensor(3)))
    with torch.no_grad():
        assert fast(torch.randn(0, 3, 12, 12), torch.tensor(3)).shape == (0, 3, 6, 6)


def test_an_empty_batch_chooses_no_kernel(w4a8, image):
    fast = tdq.compile(w4a8, "onednn")
    with torch.no_grad():
        fast(image[:0], torch.tensor(3))
        assert "untried" in str(tdq.summary(fast))
        fast(image, torch.tensor(3))
    assert "untried" not in str(tdq.summary(fast))


def test_an_operator_that_onednn_lacks_gives_way_to_float(w4a8, image, monkeypatch):
    def fail(self, q, scale, bias):
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(OneDnn, "_product", fail)
    fast = tdq.compile(w4a8, "onednn", example=(image, torch.tensor(3)))
    rows = [row for row in tdq.summary(fast) if row.input_codes]
    assert {row.kernel for row in rows} == {"float"}
    assert {row.note for row in rows} == {"oneDNN has no operator for its sizes"}


def test_copies_run_and_pickles_say_what_to_do(w4a8, image):
    fast = tdq.compile(w4a8, "onednn", example=(image, torch.tensor(3)))
    with torch.no_grad():
        t = torch.tensor([3, 600, 999])
        assert torch.equal(copy.deepcopy(fast)(image, t), fast(image, t))
    with pytest.raises(BackendError, match=r"tdq\.save"):
        pickle.dumps(fast)


class Rows(torch.nn.Module):
    """A linear layer on rows in four dimensions, which the model asks for its dtype and size."""

    def __init__(self, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.last = (torch.nn.Linear(width, width) for _ in range(3))

    def forward(self, x, t):
        assert self.inner.in_features == x.shape[-1]
        dtype = next(self.inner.parameters()).dtype
        return self.last(self.inner(self.first(x).to(self.inner.weight.dtype)).to(dtype))


def test_linear_layers_on_four_dimensions_that_are_asked_for_their_dtype():
    model, rng = Rows().eval(), torch.Generator().manual_seed(0)
    calls = [(torch.randn(2, 3, 5, 8, generator=rng), torch.tensor(t)) for t in (0, 500, 999)]
    tdq.quantize(model, tdq.Recipe(scale="table"))
    tdq.calibrate(model, calls, progress=False)
    frozen = tdq.freeze(model)
    fast = tdq.compile(frozen, "onednn")
    for x, t in (*calls, (calls[0][0], torch.tensor([3, 900]))):
        with torch.no_grad():
            y = frozen(x, t)
            assert torch.allclose(fast(x, t), y, atol=1e-5 * float(y.abs().max()))


def test_inputs_of_other_channels_are_refused(frozen):
    fast = tdq.compile(frozen, "onednn")
    layers = dict(fast.named_modules())
    with torch.no_grad(), clock_of(fast).at(torch.tensor(3)):
        for channels in (1, 4, 7):
            with pytest.raises(BackendError, match="for 6 channels"):
                layers["conv_in"](torch.randn(2, channels, 8, 8))
        with pytest.raises(BackendError, match="for 6 channels"):
            layers["conv_in"](torch.randn(6, 8, 8))
        for channels in (11, 24):
            with pytest.raises(BackendError, match="for 12 channels"):
                layers["linear"](torch.randn(2, 5, channels))
