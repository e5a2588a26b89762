import copy

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import CalibrationError, ConversionError, StorageError
from tdquant.files.job_folder import JobFolder
from tdquant.lab.metrics import mse
from tdquant.layers import quantized_layers
from tdquant.quantizers import FrozenWeight, RoundedWeight, WeightQuantizer
from tdquant.quantizers.rounding import decided
from tdquant.refine.reconstruction import Rates, reconstruct
from tdquant.refine.reconstruction.record import part_of
from tdquant.refine.reconstruction.run import METHODS
from tests.conftest import quantized
from tests.denoisers import Mixed, calls

QUICK = {"iterations": 12, "batch": 8, "progress": False}


@pytest.fixture(scope="module")
def _w3():
    return quantized(weights=3, activations=6, edges=4, temporal={"features": 8, "hidden": 8})


@pytest.fixture
def model(_w3):
    return copy.deepcopy(_w3)


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("method", METHODS)
def test_freezing_keeps_the_learned_model_to_the_bit(model, method, x):
    done = reconstruct(model, calls(), method=method, **QUICK).tdq.reconstruction
    assert {n for b in done.blocks for n in b.layers} == {n for n, _ in quantized_layers(model)}
    frozen = tdq.freeze(model)
    t = torch.tensor([3, 500, 999])
    with torch.no_grad():
        assert torch.equal(frozen(x, t), model(x, t))
    for (_, live), (_, still) in zip(
        quantized_layers(model), quantized_layers(frozen), strict=True
    ):
        # The weights lie on their grids, and codes are within one of those of the float weight.
        assert type(live.weight_quantizer) is WeightQuantizer
        assert isinstance(still.weight_quantizer, FrozenWeight)
        assert torch.equal(live.weight, still.weight)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", ["layer", "block", "model"])
def test_no_block_is_worse_than_rounding_to_nearest(model, method, scope):
    done = reconstruct(model, calls(), method=method, scope=scope, **QUICK).tdq.reconstruction
    assert all(block.after <= block.before for block in done.blocks)
    assert any(block.after < block.before for block in done.blocks)
    assert method in str(done)


@pytest.mark.parametrize("method", METHODS)
def test_corrected_biases_belong_to_the_codes_before(method):
    """A bias that makes up for the nearest codes would be wrong beside others."""
    exact, given = Mixed().eval(), list(calls())
    held_out = list(calls(8, seed=3))

    def error(model):
        with torch.no_grad():
            return sum(float(mse(model(x, t), exact(x, t)).mean()) for x, t in held_out)

    errors, biases = {}, {}
    for correct in (False, True):
        model = quantized(weights=3, calibrated=False, edges=3, scale="static")
        tdq.calibrate(model, given, bias_correction=correct, progress=False)
        errors["nearest", correct] = error(model)
        reconstruct(model, given, method=method, **QUICK)
        errors[method, correct] = error(model)
        biases[correct] = model.reflect.bias.detach().clone()
        assert all(p.requires_grad for n, p in model.named_parameters() if n.endswith("bias"))
    if method == "adaround":  # learns biases itself
        assert errors[method, True] == errors[method, False]
    else:  # corrects them for its own codes
        assert not torch.equal(biases[True], Mixed().reflect.bias)
        assert torch.equal(biases[False], Mixed().reflect.bias)
        assert errors[method, True] < 1.03 * min(errors["nearest", True], errors[method, False])
    assert errors[method, True] < errors["nearest", False]


def test_codes_move_by_one_at_most(model):
    start = {n: decided(m.weight_quantizer, m.weight) for n, m in quantized_layers(model)}
    reconstruct(model, calls(), rates=Rates(choice=0.5), **QUICK)
    moved = 0
    for name, layer in quantized_layers(tdq.freeze(model)):
        difference = layer.weight_quantizer.codes(layer.weight) - start[name].codes
        assert difference.abs().max() <= 1
        moved += int(difference.count_nonzero())
    assert moved


def test_the_whole_model_learns_its_output():
    model, exact = quantized(3, 8, scale="static", edges=3), Mixed().eval()
    batches = list(calls())
    x, t = torch.cat([c[0] for c in batches]), torch.cat([c[1].expand(4) for c in batches])
    with torch.no_grad():
        target = exact(x, t)
        before = mse(model(x, t), target)
        done = reconstruct(
            model, batches, scope="model", iterations=80, batch=16, progress=False
        ).tdq.reconstruction
        after = mse(model(x, t), target)
    assert after.mean() < 0.6 * before.mean()
    assert done.blocks[0].before == pytest.approx(float(before.mean()), rel=1e-4)
    start = torch.stack([before[t == time].mean() for time in t.unique()])
    found = torch.stack([after[t == time].mean() for time in t.unique()])
    share = float((found / start.sqrt()).sum() / start.sqrt().sum())
    assert done.blocks[0].after == pytest.approx(float(before.mean()) * share, rel=1e-3)


def test_temporal_scales_learn_in_the_loop(model):
    scales = {k: v for k, v in state(model).items() if ".scale." in k}
    reconstruct(model, calls(mixed=True), scope="model", **QUICK)
    moved = [k for k, v in model.state_dict().items() if k in scales and not v.equal(scales[k])]
    assert any("network" in name for name in moved)


def test_activation_scales_and_biases_stay_where_their_rates_are_zero(model):
    before = state(model)
    rates = Rates(growth=0, bias=0, network=0, step=0)
    reconstruct(model, calls(), rates=rates, **QUICK)
    after = state(model)
    assert {k for k in after if not after[k].equal(before[k])} <= {
        k for k in after if k.endswith(".weight") and "scale" not in k
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_everything(model, method):
    twin, other = copy.deepcopy(model), copy.deepcopy(model)
    reconstruct(model, calls(), method=method, **QUICK)
    torch.rand(7)
    reconstruct(twin, calls(), method=method, **QUICK)
    assert same(state(model), state(twin))
    if method == "adaround":
        reconstruct(other, calls(), seed=1, **QUICK)
        assert not same(state(model), state(other))


def test_samples_on_disk_change_nothing(model):
    twin = copy.deepcopy(model)
    reconstruct(model, calls(), **QUICK)
    reconstruct(twin, calls(), memory=1000, **QUICK)
    assert same(state(model), state(twin))


WRITE = JobFolder.write


class KilledError(Exception):
    pass


def killed_after(blocks=None, updates=None):
    """``JobFolder.write`` that dies when it has written so much."""

    def write(self, name, tensors, facts):
        WRITE(self, name, tensors, facts)
        if blocks is not None and name == part_of(blocks - 1):
            raise KilledError
        if updates is not None and facts.get("done") == updates:
            raise KilledError

    return write


@pytest.mark.parametrize(
    ("method", "death"),
    [("adaround", {"blocks": 3}), ("adaround", {"updates": 6}), ("gptq", {"blocks": 2})],
)
def test_a_killed_run_goes_on_to_the_same_bits(model, method, death, tmp_path, monkeypatch):
    options = {"method": method, "save_every": 3, **QUICK}
    whole, twin = copy.deepcopy(model), copy.deepcopy(model)
    reconstruct(whole, calls(), **options)
    before = state(model)
    with monkeypatch.context() as patch:
        patch.setattr(JobFolder, "write", killed_after(**death))
        with pytest.raises(KilledError):
            reconstruct(model, calls(), checkpoint=tmp_path, **options)
    assert same(state(model), before)  # it was put back
    done = reconstruct(twin, calls(), checkpoint=tmp_path, **options).tdq.reconstruction
    assert same(state(twin), state(whole))
    assert len(done.blocks) > 3
    assert not (tmp_path / "learning.safetensors").exists()


def test_a_checkpoint_of_another_job(model, tmp_path):
    twin = copy.deepcopy(model)
    reconstruct(model, calls(), checkpoint=tmp_path, method="gptq", progress=False)
    with pytest.raises(StorageError, match="another reconstruction"):
        reconstruct(twin, calls(seed=1), checkpoint=tmp_path, method="gptq", progress=False)
    with pytest.raises(StorageError, match="another reconstruction"):
        reconstruct(model, calls(), checkpoint=tmp_path, method="gptq", progress=False)


def test_a_damaged_checkpoint(model, tmp_path):
    twin = copy.deepcopy(model)
    reconstruct(model, calls(), checkpoint=tmp_path, method="gptq", progress=False)
    file = tmp_path / "block-00001.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StorageError, match="damaged") as error:
        reconstruct(twin, calls(), checkpoint=tmp_path, method="gptq", progress=False)
    assert "block-00001" in str(error.value)


def test_flags_and_mode_come_back(model):
    model.train()
    model.linear.weight.requires_grad_(False)
    reconstruct(model, calls(), **QUICK)
    assert model.training
    assert not model.linear.weight.requires_grad
    assert model.sequence.weight.requires_grad
    assert not any(isinstance(m, RoundedWeight) for m in model.modules())


def test_training_goes_on_from_the_learned_codes(model, x):
    reconstruct(model, calls(), **QUICK)
    model(x, torch.tensor(4)).square().mean().backward()
    assert model.sequence.weight.grad.abs().sum() > 0
    assert model.sequence.weight_quantizer.step.grad is not None


def test_keyword_calls(model):
    keywords = [{"x": x, "timestep": t, "gain": None} for x, t in calls()]
    twin = copy.deepcopy(model)
    for scope in ("block", "model"):
        one, other = copy.deepcopy(model), copy.deepcopy(twin)
        reconstruct(one, calls(), scope=scope, **QUICK)
        reconstruct(other, keywords, scope=scope, **QUICK)
        assert same(state(one), state(other))


def test_what_cannot_be(model):
    with pytest.raises(CalibrationError, match="no batches"):
        reconstruct(model, [], **QUICK)
    with pytest.raises(CalibrationError, match="lucky") as error:
        reconstruct(model, calls(), method="lucky", scope="world", progress=False)
    assert "world" in str(error.value)  # all mistakes at once
    with pytest.raises(ConversionError, match="not quantized"):
        reconstruct(Mixed(), calls(), **QUICK)
    with pytest.raises(CalibrationError, match="not calibrated") as error:
        reconstruct(quantized(4, 4, calibrated=False), calls(), **QUICK)
    assert "tdq.calibrate" in str(error.value)
    with pytest.raises(CalibrationError, match="no layer has weights"):
        reconstruct(quantized(32, 6), calls(), **QUICK)
    with pytest.raises(CalibrationError, match="no layer has weights"):
        reconstruct(tdq.freeze(model), calls(), **QUICK)


class Pair(nn.Module):
    """A block that a call reaches with a keyword and that gives two tensors."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)

    def forward(self, x, *, gate, mask=None):
        return self.a(x) * gate, self.b(x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.pair, self.last = nn.Linear(6, 6), Pair(), nn.Linear(6, 6)

    def forward(self, x, t):
        h = self.first(x)
        for _ in range(2):
            a, b = self.pair(h, gate=torch.tensor(0.5))
            h = a + b
        return self.last(h)


def test_blocks_that_are_shared_and_give_tuples():
    model = tdq.quantize(Twice().eval(), tdq.Recipe(weights=3, edges=4))
    batches = list(calls(shape=(5, 6)))
    tdq.calibrate(model, batches, progress=False)
    done = reconstruct(model, batches, iterations=40, batch=16, progress=False).tdq.reconstruction
    assert [block.path for block in done.blocks] == ["first", "pair", "last"]
    assert done.blocks[2].after < done.blocks[2].before


def test_what_is_not_of_the_batch_has_to_be_the_same_in_every_call():
    class Frames(nn.Module):
        """Two frames a sample, folded into the batch within."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.inner = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            self.last = nn.Linear(4, 4)

        def forward(self, x, t):
            h = self.inner(self.first(x).flatten(0, 1) * (1 + t.reshape(-1)[0] / 1000))
            return self.last(h.unflatten(0, (-1, 2)))

    rng = torch.Generator().manual_seed(0)
    given = [(torch.randn(4, 2, 4, generator=rng), torch.tensor(i * 100)) for i in range(4)]
    model = tdq.quantize(Frames().eval(), tdq.Recipe(4, 8))
    tdq.calibrate(model, given, progress=False)
    with pytest.raises(CalibrationError, match="not of the batch"):
        reconstruct(model, given, scope="layer", iterations=2, progress=False)
    assert reconstruct(
        model, given, scope="model", iterations=2, progress=False
    ).tdq.reconstruction.blocks
