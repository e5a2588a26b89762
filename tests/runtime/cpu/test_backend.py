import copy
import functools
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tdquant as tdq
from tdquant.clock import clock_of
from tdquant.errors import BackendError, ClockError
from tdquant.grid import Grid
from tdquant.layers import quantized_layers
from tdquant.quantizers import OffsetQuantizer
from tdquant.runtime.cpu import backend, kernels, layer
from tdquant.runtime.cpu.kernels import Float, Native, OneDnn, exact_kernels
from tdquant.runtime.cpu.operation import Operation
from tdquant.runtime.native import missing

from ...conftest import quantized
from ...denoisers import Blocks

compiled_kernels = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@functools.cache
def frozen_blocks(weights, activations, **recipe):
    model = Blocks().eval()
    recipe = tdq.Recipe(weights=weights, activations=activations, edges=8, **recipe)
    tdq.quantize(model, recipe, verbose=False)
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
        with fast.tdq_clock.at(t):
            errors = {
                path: float((fast.get_submodule(path)(a) - y).norm() / y.norm())
                for path, (a, y) in seen.items()
            }
    for hook in hooks:
        hook.remove()
    return errors


@pytest.mark.parametrize("bits", [(8, 8), (7, 8), (4, 8), (8, 5), (3, 3), (8, 16), (12, 8)])
@pytest.mark.parametrize("maker", ["int8", "int16", "int8 onednn", "float"])
def test_every_kernel_is_exact_layer_by_layer(bits, maker, image, monkeypatch):
    frozen = frozen_blocks(*bits)
    original = exact_kernels

    def only(operation):
        found = original(operation)
        return {maker: found[maker]} if maker in found else {"float": Float}

    monkeypatch.setattr(layer, "exact_kernels", only)
    fast = tdq.compile(frozen, "cpu", example=(image, torch.tensor(500)))
    for t in (torch.tensor(0), torch.tensor(431), torch.tensor([3, 999, 500])):
        errors = layer_errors(frozen, fast, image, t)
        assert max(errors.values()) < 1e-5, errors
    if maker == "float" or (not missing() and bits[0] <= 7 and bits[1] <= 8):
        assert maker in {row.kernel for row in tdq.summary(fast)}


def test_whole_model_equals_the_reference(w4a8, image):
    fast, exact = tdq.compile(w4a8, "cpu"), tdq.compile(w4a8, "reference")
    with torch.no_grad():
        for t in (torch.tensor(7), torch.tensor([1, 500, 998])):
            error = (fast(image, t) - exact(image, t)).abs()
            assert error.median() < 1e-6
            assert error.max() < 0.1 * exact(image, t).abs().max()  # a code that fell elsewhere


@pytest.mark.parametrize("why", ["no C compiler", "the processor has no AVX2"])
def test_without_compiled_kernels(w4a8, image, monkeypatch, why):
    for module in (kernels, layer, backend):
        monkeypatch.setattr(module, "missing", lambda: why)
    fast = tdq.compile(w4a8, "cpu", example=(image, torch.tensor(1)))
    rows = [row for row in tdq.summary(fast) if row.input_codes]
    assert not {"int8", "int16"} & {row.kernel for row in rows}
    for t in (torch.tensor(77), torch.tensor([3, 999, 500])):
        assert max(layer_errors(w4a8, fast, image, t).values()) < 1e-5


def test_onednn_is_taken_only_where_it_cannot_saturate(monkeypatch):
    for instructions, bits, allowed in (
        ({"avx2"}, 8, False),
        ({"avx2"}, 7, True),
        ({"avx2", "vnni"}, 8, True),
        (set(), 4, False),
    ):
        monkeypatch.setattr(kernels, "instructions", lambda i=instructions: frozenset(i))
        frozen = frozen_blocks(bits, 8)
        operation = Operation.of(frozen.get_submodule("skip"), "skip")
        assert (OneDnn.name in exact_kernels(operation)) == allowed, (instructions, bits)


@pytest.mark.parametrize("kernel", [Float, OneDnn, lambda o: Native(o, False)])
@pytest.mark.parametrize("padding", [0, 1])
def test_the_authors_offset_grid_is_exact(kernel, padding, w4a8):
    if missing() and kernel not in (Float, OneDnn):
        pytest.skip(str(missing()))
    frozen = copy.deepcopy(w4a8)
    old = frozen.conv1
    frozen.conv1.padding = (padding, padding)
    frozen.conv1._reversed_padding_repeated_twice = [padding] * 4
    q = old.input_quantizer
    frozen.conv1.input_quantizer = OffsetQuantizer(
        Grid.affine(4, 0),
        q.scale,
        q.clock,
    )
    x = F.silu(torch.randn(2, 20, 6, 6)).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), frozen.tdq_clock.at(torch.tensor(300)):
        expected = frozen.conv1(x)
        step = frozen.conv1.input_quantizer.step(x)
        y = kernel(Operation.of(frozen.conv1, "conv1"))(x, step)
    assert torch.allclose(y, expected, rtol=1e-5, atol=1e-5)


@compiled_kernels
def test_norms_wait_for_what_follows(w4a8, image):
    fast = tdq.compile(w4a8, "cpu")
    with torch.no_grad():
        x = torch.randn(1, 20, 4, 4).contiguous(memory_format=torch.channels_last)
        norm, plain = fast.norm, nn.GroupNorm(4, 20)
        plain.load_state_dict(norm.state_dict())
        y = norm(x)
        assert y.shape == x.shape
        assert y.value is None, "a look at the shape does not compute it"
        assert F.silu(y).value is None
        assert F.dropout(y, 0.5, False) is y
        assert torch.allclose(F.silu(y) + 0, F.silu(plain(x)), atol=1e-6)
        assert torch.allclose(y * 2, plain(x) * 2, atol=1e-5)
        assert torch.allclose(y.norm(), plain(x).norm())
        assert torch.allclose(y.mean((2, 3)), plain(x).mean((2, 3)), atol=1e-6)
        assert torch.allclose(torch.cat([x, y], 1), torch.cat([x, plain(x)], 1), atol=1e-6)
        assert torch.allclose(F.silu(F.silu(y)), F.silu(F.silu(plain(x))), atol=1e-6)
        y = norm(x)
        assert torch.allclose(F.silu(y, inplace=True), F.silu(plain(x)), atol=1e-6)
        y = norm(x)
        x.add_(1)
        with pytest.raises(BackendError, match="changed in place"):
            F.silu(y).sum()
    x = torch.randn(1, 20, 4, 4)
    assert type(norm(x)) is torch.Tensor, "gradients are on: nothing waits"
    with torch.inference_mode():
        y = norm(torch.randn(1, 20, 4, 4).contiguous(memory_format=torch.channels_last))
        assert type(y) is torch.Tensor


def test_inference_mode_gives_the_same(w4a8, image):
    fast = tdq.compile(w4a8, "cpu")
    with torch.no_grad():
        expected = fast(image, torch.tensor(5))
    with torch.inference_mode():
        assert torch.allclose(fast(image, torch.tensor(5)), expected, atol=1e-4)


def test_eight_threads_share_a_model(w4a8):
    fast, threads = tdq.compile(w4a8, "cpu"), torch.get_num_threads()
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
    fast = tdq.compile(w4a8, "cpu", example=(image, torch.tensor(1)))
    assert all(torch.equal(before[k], v) for k, v in w4a8.state_dict().items())
    assert not any(
        "weight" in name and p.numel() for name, p in fast.named_parameters() if "norm" not in name
    )
    assert fast.norm.weight.data_ptr() == w4a8.norm.weight.data_ptr()


def test_the_summary_tells_every_kernel(w4a8, image):
    fast = tdq.compile(w4a8, "cpu")
    assert "untried" in str(tdq.summary(fast))
    with torch.no_grad():
        fast(image, torch.tensor(1))
    text = str(tdq.summary(fast))
    assert "untried" not in text
    assert "as fast as float" in text or "the time as integers" in text
    assert "backend: cpu" in text


def test_half_precision_goes_in_and_comes_out(w4a8, image):
    frozen = copy.deepcopy(w4a8).to(torch.bfloat16)
    with torch.no_grad():
        t = torch.tensor(9)
        y, expected = tdq.compile(frozen, "cpu")(image.bfloat16(), t), frozen(image.bfloat16(), t)
    assert y.dtype == torch.bfloat16
    assert (y - expected).float().norm() < 0.05 * expected.float().norm()


def test_a_batch_that_fits_no_timesteps(w4a8, image):
    fast = tdq.compile(w4a8, "cpu")
    with torch.no_grad(), fast.tdq_clock.at(torch.tensor([1, 2])), pytest.raises(ClockError):
        fast.conv1(torch.randn(3, 20, 4, 4))


def test_a_model_on_another_device_is_refused(w4a8):
    with pytest.raises(BackendError, match="meta"):
        tdq.compile(copy.deepcopy(w4a8).to("meta"), "cpu")


def test_dynamic_scales_run_too(image):
    frozen = tdq.freeze(quantized(scale="dynamic"))
    x = torch.randn(3, 6, 8, 8)
    fast = tdq.compile(frozen, "cpu", example=(x, torch.tensor(3)))
    assert max(layer_errors(frozen, fast, x, torch.tensor(3)).values()) < 1e-5


def test_an_empty_batch(w4a8):
    fast = tdq.compile(w4a8, "cpu", example=(torch.randn(1, 3, 12, 12), torch.tensor(3)))
    with torch.no_grad():
        assert fast(torch.randn(0, 3, 12, 12), torch.tensor(3)).shape == (0, 3, 6, 6)


class Rows(torch.nn.Module):
    """A linear layer on rows in four dimensions, which the model asks for its dtype and size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.last = (torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, t):
        assert self.inner.in_features == x.shape[-1]
        dtype = next(self.inner.parameters()).dtype
        return self.last(self.inner(self.first(x).to(self.inner.weight.dtype)).to(dtype))


def test_linear_layers_on_four_dimensions_that_are_asked_for_their_dtype():
    model, rng = Rows().eval(), torch.Generator().manual_seed(0)
    calls = [(torch.randn(2, 3, 5, 8, generator=rng), torch.tensor(t)) for t in (0, 500, 999)]
    tdq.quantize(model, tdq.Recipe(scale="table"), verbose=False)
    tdq.calibrate(model, calls, progress=False)
    frozen = tdq.freeze(model)
    fast = tdq.compile(frozen, "cpu", verbose=False)
    for x, t in (*calls, (calls[0][0], torch.tensor([3, 900]))):
        with torch.no_grad():
            y = frozen(x, t)
            assert torch.allclose(fast(x, t), y, atol=1e-5 * float(y.abs().max()))


class Norms(torch.nn.Module):
    """A norm whose output is changed in place before a convolution takes it."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.change = change
        self.conv_in, self.norm = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.GroupNorm(2, 8)
        self.conv, self.conv_out = torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 1)

    def forward(self, x, t):
        h = self.norm(self.conv_in(x))
        self.change(h)
        return self.conv_out(self.conv(h))


def _halved(h):
    h[:, :4] = 0


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.mul_(2),
        lambda h: h.add_(1),
        _halved,
        lambda h: torch.nn.functional.silu(h, inplace=True),
        lambda h: h.sum(),
    ],
)
def test_what_is_done_to_a_norms_output_in_place_is_seen(change):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model = tdq.quantize(Norms(change).eval(), tdq.Recipe(4, 8, edges=8), verbose=False)
    tdq.calibrate(model, [(x, torch.tensor(5))], progress=False)
    frozen = tdq.freeze(model)
    fast = tdq.compile(frozen, "cpu", verbose=False)
    with torch.no_grad():
        exact = frozen(x, torch.tensor(5))
        assert (fast(x, torch.tensor(5)) - exact).abs().max() < 2e-2 * exact.abs().max()


def test_inputs_of_other_channels_are_refused(frozen):
    fast = tdq.compile(frozen, "cpu", verbose=False)
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
