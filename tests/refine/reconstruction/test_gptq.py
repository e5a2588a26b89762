import pytest
import torch
from torch import nn

from tdquant.layers import QUANTIZED
from tdquant.numerics.grid import Grid
from tdquant.quantizers import WeightQuantizer
from tdquant.quantizers.rounding import decided
from tdquant.quantizers.steps import mse_step
from tdquant.refine.reconstruction.gptq import Hessian, gptq, patches

LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), (5, 7, 12)),
    "no bias": (lambda: nn.Linear(12, 8, bias=False), (9, 12)),
    "conv": (lambda: nn.Conv2d(6, 8, 3, padding=1), (3, 6, 7, 7)),
    "strided": (lambda: nn.Conv2d(6, 8, (3, 2), stride=2, padding=(1, 0)), (3, 6, 7, 7)),
    "grouped": (lambda: nn.Conv2d(6, 9, 3, groups=3, dilation=2, padding=2), (3, 6, 7, 7)),
    "reflect": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (3, 6, 7, 7)),
    "same": (lambda: nn.Conv2d(6, 8, (3, 2), padding="same", bias=False), (3, 6, 7, 7)),
    "sequence": (lambda: nn.Conv1d(6, 8, 3, padding=1, groups=2), (3, 6, 11)),
    "video": (
        lambda: nn.Conv3d(6, 8, (2, 3, 1), stride=(1, 2, 1), padding=1, dilation=2, groups=2),
        (3, 6, 3, 5, 4),
    ),
}


def quantized(name, bits=3):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make()
    layer = QUANTIZED[type(layer)].from_float(layer)
    grid = Grid.signed(bits, narrow=True)
    layer.weight_quantizer = WeightQuantizer(grid, mse_step(layer.weight, grid, True))
    # Channels that go together: what rounding can make up for.
    x = torch.randn(shape)
    return layer, x + 4 * x.mean(-1 if isinstance(layer, nn.Linear) else 1, keepdim=True)


@pytest.mark.parametrize("name", LAYERS)
def test_patches_are_what_the_layer_multiplies(name):
    layer, x = quantized(name)
    rows = patches(layer, x)
    weight = layer.weight.reshape(len(rows), -1, rows.shape[-1])
    products = (rows @ weight.mT).movedim(0, 1).flatten(1)  # (N, C)
    bias = 0 if layer.bias is None else layer.bias
    y = layer.combine(x, layer.weight)
    y = y if isinstance(layer, nn.Linear) else y.movedim(1, -1)
    assert torch.allclose(products + bias, y.reshape(products.shape), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_its_output_error_is_less_than_that_of_the_nearest(name, order):
    layer, x = quantized(name)
    hessian = Hessian(layer)
    hessian.add(x[:1])
    hessian.add(x[1:])
    exact = layer.combine(x, layer.weight)
    near = layer.combine(x, layer.weight_quantizer(layer.weight))
    rounded, before, after = gptq(layer, hessian.total, order)
    found = layer.combine(x, rounded(layer.weight))
    assert before == pytest.approx(float((near - exact).square().sum()), rel=1e-3)
    assert after == pytest.approx(float((found - exact).square().sum()), rel=1e-3)
    assert after < 0.95 * before
    assert rounded.codes.abs().max() <= layer.weight_quantizer.grid.high


def test_a_share_of_the_rows_is_spread_over_all_of_them():
    layer, x = quantized("linear")
    hessian = Hessian(layer, limit=5)
    hessian.add(x, call=0)
    hessian.add(x, call=1)
    rows = x.reshape(35, 12)
    taken = torch.tensor([0, 8, 17, 25, 34, 1, 9, 18, 26, 0])
    assert hessian.rows == 10
    assert torch.allclose(hessian.total[0][0].float(), rows[taken].T @ rows[taken], rtol=1e-4)


def test_no_channel_is_worse():
    layer, x = quantized("linear", bits=2)
    hessian = Hessian(layer)
    hessian.add(x)
    rounded, _, _ = gptq(layer, hessian.total)
    exact = layer.combine(x, layer.weight)

    def error(quantizer):
        difference = layer.combine(x, quantizer(layer.weight)) - exact
        return difference.square().flatten(0, -2).sum(0)

    near = error(layer.weight_quantizer)
    assert (error(rounded) <= near * (1 + 1e-4)).all()


def test_inputs_that_are_always_zero():
    layer, x = quantized("linear")
    hessian = Hessian(layer)
    rounded, before, after = gptq(layer, hessian.total)
    assert before == after == 0
    assert torch.equal(rounded.codes, decided(layer.weight_quantizer, layer.weight).codes)
    x[..., 3] = 0
    hessian.add(x)
    rounded, before, after = gptq(layer, hessian.total)
    assert after < before
    assert rounded(layer.weight).isfinite().all()


def test_independent_inputs_leave_nothing_to_make_up_for():
    layer, _ = quantized("linear")
    rounded, before, after = gptq(layer, [torch.eye(12, dtype=torch.float64).unsqueeze(0)])
    assert after == before
    assert torch.equal(rounded.codes, decided(layer.weight_quantizer, layer.weight).codes)


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_blocks_of_columns(name):
    layer, x = quantized(name)
    hessian = Hessian(layer, columns=5)
    hessian.add(x)
    widths = [block.shape[1] for block in hessian.total]
    assert sum(widths) == layer.weight[0].numel()
    assert max(widths) <= 5
    rounded, before, after = gptq(layer, hessian.total)
    assert after <= before
    assert rounded.codes.abs().max() <= layer.weight_quantizer.grid.high
    whole = Hessian(layer, columns=10_000)
    whole.add(x)
    one = Hessian(layer)
    one.add(x)
    assert torch.equal(gptq(layer, whole.total)[0].codes, gptq(layer, one.total)[0].codes)


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_drift_makes_the_outputs_of_the_float_model_the_target(name):
    layer, exact = quantized(name, bits=4)
    moved = 0.8 * exact + 0.05 * torch.randn(
        exact.shape, generator=torch.Generator().manual_seed(1)
    )
    hessian = Hessian(layer)
    hessian.add(moved)
    hessian.add_drift(moved, hessian.take(exact))
    target = layer.combine(exact, layer.weight)

    def error(rounded):
        return float((layer.combine(moved, rounded(layer.weight)) - target).square().sum())

    without, _, _ = gptq(layer, hessian.total)
    rounded, _, after = gptq(layer, hessian.total, drift=hessian.drift)
    assert error(rounded) < 0.7 * error(without)
    assert after < error(rounded)  # of what was rounded, which has an error of its own


def test_inputs_that_did_not_move_change_nothing():
    layer, x = quantized("grouped")
    hessian = Hessian(layer)
    hessian.add(x)
    hessian.add_drift(x, hessian.take(x))
    plain, _, _ = gptq(layer, hessian.total)
    rounded, _, _ = gptq(layer, hessian.total, drift=hessian.drift)
    assert torch.equal(rounded.codes, plain.codes)


def test_more_rows_than_in_the_float_model_do_not_count_as_drift():
    layer, x = quantized("linear")
    hessian = Hessian(layer)
    hessian.add(x)
    hessian.add_drift(x, hessian.take(x[:2]))
    assert hessian.rows == 35
    assert not any(block.any() for block in hessian.drift)
