"""What every kind of adapter does to a quantized denoiser: it runs, is fused, taken out again to
the bit, unloaded, and never saved by half; or it is refused before anything is changed.
"""

import copy
import pickle

import pytest
import torch

import tdquant as tdq
from tdquant.errors import BackendError, ConversionError, FreezeError, TDQError

pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from diffusers import UNet2DConditionModel  # noqa: E402

from tests.ip_adapters import image, image_weights  # noqa: E402
from tests.unet_states import in_states, out, recorded  # noqa: E402

TARGETS = ["to_q", "to_v"]
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KINDS = {
    "lora": lambda: peft.LoraConfig(r=2, target_modules=TARGETS),
    "dora": lambda: peft.LoraConfig(r=2, target_modules=TARGETS, use_dora=True),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=TARGETS),
    "lokr": lambda: peft.LoKrConfig(r=2, target_modules=TARGETS),
    "ia3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=[]),
}
REFUSED = {
    "oft": lambda: peft.OFTConfig(oft_block_size=4, target_modules=TARGETS),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=TARGETS),
    "hra": lambda: peft.HRAConfig(r=2, target_modules=TARGETS),
}
STATES = ("live", "frozen", "codes")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The float model, calls, and models of W8 and W4 in every state."""
    pipe, calls = recorded()
    models = {}
    for bits in (8, 4):
        folder = tmp_path_factory.mktemp("adapters") / "unet"
        found = in_states(pipe.unet, calls, tdq.Recipe(weights=bits, scale="table"), folder)
        models |= {(state, bits): model for state, model in found.items()}
    return pipe, calls, models


def fill(model):
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if any(part in name for part in ("lora_A", "lora_B", "hada_", "lokr_")):
                p.normal_(0, 0.4, generator=rng)
            elif "ia3_" in name:
                p.uniform_(0.5, 1.5, generator=rng)


def same(state, before):
    return state.keys() == before.keys() and all(
        torch.equal(v, before[k]) for k, v in state.items()
    )


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        *((kind, 8) for kind in KINDS),
        *(pytest.param(k, 4, marks=() if k in ("lora", "dora") else pytest.mark.slow)
          for k in KINDS),
    ],
)  # fmt: skip
@pytest.mark.parametrize("state", STATES)
@pytest.mark.filterwarnings("ignore:rounding keeps", "ignore:Unmerge result")
def test_an_adapter_runs_is_fused_and_taken_out(made, kind, state, bits, tmp_path):
    _, calls, models = made
    model = copy.deepcopy(models[state, bits])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain = out(model, calls[0])
    model.add_adapter(KINDS[kind]())
    fill(model)
    beside = out(model, calls[0])
    effect = (beside - plain).norm()
    assert effect > 1e-3 * plain.norm()
    assert torch.equal(out(copy.deepcopy(model), calls[0]), beside)
    assert torch.equal(out(pickle.loads(pickle.dumps(model)), calls[0]), beside)
    with pytest.raises(FreezeError):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model.disable_adapters()
    assert torch.equal(out(model, calls[0]), plain)
    model.enable_adapters()
    model.fuse_lora()
    assert (out(model, calls[0]) - beside).norm() < 0.9 * effect
    model.unfuse_lora()
    if state != "live":
        assert torch.equal(out(model, calls[0]), beside)
    model.unload_lora()
    if state != "live":
        assert torch.equal(out(model, calls[0]), plain)
        assert same(model.state_dict(), before)
        model.save_pretrained(tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_fused_into_a_live_model_is_not_clipped(made, kind):
    _, calls, models = made
    model = copy.deepcopy(models["live", 8])
    before = {n: p.clone() for n, p in model.named_parameters() if n.endswith("quantizer.step")}
    plain = out(model, calls[0])
    model.add_adapter(KINDS[kind]())
    fill(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or name.endswith(("hada_w1_a.default", "lokr_w1.default")):
                p.mul_(4)
    beside = out(model, calls[0])
    model.fuse_lora()
    assert (out(model, calls[0]) - beside).norm() < 0.2 * (beside - plain).norm()
    model.unfuse_lora()
    model.unload_lora()
    steps = dict(model.named_parameters())
    assert all(torch.equal(steps[name], step) for name, step in before.items())


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", REFUSED)
def test_other_adapters_are_refused_before_anything_changes(made, kind, state):
    model = copy.deepcopy(made[2][state, 8])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ConversionError, match=kind.upper()):
        model.add_adapter(REFUSED[kind]())
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("state", ["frozen", "codes"])
def test_frozen_layers_are_not_trained_as_modules_to_save(made, state):
    model = copy.deepcopy(made[2][state, 8])
    before = {name: type(module) for name, module in model.named_modules()}
    for name in (LAYER, "to_q", "mid_block"):
        with pytest.raises(ConversionError, match="modules_to_save"):
            model.add_adapter(peft.LoraConfig(target_modules=["to_v"], modules_to_save=[name]))
    assert {name: type(module) for name, module in model.named_modules()} == before
    model.add_adapter(peft.LoraConfig(target_modules=["to_v"], modules_to_save=["conv_out"]))


def test_a_small_adapter_fused_into_few_bits_is_told(made):
    model = copy.deepcopy(made[2]["codes", 4])
    model.add_adapter(KINDS["lora"]())
    fill(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.mul_(0.01)
    layer = next(m for m in model.modules() if hasattr(m, "lora_B"))
    with pytest.warns(UserWarning, match="rounding keeps less than 80%") as said:
        layer.merge()
    assert said[0].filename == __file__
    layer.unmerge()
    with pytest.warns(UserWarning, match=r"rounding keeps -?\d+%"):
        model.fuse_lora()


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.filterwarnings("ignore:rounding keeps")
def test_two_adapters_with_weights(made, state, kind):
    _, calls, models = made
    model = copy.deepcopy(models[state, 8])
    plain = out(model, calls[0])
    for name in ("a", "b"):
        model.add_adapter(KINDS[kind](), name)
    fill(model)
    model.set_adapters(["a", "b"], [0.5, 2.0])
    both = out(model, calls[0])
    model.fuse_lora(adapter_names=["a", "b"])
    assert (out(model, calls[0]) - both).norm() < 0.9 * (both - plain).norm()
    model.unfuse_lora()
    assert torch.equal(out(model, calls[0]), both)
    model.set_adapters("a")
    alone = out(model, calls[0])
    assert not torch.equal(alone, both)
    model.delete_adapters("b")
    assert torch.equal(out(model, calls[0]), alone)
    model.unload_lora()
    assert torch.equal(out(model, calls[0]), plain)


def test_a_float_model_with_an_adapter_is_not_quantized(made):
    model = copy.deepcopy(made[0].unet)
    model.add_adapter(KINDS["lora"]())
    with pytest.raises(ConversionError, match="fuse_lora"):
        tdq.quantize(model, tdq.Recipe())


@pytest.mark.parametrize("state", STATES)
def test_quantized_projections_are_not_fused(made, state):
    model = copy.deepcopy(made[2][state, 8])
    before = dict(model.attn_processors)
    with pytest.raises(ConversionError, match=r"before tdq\.quantize"):
        model.fuse_qkv_projections()
    assert model.attn_processors == before
    block = model.get_submodule(LAYER.removesuffix(".to_q"))
    with pytest.raises(ConversionError, match=r"before tdq\.quantize"):
        block.fuse_projections()
    assert not hasattr(block, "to_qkv")


def test_float_models_of_a_marked_class_still_fuse(made):
    model = copy.deepcopy(made[0].unet)
    model.fuse_qkv_projections()
    assert hasattr(model.get_submodule(LAYER.removesuffix(".to_q")), "to_qkv")


def test_projections_that_were_fused_first(made, tmp_path):
    pipe, calls, _ = made
    model = copy.deepcopy(pipe.unet)
    model.fuse_qkv_projections()
    tdq.quantize(model, tdq.Recipe(weights=8, scale="table"))
    frozen = tdq.freeze(tdq.calibrate(model, calls, estimator="minmax", progress=False))
    found, right = out(frozen, calls[0]), out(pipe.unet, calls[0])
    assert (found - right).norm() < 0.1 * right.norm()
    frozen.save_pretrained(tmp_path / "diffusers")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "diffusers")
    assert torch.equal(out(again, calls[0]), found)
    tdq.save(frozen, tmp_path / "own")
    assert torch.equal(out(tdq.load(tmp_path / "own"), calls[0]), found)


def with_adapter(made, kind):
    """A loaded model with an adapter that is not fused, and a call of it."""
    pipe, calls, models = made
    model = copy.deepcopy(models["codes", 8])
    if kind == "ip":
        model._load_ip_adapter_weights(image_weights(pipe.unet), low_cpu_mem_usage=False)
        return model, {**calls[0], **image(calls, 0)}
    model.add_adapter(KINDS[kind]())
    fill(model)
    return model, calls[0]


SLOW = [pytest.param(engine, marks=pytest.mark.slow) for engine in ("openvino", ".xml", ".onnx")]


@pytest.mark.parametrize("engine", ["reference", "onednn", *SLOW])
@pytest.mark.parametrize("kind", [*KINDS, "ip"])
def test_an_engine_computes_with_the_adapter_or_refuses(made, kind, engine, tmp_path):
    model, call = with_adapter(made, kind)
    right, file = out(model, call), tmp_path / "unet"
    try:
        if engine.startswith("."):
            tdq.export(model, file.with_suffix(engine), call)
            compiled = tdq.open_session(file.with_suffix(engine))
        else:
            compiled = tdq.compile(model, engine)
        found = out(compiled, call)
    except TDQError:
        refused = {"onednn": ("dora", "loha", "lokr"), "openvino": ("lokr",), ".xml": ("lokr",)}
        assert kind in refused.get(engine, ())
        assert not list(tmp_path.iterdir())
    else:
        assert (found - right).norm() < 1e-4 * right.norm()


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr"])
def test_layers_without_their_weight_refuse_adapters_that_read_it(made, kind):
    from tdquant.lowering.cuda import lower_on

    model, _ = with_adapter(made, kind)
    with pytest.raises(BackendError, match="reads the weight"):
        tdq.compile(model, "onednn")
    with pytest.raises(BackendError, match="reads the weight"):
        lower_on(model, "cpu")
