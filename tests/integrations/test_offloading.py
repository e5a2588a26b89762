"""Group offloading of diffusers: what is offloaded to the disk is NaN meanwhile."""

import copy
import types

import pytest
import torch
from diffusers.hooks import group_offloading
from peft import LoraConfig

import tdquant as tdq
from tdquant.errors import BackendError, ConversionError, EngineAttributeError
from tdquant.quantizers import activation_quantizers
from tdquant.scales import TemporalScale
from tests.pipelines import PIPELINES

KINDS = ("block_level", "leaf_level")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Models with the same scales, and calls of them."""
    pipe, _ = PIPELINES["stable_diffusion_1"]()
    calls = list(tdq.trajectories(pipe, ["a cat"], steps=2, height=8, width=8, progress=False))
    whole = copy.deepcopy(pipe.unet)
    live = tdq.quantize(pipe.unet, tdq.Recipe(8, 8, scale="temporal", attention=8))
    for _, quantizer in activation_quantizers(live):
        quantizer.scale = TemporalScale(0.03, (0, 999))
    frozen = tdq.freeze(live)
    louder = lambda **call: 1.3 * whole(**{**call, "return_dict": True}).sample  # noqa: E731
    corrected = tdq.correct(frozen, louder, calls, bias=True, progress=False)
    folder = tmp_path_factory.mktemp("offloading")
    frozen.save_pretrained(folder)
    codes = type(frozen).from_pretrained(folder)
    return {"live": live.eval(), "corrected": corrected, "codes": codes}, calls


def out(model, call):
    with torch.no_grad():
        return model(**{**call, "return_dict": True}).sample


@pytest.fixture
def to_disk(tmp_path, monkeypatch):
    """Offloads a model to the disk, and poisons what is left in memory."""

    def poisoned(tensor, device=None):
        return torch.empty_like(tensor, device=device).fill_(
            float("nan") if tensor.is_floating_point() else 77
        )

    torch_ = types.SimpleNamespace(**{**vars(torch), "empty_like": poisoned})
    monkeypatch.setattr(group_offloading, "torch", torch_)

    def offload(model, kind, folder=str(tmp_path)):
        model.enable_group_offload(
            CPU, CPU, kind, num_blocks_per_group=1, offload_to_disk_path=folder
        )
        return model

    return offload


@pytest.mark.parametrize("state", ["live", "corrected", "codes"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_output(made, to_disk, state, kind):
    models, calls = made
    right = out(models[state], calls[0])
    model = to_disk(copy.deepcopy(models[state]), kind)
    assert not model.conv_in.weight.isfinite().all()
    assert torch.equal(out(model, calls[0]), right)
    assert not torch.equal(out(model, calls[1]), right)


@pytest.mark.parametrize("kind", KINDS)
def test_verbs_that_read_weights_refuse(made, to_disk, kind):
    models, calls = made
    live, codes = (to_disk(copy.deepcopy(models[s]), kind) for s in ("live", "codes"))
    for verb in (
        lambda: tdq.calibrate(live, calls, progress=False),
        lambda: tdq.freeze(live),
        lambda: tdq.compile(codes, "reference"),
        lambda: codes.add_adapter(LoraConfig(r=2, target_modules=["to_q"])),
    ):
        with pytest.raises(ConversionError, match="before enable_group_offload"):
            verb()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_on_the_disk_is_not_saved(made, to_disk, kind, tmp_path):
    models, calls = made
    right = out(models["codes"], calls[0])
    model = to_disk(copy.deepcopy(models["codes"]), kind, str(tmp_path / "disk"))
    for save in (model.save_pretrained, lambda to: tdq.save(model, to)):
        with pytest.raises(ConversionError, match="saving before enable_group_offload"):
            save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    model = to_disk(copy.deepcopy(models["codes"]), kind, None)
    tdq.save(model, tmp_path / "model")
    assert torch.equal(out(tdq.load(tmp_path / "model"), calls[0]), right)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_loaded_and_fused_in_memory(made, to_disk, kind):
    models, calls = made
    plain, model = (copy.deepcopy(models["codes"]) for _ in range(2))
    to_disk(model, kind, None)
    for each in (plain, model):
        torch.manual_seed(0)
        each.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        assert torch.equal(out(model, calls[0]), out(plain, calls[0])) == (each is model)
    for each in (plain, model):
        each.fuse_lora()
    assert torch.equal(out(model, calls[0]), out(plain, calls[0]))


@pytest.mark.parametrize("backend", ["reference", "openvino"])
def test_compiled_models_refuse(made, to_disk, backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    model = tdq.compile(made[0]["codes"], backend)
    with pytest.raises((BackendError, EngineAttributeError)):
        to_disk(model, KINDS[0])
