"""Every registered backend through one contract: a lowering of the frozen model."""

import contextlib
import copy
import functools
import math

import pytest
import torch

import tdquant as tdq
from tdquant.clock import clock_of
from tdquant.layers import quantized_layers
from tdquant.layers.correction import correction_of
from tdquant.lowering.backends import BACKENDS
from tdquant.lowering.cuda import lower_on
from tdquant.quantizers import ActivationQuantizer
from tdquant.scales import DynamicScale
from tests.conftest import quantized
from tests.denoisers import Blocks, calls
from tests.rewritten import CASES as REWRITES
from tests.rewritten import FEW, inputs, rewritten

SETTINGS = {
    "W8A8 temporal": {"weights": 8, "activations": 8},
    "W4A4 temporal": {"weights": 4, "activations": 4},
    "W3A5 static": {"weights": 3, "activations": 5, "scale": "static"},
    "W8A8 dynamic": {"scale": "dynamic"},
    "W8A8 dynamic by row": {"scale": "dynamic", "by_row": True},
    "W8 float activations": {"weights": 8, "activations": 32},
    "float weights A8": {"weights": 32, "activations": 8},
    "W4A6 per tensor": {"weights": 4, "activations": 6, "granularity": "tensor"},
    "W4A8 symmetric": {"weights": 4, "activations": 8, "grid": "symmetric"},
    "W4A8 groups": {"weights": 4, "activations": 8, "remedies": ("groups",), "group": 16},
    "W3A5 groups static": {
        "weights": 3,
        "activations": 5,
        "scale": "static",
        "remedies": ("groups",),
        "group": 32,
    },
    "W4A4 corrected": {"weights": 4, "activations": 4, "corrected": True},
}


def frozen_by(setting):
    """A frozen Mixed model of one of the settings."""
    return copy.deepcopy(_frozen_by(setting))


@functools.cache
def _frozen_by(setting):
    recipe = dict(SETTINGS[setting])
    corrected, by_row = recipe.pop("corrected", False), recipe.pop("by_row", False)
    frozen = tdq.freeze(quantized(calibrated=recipe.get("activations") != 32, **recipe))
    if by_row:
        put_rows(frozen)
    if corrected:
        plain = copy.deepcopy(frozen)

        def louder(x, t):
            t = torch.as_tensor(t).reshape(-1, 1, 1, 1) / 1000
            shift = torch.linspace(-1, 1, 6).reshape(-1, 1, 1)
            return (1 + t / 1.5) * plain(x, t.flatten() * 1000) + (1 + t) * shift

        frozen = tdq.correct(frozen, louder, calls(), progress=False)
        assert correction_of(frozen).bias.table.abs().max() > 1
    return frozen


def put_rows(model):
    """Gives the inputs of linear layers a dynamic step for each row, in place."""
    for _, layer in rounding_layers(model):
        if isinstance(layer, torch.nn.Linear):
            layer.input_quantizer.scale = DynamicScale(by_row=True)


def lowered(model, backend):
    """The model by a backend; that of CUDA on the CPU where there is no GPU."""
    if backend == "cuda" and not torch.cuda.is_available():
        return lower_on(model, "cpu", fp8=True)
    return tdq.compile(model, backend)


def call(model, x, t):
    device = next(iter(model.parameters()), x).device
    return model(x.to(device), t.to(device)).cpu()


def rounding_layers(frozen):
    """Every layer that rounds its input, with its path."""
    return [
        (path, layer)
        for path, layer in quantized_layers(frozen)
        if isinstance(layer.input_quantizer, ActivationQuantizer)
    ]


def inputs_of(frozen, x):
    """Path -> the input of every quantized layer in a call."""
    seen = {}
    with contextlib.ExitStack() as stack, torch.no_grad():
        for path, layer in quantized_layers(frozen):
            hook = layer.register_forward_pre_hook(
                lambda _, args, path=path: seen.setdefault(path, args[0])
            )
            stack.callback(hook.remove)
        frozen(x, torch.tensor([3, 600, 999]))
    return seen


@pytest.fixture(params=SETTINGS, scope="module")
def frozen_model(request):
    return frozen_by(request.param)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_frozen_model(frozen_model, backend, x):
    before = {k: v.clone() for k, v in frozen_model.state_dict().items()}
    fast = lowered(frozen_model, backend)
    with torch.no_grad():
        for t in (0, 500, 999, torch.tensor([0, 431, 999])):
            t = torch.as_tensor(t)
            y = frozen_model(x, t)
            # A value that lands on the other side of a rounding boundary downstream moves by one
            # step: rare, so the bulk is compared tightly and the whole loosely.
            error = (call(fast, x, t) - y).abs()
            assert error.median() <= 1e-5 * y.abs().max()
            assert error.mean() <= 1e-3 * y.abs().max()
    assert all(torch.equal(before[k], v) for k, v in frozen_model.state_dict().items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_split_changes_nothing(frozen, backend, x):
    fast = lowered(frozen, backend)
    t = torch.tensor([3, 600, 999])
    with torch.no_grad():
        whole = call(fast, x, t)
        parts = torch.cat([call(fast, x[i : i + 1], t[i : i + 1]) for i in range(3)])
    assert torch.allclose(whole, parts, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "onednn", "cuda"])
@pytest.mark.parametrize("setting", ["W8A8 temporal", "W4A4 temporal", "W8A8 dynamic"])
def test_nan_is_never_made_finite(setting, backend, x):
    frozen = frozen_by(setting)
    fast, times = lowered(frozen, backend), (torch.tensor(3), torch.tensor([3, 600, 999]))
    layers = {path: fast.get_submodule(path) for path, _ in rounding_layers(frozen)}
    inputs = inputs_of(frozen, x)
    with torch.no_grad():
        for t in times:
            for place in (0, 1, 2):
                bad = x.clone()
                bad[place, -1, 3, 3] = math.nan
                assert call(fast, bad, t)[place].isnan().any()
            for path, layer in layers.items():
                bad = inputs[path].clone()
                bad[(-1,) * bad.ndim] = math.nan
                with clock_of(fast).at(t):
                    y = layer(bad.to(next(iter(fast.parameters()), bad).device))
                assert y[-1].isnan().any(), path


@pytest.mark.parametrize("backend", ["reference", "onednn", "cuda"])
def test_infinity_is_the_end_of_the_grid(frozen, backend, x):
    fast, t = lowered(frozen, backend), torch.tensor([3, 600, 999])
    for path, layer in rounding_layers(frozen):
        bad = inputs_of(frozen, x)[path].clone()
        bad[(0,) * bad.ndim], bad[(-1,) * bad.ndim] = math.inf, -math.inf
        with torch.no_grad(), clock_of(frozen).at(t), clock_of(fast).at(t):
            y = layer(bad)
            found = fast.get_submodule(path)(bad.to(next(iter(fast.parameters()), bad).device))
        assert y.isfinite().all()
        assert (found.cpu() - y).abs().max() <= 1e-5 * y.abs().max(), path


@pytest.fixture(scope="module")
def odd_model():
    """Odd channel counts, 1x1, strided, grouped, dilated, unevenly padded, no bias."""
    model = Blocks().eval()
    tdq.quantize(model, tdq.Recipe(weights=4, activations=8, edges=8, remedies=()))
    tdq.calibrate(model, calls(shape=(3, 12, 12)), progress=False)
    return tdq.freeze(model)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_of_odd_geometry(odd_model, backend):
    fast, rng = lowered(odd_model, backend), torch.Generator().manual_seed(0)
    x = torch.randn(3, 3, 12, 12, generator=rng)
    with torch.no_grad():
        for t in (torch.tensor(3), torch.tensor(640), torch.tensor([0, 431, 999])):
            y = odd_model(x, t)
            error = (call(fast, x, t) - y).abs()
            assert error.median() <= 1e-5 * y.abs().max()
            # Norms spread a value that fell elsewhere over a whole sample.
            assert error.mean() <= 5e-3 * y.abs().max()


REWRITTEN = [
    pytest.param(b, case, marks=[pytest.mark.slow] if b == "openvino" and case not in FEW else [])
    for b in BACKENDS
    for case in REWRITES
]


@pytest.mark.parametrize(("backend", "case"), REWRITTEN)
def test_rewritten_layers(backend, case):
    """The only layer of a model, so that nothing comes after it."""
    frozen, (x,) = tdq.freeze(rewritten(case)), inputs(case, seed=1)
    fast = lowered(frozen, backend)
    with torch.no_grad():
        for t in (torch.tensor(3), torch.tensor(640), torch.tensor([0, 431, 999])):
            y = frozen(x, t)
            error = (call(fast, x, t) - y).abs() / y.abs().max()
            assert error.median() <= 1e-6
            # Sums of a rotation are rounded in another order, and a value may fall elsewhere.
            assert error.max() <= (1e-3 if "rotation" in case else 1e-6)
