import copy

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import CalibrationError, ConversionError
from tdquant.lab.metrics import mse
from tdquant.layers import QUANTIZED, STRUCTURES, structured_layers
from tdquant.layers.balance import BalancedLayer
from tdquant.numerics.grid import Grid
from tdquant.quantizers import FrozenWeight, WeightQuantizer
from tdquant.quantizers.rounding import decided
from tdquant.quantizers.steps import mse_step
from tdquant.refine.balancing import balance, factors


def transformer(outliers=True, seed=0):
    """A tiny DiT; a few channels of what its norms give are far larger than the rest."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(seed)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=10, norm_num_groups=4,
    ).eval()  # fmt: skip
    if outliers:
        with torch.no_grad():
            for block in model.transformer_blocks:
                for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v):
                    layer.weight[:, [3, 17]] *= 0.1
                # The scale that the time embedding adds to the norm's output.
                bias = block.norm1.linear.bias
                bias[32 + 3], bias[32 + 17] = 60.0, -40.0
                block.ff.net[0].proj.weight[[5, 40]] *= 30
                block.ff.net[2].weight[:, [5, 40]] *= 0.05
    return model


def batches(count=6, batch=3):
    rng = torch.Generator().manual_seed(1)
    return [
        {
            "hidden_states": torch.randn(batch, 4, 8, 8, generator=rng),
            "timestep": torch.randint(0, 1000, (batch,), generator=rng),
            "class_labels": torch.randint(0, 10, (batch,), generator=rng),
        }
        for _ in range(count)
    ]


def outputs(model):
    with torch.no_grad():
        return torch.cat([model(**call).sample for call in batches()])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, "search"])
def test_the_float_model_stays_the_same(alpha):
    model = transformer()
    before = outputs(model)
    found = balance(model, batches(), alpha=alpha, progress=False).tdq.balance
    assert found
    assert (outputs(model) - before).norm() < 1e-5 * before.norm()
    assert {path for path, _ in structured_layers(model)} == set(found)
    assert not any("emb" in path or "proj_out" in path for path in found)


def test_quantized_outputs_come_nearer():
    exact = outputs(transformer())
    errors = {}
    for weights in (8, 4):
        for balanced in (False, True):
            model = transformer()
            if balanced:
                balance(model, batches(), alpha="search", weights=weights, progress=False)
            recipe = tdq.Recipe(weights=weights, activations=8, scale="static")
            tdq.quantize(model, recipe)
            tdq.calibrate(model, batches(), progress=False)
            errors[weights, balanced] = float(mse(outputs(model), exact).mean())
    assert errors[8, True] < 0.7 * errors[8, False]
    assert errors[4, True] < 0.9 * errors[4, False]


def test_a_balanced_layer_can_be_rebuilt_from_its_specification():
    layer = nn.Linear(6, 4)
    new = BalancedLayer.balanced(copy.deepcopy(layer), torch.tensor([1.0, 2, 3, 4, 5, 60]))
    twin = STRUCTURES["balance"].from_float(nn.Linear(6, 4), **new.specification())
    twin.load_state_dict(new.state_dict())
    x = torch.randn(5, 6)
    assert torch.equal(twin(x), new(x))
    assert torch.allclose(new(x), layer(x), atol=1e-5)
    assert torch.allclose(new.weight, layer.weight, atol=1e-6)
    assert new.bias is new.layer.bias


def test_it_can_be_built_without_memory():
    with torch.device("meta"):
        layer = nn.Linear(6, 4)
    assert BalancedLayer.from_float(layer).divide.inverse.device.type == "meta"


def test_factors_stay_float32_in_half_precision():
    new = BalancedLayer.balanced(nn.Linear(6, 4), torch.rand(6) + 0.5).bfloat16()
    assert new.divide.inverse.dtype == torch.float32
    assert new(torch.randn(2, 6).bfloat16()).dtype == torch.bfloat16


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (2, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3, padding="same", bias=False), (2, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 4, (3, 2), stride=2, padding=1, dilation=2), (2, 6, 9, 8)),
    "reflect": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), (2, 6, 5, 5)),
    "groups": (lambda: nn.Conv2d(6, 9, 3, groups=3), (2, 6, 5, 5)),
    "depthwise": (lambda: nn.Conv1d(6, 12, 3, groups=6), (6, 7)),
    "conv3d": (lambda: nn.Conv3d(6, 4, (3, 1, 2), padding=1), (2, 6, 3, 5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_balanced_layer_is_the_float_layer(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x, c = make().double(), torch.randn(shape).double(), torch.rand(6) * 50 + 0.02
    with torch.no_grad():
        y = layer(x)
        new = BalancedLayer.balanced(copy.deepcopy(layer), c)
        assert (new(x) - y).abs().max() < 1e-13 * y.abs().max()
        quantized = QUANTIZED[type(layer)].from_float(layer)
        assert torch.equal(BalancedLayer.from_quantized(quantized, c)(x), new(x))
        assert torch.equal(layer(x), y)  # from_quantized left it as it was


@pytest.mark.parametrize("name", LAYERS)
def test_steps_of_a_quantized_layer_are_found_anew(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x, c = make(), torch.randn(shape), torch.tensor([1.0, 1, 0.3, 4, 3, 1])
    live = QUANTIZED[type(layer)].from_float(layer)
    grid = Grid.signed(16, narrow=True)
    live.weight_quantizer = WeightQuantizer(grid, mse_step(layer.weight, grid, True))
    live.input_quantizer = kept = nn.Identity()
    new = BalancedLayer.from_quantized(live, c)
    assert new.layer.input_quantizer is kept
    steps = mse_step(new.layer.weight, grid, True)
    assert torch.equal(new.layer.weight_quantizer.step, steps)
    with torch.no_grad():
        assert (new(x) - layer(x)).norm() < 2e-3 * layer(x).norm()
    assert new.layer.weight.requires_grad


def test_frozen_layers_and_learned_codes():
    torch.manual_seed(0)
    live = QUANTIZED[nn.Linear].from_float(nn.Linear(6, 4))
    grid = Grid.signed(4, narrow=True)
    start = WeightQuantizer(grid, mse_step(live.weight, grid, False))
    live.weight_quantizer = decided(start, live.weight)
    new = BalancedLayer.from_quantized(live, torch.ones(6) * 2)
    assert type(new.layer.weight_quantizer) is WeightQuantizer
    assert new.layer.weight_quantizer.step.shape == ()
    live.weight_quantizer = FrozenWeight(grid, start.step)
    with pytest.raises(ConversionError, match="frozen"):
        BalancedLayer.from_quantized(live, torch.ones(6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tiny_and_dead_channels_in_half_precision(dtype):
    torch.manual_seed(0)
    largest = torch.tensor([1e-7, 1e-7, 1e-7, 1e-7, 0.0, 900.0])
    x, layer = (torch.randn(50, 6) * largest).to(dtype), nn.Linear(6, 4).to(dtype)
    exact = layer.float()(x.float())
    for alpha in (0.5, 1.0):
        c = factors(largest, layer.to(dtype), alpha)
        assert c[4] == 1
        new = BalancedLayer.balanced(copy.deepcopy(layer), c)
        assert new.weight.isfinite().all()
        assert new(x).dtype == dtype
        assert (new(x).float() - exact).norm() < 10 * torch.finfo(dtype).eps * exact.norm()
    if dtype == torch.float16:
        with pytest.raises(ConversionError, match="too large for torch"):
            BalancedLayer.balanced(layer, torch.ones(6) * 1e6)


@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 7), lambda: nn.Conv2d(5, 7, 3)])
def test_factors_share_out_the_range(make):
    layer, largest = make(), torch.tensor([1.0, 200, 0.01, 3, 0])
    columns = layer.weight.detach().abs().transpose(0, 1).flatten(1).amax(1)[:4]
    c = factors(largest, layer, 1.0)
    ratio = (largest / c)[:4]
    assert torch.allclose(ratio, ratio[0].expand(4), rtol=1e-4)
    assert c[4] == 1  # never used
    moved = columns * factors(largest, layer, 0.0)[:4]
    assert torch.allclose(moved, moved[0].expand(4), rtol=1e-4)
    both = factors(largest, layer, 0.5)[:4]
    balanced = (largest[:4] / both) / (columns * both)
    assert torch.allclose(balanced, balanced[0].expand(4), rtol=1e-3)


def test_search_leaves_alone_what_it_cannot_improve():
    class Even(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x, t):
            return self.c(torch.sign(self.b(torch.sign(self.a(x)))))

    model = Even()
    with torch.no_grad():
        model.b.weight.copy_(model.b.weight.sign())
    calls = [(torch.randn(8, 64), torch.tensor(1)) for _ in range(3)]
    found = balance(model, calls, alpha="search", layers=["b"], progress=False).tdq.balance
    assert not found
    assert type(model.b) is nn.Linear


def test_frozen_saved_and_compiled(tmp_path):
    model = transformer()
    balance(model, batches(), progress=False)
    tdq.quantize(model, tdq.Recipe(weights=8, activations=7))
    tdq.calibrate(model, batches(), progress=False)
    frozen = tdq.freeze(model)
    y = outputs(frozen)
    assert torch.equal(y, outputs(model))
    error = (outputs(tdq.compile(frozen, backend="onednn")) - y).abs()
    assert error.median() < 1e-5 * y.abs().max()
    tdq.save(frozen, tmp_path / "saved")
    assert torch.equal(outputs(tdq.load(tmp_path / "saved")), y)


def test_what_cannot_be():
    model = transformer()
    with pytest.raises(ConversionError, match="alpha"):
        balance(model, batches(), alpha=2.0)
    with pytest.raises(ConversionError, match="no layer"):
        balance(model, batches(), layers=["*.to_qq"])
    with pytest.raises(CalibrationError, match="no batches"):
        balance(model, [], progress=False)
    bad = batches(1)
    bad[0]["hidden_states"][0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="NaN"):
        balance(model, bad, progress=False)
    assert not list(structured_layers(model))
    with pytest.raises(ConversionError, match="cannot be balanced"):
        BalancedLayer.from_float(nn.ConvTranspose2d(3, 3, 1))
    with pytest.raises(ConversionError, match="positive and finite"):
        BalancedLayer.balanced(nn.Linear(3, 3), torch.tensor([1.0, 0.0, 2.0]))
    tdq.quantize(model, tdq.Recipe())
    with pytest.raises(ConversionError, match="quantized already") as error:
        balance(model, batches())
    assert "before tdq.quantize" in str(error.value)


def test_balancing_twice_reports_both():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model.forward = lambda x, t: model[1](model[0](x))
    given = [(torch.randn(3, 4), torch.tensor(1))]
    tdq.balance(model, given, layers=["0"], progress=False)
    tdq.balance(model, given, layers=["1"], progress=False)
    assert set(model.tdq.balance) == {"0", "1"}
    assert [step["step"] for step in model.tdq.history] == ["balance", "balance"]


class Tied(nn.Module):
    """Two layers with one weight and bias, whose inputs have other outliers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.b.weight, self.b.bias = self.a.weight, self.a.bias

    def forward(self, x, t):
        return self.c(self.b(self.a(x * torch.linspace(0.1, 5, 16)).tanh()))


class Encoder(nn.Module):
    """torch's own transformer layer, which has a fused path in evaluation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0, batch_first=True)

    def forward(self, x, t):
        return self.encoder(x * torch.linspace(0.1, 5, 16))


LINEARS = {"encoder.linear1", "encoder.linear2"}


@pytest.mark.parametrize("kind", [Tied, Encoder])
def test_the_function_stays_with_shared_weights_and_torch_s_fused_layers(kind):
    x, t = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0)), torch.tensor(3)
    exact, model = kind().eval(), kind().eval()
    found = balance(model, [(x, t)], layers=["*"] if kind is Encoder else None, progress=False)
    assert set(found.tdq.balance) == ({"c"} if kind is Tied else LINEARS)
    with torch.no_grad():
        wanted = exact(x, t)
        assert (model(x, t) - wanted).norm() < 1e-6 * wanted.norm()
        quantized = tdq.quantize(model, tdq.Recipe(weights=16, activations=32))
        assert (quantized(x, t) - wanted).norm() < 1e-3 * wanted.norm()


def test_shared_weights_are_refused_by_name():
    model = Tied().eval()
    with pytest.raises(ConversionError, match="weights are read by another module"):
        balance(model, [(torch.randn(2, 16), 3)], layers=["b"], progress=False)


class Convolutions(nn.Module):
    """Convolutions whose inputs have channels of very different size; one in groups."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.mid = nn.Conv2d(8, 8, 3, stride=2, dilation=2)
        self.grouped = nn.Conv2d(8, 8, 3, padding="same", groups=2)
        self.last = nn.Conv2d(8, 3, 1)
        self.register_buffer("size", 10 ** torch.linspace(-2, 2, 8).reshape(-1, 1, 1))
        with torch.no_grad():
            for layer in (self.mid, self.grouped):
                layer.weight /= (
                    self.size.reshape(layer.groups, 1, -1, 1, 1)
                    .expand(-1, 8 // layer.groups, -1, -1, -1)
                    .reshape(8, -1, 1, 1)
                )

    def forward(self, x, t):
        y = self.mid(self.first(x) * self.size)
        return self.last(torch.tanh(self.grouped(y * self.size)))


def images(count=3):
    rng = torch.Generator().manual_seed(0)
    return [(torch.randn(2, 3, 12, 12, generator=rng), torch.tensor(3)) for _ in range(count)]


@pytest.mark.parametrize("alpha", [0.5, "search"])
def test_convolutions_are_balanced(alpha):
    exact, errors = Convolutions().eval(), {}
    for balanced in (False, True):
        model = Convolutions().eval()
        if balanced:
            balance(model, images(), alpha=alpha, layers=["mid", "grouped"], progress=False)
            assert set(model.tdq.balance) == {"mid", "grouped"}
            with torch.no_grad():
                for call in images():
                    assert torch.allclose(model(*call), exact(*call), atol=1e-5)
        tdq.quantize(model, tdq.Recipe(scale="static"))
        tdq.calibrate(model, images(), split=False, progress=False)
        with torch.no_grad():
            errors[balanced] = sum(float(mse(model(*c), exact(*c)).mean()) for c in images())
    assert errors[True] < 0.1 * errors[False]


def test_patterns_for_a_layer_are_for_what_it_became():
    model = Convolutions().eval()
    balance(model, images(), layers=["mid", "grouped"], progress=False)
    recipe = tdq.Recipe(exclude=("grouped",), overrides={"mid": {"weights": 4}})
    tdq.quantize(model, recipe)
    assert type(model.grouped.layer) is nn.Conv2d
    assert model.mid.layer.weight_quantizer.grid.bits == 4
    tdq.calibrate(model, images(), progress=False)
    assert type(model.grouped.layer) is nn.Conv2d
    assert model.mid.layer.weight_quantizer.grid.bits == 4
