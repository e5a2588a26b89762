import copy

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import CalibrationError, ConversionError
from tdquant.lab.metrics import mse
from tdquant.layers import STRUCTURES, structured_layers
from tdquant.layers.balance import BalancedLayer
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
    assert new.weight is new.layer.weight
    assert new.bias is new.layer.bias


def test_it_can_be_built_without_memory():
    with torch.device("meta"):
        layer = nn.Linear(6, 4)
    assert BalancedLayer.from_float(layer).divide.inverse.device.type == "meta"


def test_factors_stay_float32_in_half_precision():
    new = BalancedLayer.balanced(nn.Linear(6, 4), torch.rand(6) + 0.5).bfloat16()
    assert new.divide.inverse.dtype == torch.float32
    assert new(torch.randn(2, 6).bfloat16()).dtype == torch.bfloat16


def test_factors_share_out_the_range():
    weight, largest = torch.randn(7, 5), torch.tensor([1.0, 200, 0.01, 3, 0])
    c = factors(largest, weight, 1.0)
    ratio = (largest / c)[:4]
    assert torch.allclose(ratio, ratio[0].expand(4), rtol=1e-4)
    assert c[4] == 1  # never used
    columns = (weight * factors(largest, weight, 0.0)).abs().amax(0)[:4]
    assert torch.allclose(columns, columns[0].expand(4), rtol=1e-4)
    both = factors(largest, weight, 0.5)
    balanced = (largest / both)[:4] / (weight * both).abs().amax(0)[:4]
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
    with pytest.raises(ConversionError, match="no linear layer"):
        balance(model, batches(), layers=["*.to_qq"])
    with pytest.raises(CalibrationError, match="no batches"):
        balance(model, [], progress=False)
    bad = batches(1)
    bad[0]["hidden_states"][0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="NaN"):
        balance(model, bad, progress=False)
    assert not list(structured_layers(model))
    with pytest.raises(ConversionError, match="cannot be balanced"):
        BalancedLayer.from_float(nn.Conv2d(3, 3, 1))
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
