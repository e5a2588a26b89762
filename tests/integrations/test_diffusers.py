"""Quantized models through diffusers' own ways of loading and saving."""

import copy
import json
import shutil
import types
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    PipelineQuantizationConfig,
    UNet2DModel,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tdquant as tdq
from tdquant.errors import FreezeError, RecipeError, StorageError
from tdquant.integrations.diffusers import TDQConfig
from tdquant.quantizers import CodedWeight, FrozenWeight
from tdquant.storage import inspect_saved
from tests.integrations.fresh import Fresh
from tests.pipelines import PIPELINES, sample

WEIGHTS = "diffusion_pytorch_model.safetensors"


def unet_calls(count=6):
    rng = torch.Generator().manual_seed(0)
    return [
        (torch.randn(2, 3, 8, 8, generator=rng), torch.tensor(i * 999 // (count - 1)))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def frozen():
    unet = PIPELINES["ddim"]()[0].unet
    tdq.quantize(unet, tdq.Recipe(weights=4, activations=8, scale="temporal"))
    tdq.calibrate(unet, unet_calls(), progress=False)
    return tdq.freeze(unet)


@pytest.fixture
def saved(frozen, tmp_path):
    DDIMPipeline(frozen, DDIMScheduler()).save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def outputs(unet, dtype=torch.float32):
    with torch.no_grad():
        return [unet(x.to(dtype), t).sample for x, t in unet_calls(3)]


def equal(a, b):
    return all(map(torch.equal, a, b))


def test_a_pipeline_saved_and_reloaded_gives_the_same_images(frozen, saved):
    images = sample(DDIMPipeline(frozen, DDIMScheduler()), {"num_inference_steps": 4})
    pipe = DiffusionPipeline.from_pretrained(saved)
    assert (sample(pipe, {"num_inference_steps": 4}) == images).all()
    assert pipe.unet.is_quantized
    config = json.loads((saved / "unet" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "tdquant"
    assert config["recipe"]["weights"] == 4
    assert tdq.Recipe.from_dict(config["recipe"]) == frozen.tdq.recipe
    assert "quantization_config" in pipe.unet.config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_corrected_model_saved_and_reloaded(frozen, tmp_path, dtype):
    louder = copy.deepcopy(frozen)
    corrected = tdq.correct(
        frozen, lambda x, t: 1.5 * louder(x, t).sample, unet_calls(), progress=False
    )
    corrected.save_pretrained(tmp_path)
    unet = UNet2DModel.from_pretrained(tmp_path, dtype=dtype)
    assert torch.equal(unet.tdq_correction.scale.table, corrected.tdq_correction.scale.table)
    if dtype == torch.float32:
        assert equal(outputs(unet), outputs(corrected))
    assert not equal(outputs(corrected), outputs(frozen))


def test_saved_again_from_what_was_loaded(frozen, saved, tmp_path):
    pipe = DiffusionPipeline.from_pretrained(saved)
    pipe.save_pretrained(tmp_path / "again")
    for name in (WEIGHTS, "config.json"):
        first, second = ((tmp_path / d / "unet" / name).read_bytes() for d in ("pipe", "again"))
        if name.endswith(".json"):
            first, second = (json.loads(b)["quantization_config"] for b in (first, second))
        assert first == second


def test_weights_stay_packed_on_disk_and_codes_in_memory(frozen, saved):
    with safe_open(saved / "unet" / WEIGHTS, framework="pt") as opened:
        names = set(opened.keys())
        codes = opened.get_tensor("mid_block.resnets.0.conv1.weight.codes")
    weight = frozen.get_submodule("mid_block.resnets.0.conv1").weight
    assert codes.dtype == torch.uint8
    assert codes.numel() == weight.numel() // 2
    assert not [n for n in names if n.endswith(("zero_point", "knots"))]
    unet = UNet2DModel.from_pretrained(saved / "unet")
    layer = unet.get_submodule("mid_block.resnets.0.conv1")
    assert isinstance(layer.weight_quantizer, CodedWeight)
    assert layer.codes.dtype == torch.int8
    assert layer.weight.dtype == next(layer.parameters()).dtype == torch.float32
    assert equal(outputs(unet), outputs(frozen))


def test_dense_weights_on_request(frozen, saved):
    file = saved / "unet" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["compact"] = False
    file.write_text(json.dumps(config))
    unet = UNet2DModel.from_pretrained(saved / "unet")
    quantizers = [m for m in unet.modules() if isinstance(m, FrozenWeight)]
    assert quantizers
    assert not any(isinstance(q, CodedWeight) for q in quantizers)
    assert equal(outputs(unet), outputs(frozen))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_tables_in_float32(frozen, saved, dtype):
    unet = UNet2DModel.from_pretrained(saved / "unet", dtype=dtype)
    assert unet.dtype == dtype
    assert unet.conv_in.weight.dtype == dtype
    state, exact = unet.state_dict(), frozen.state_dict()
    fine = [n for n in state if n.endswith((".scale.table", ".scale.knots", "quantizer.step"))]
    assert fine
    for name in fine:
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], exact[name])
    got, want = outputs(unet, dtype), outputs(frozen)
    assert all(g.dtype == dtype for g in got)
    error = sum((g.float() - w).square().mean() for g, w in zip(got, want, strict=True))
    assert error < 0.01 * sum(w.square().mean() for w in want)
    unet.save_pretrained(saved / "half")
    again = UNet2DModel.from_pretrained(saved / "half", dtype=dtype)
    assert equal(outputs(again, dtype), got)


@pytest.mark.parametrize(
    "options",
    [
        {"max_shard_size": "4KB"},
        {"variant": "fp16"},
        {"variant": "w4", "max_shard_size": "4KB"},
    ],
    ids=str,
)
def test_shards_and_variants(frozen, tmp_path, options):
    frozen.save_pretrained(tmp_path, **options)
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) > 2) == ("max_shard_size" in options)
    variant = {k: v for k, v in options.items() if k == "variant"}
    assert equal(outputs(UNet2DModel.from_pretrained(tmp_path, **variant)), outputs(frozen))


@pytest.mark.parametrize(
    "options", [{"device_map": {"": "cpu"}}, {"low_cpu_mem_usage": True}, {"device_map": "cpu"}]
)
def test_device_maps_and_low_memory(frozen, saved, options):
    unet = UNet2DModel.from_pretrained(saved / "unet", **options)
    assert equal(outputs(unet), outputs(frozen))


def test_a_float_checkpoint_is_quantized_as_it_loads(tmp_path):
    pipe, _ = PIPELINES["ddim"]()
    pipe.save_pretrained(tmp_path)
    config = TDQConfig(weights=4, activations=8, scale="temporal")
    unet = UNet2DModel.from_pretrained(tmp_path / "unet", quantization_config=config)
    by_hand = tdq.quantize(pipe.unet, config.recipe)
    for model in (unet, by_hand):
        tdq.calibrate(model, unet_calls(), progress=False)
    assert equal(outputs(tdq.freeze(unet)), outputs(tdq.freeze(by_hand)))


def test_weights_alone_run_at_once_through_a_pipeline_configuration(tmp_path):
    pipe, call = PIPELINES["ddim"]()
    pipe.save_pretrained(tmp_path)
    mapping = {"unet": TDQConfig(weights=8, activations=32)}
    config = PipelineQuantizationConfig(quant_mapping=mapping)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, quantization_config=config)
    images = sample(loaded, call)
    error = abs(images - sample(pipe, call)).mean()
    assert 0 < error < 0.05


def test_compiled_and_sampled_after_reload(frozen, saved):
    pipe = DiffusionPipeline.from_pretrained(saved)
    pipe.unet = tdq.compile(pipe.unet, backend="reference")
    for a, b in zip(outputs(pipe.unet), outputs(frozen), strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))
    with pytest.raises(FreezeError, match="compiled"):
        pipe.unet.save_pretrained(saved / "compiled")
    assert not (saved / "compiled").exists()


def test_the_card_says_what_was_done(frozen, saved):
    text = (saved / "unet" / "README.md").read_text()
    assert "weights 4 bits" in text
    assert "temporal, a table of 1000" in text
    assert 'UNet2DModel.from_pretrained("this folder")' in text
    mine = saved / "unet" / "README.md"
    mine.write_text("# my own words\n")
    frozen.save_pretrained(saved / "unet")
    assert mine.read_text() == "# my own words\n"


@pytest.mark.parametrize(
    ("there", "sent"), [(None, "weights 4 bits"), ("# my own words on tdquant\n", "my own words")]
)
def test_the_card_goes_to_the_hub(frozen, monkeypatch, there, sent):
    from diffusers.utils import hub_utils
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import EntryNotFoundError

    def load(*args, **kwargs):
        if there is None:
            raise EntryNotFoundError("no card")
        return ModelCard(there, ignore_metadata_errors=True)

    def upload(folder_path, **kwargs):
        return (Path(folder_path) / "README.md").read_text()

    created = types.SimpleNamespace(repo_id="me/cats-w4")
    monkeypatch.setattr(hub_utils, "create_repo", lambda *args, **kwargs: created)
    monkeypatch.setattr(hub_utils.ModelCard, "load", load)
    monkeypatch.setattr(hub_utils, "upload_folder", upload)
    text = frozen.push_to_hub("me/cats-w4")
    assert sent in text
    assert ("weights 4 bits" in text) == (there is None)


def test_a_float_model_is_saved_without_a_card(tmp_path):
    PIPELINES["ddim"]()[0].save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("README.md"))


def test_only_frozen_models_are_saved(tmp_path):
    unet = PIPELINES["ddim"]()[0].unet
    tdq.quantize(unet, tdq.Recipe())
    with pytest.raises(FreezeError, match="freeze"):
        unet.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m" / WEIGHTS).exists()


def edit(folder, change):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))


def drop(folder, pattern):
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v for k, v in tensors.items() if not k.endswith(pattern)}, folder / WEIGHTS)


DAMAGE = {
    "newer": (lambda f: edit(f, lambda c: c.update(version=99)), StorageError, "version 99"),
    "future recipe": (
        lambda f: edit(f, lambda c: c["recipe"].update(colour="red")),
        RecipeError,
        "colour",
    ),
    "no description": (
        lambda f: edit(f, lambda c: c.update(description=None)),
        StorageError,
        "does not say",
    ),
    "no tables": (lambda f: drop(f, ".scale.table"), StorageError, "missing .*scale.table"),
    "no codes": (lambda f: drop(f, "conv1.weight.codes"), StorageError, "missing .*conv1.codes"),
    "layer not described": (
        lambda f: edit(f, lambda c: c["description"]["layers"].pop("mid_block.resnets.0.conv1")),
        StorageError,
        "disagree",
    ),
    "other bits": (
        lambda f: edit(
            f,
            lambda c: c["description"]["layers"]["mid_block.resnets.0.conv1"]["weight"].update(
                bits=8, qmax=127
            ),
        ),
        StorageError,
        "codes of 8 bits",
    ),
    "other shape": (
        lambda f: edit(
            f,
            lambda c: c["description"]["layers"]["mid_block.resnets.0.conv1"]["weight"].update(
                shape=[3, 3]
            ),
        ),
        StorageError,
        "do not fit",
    ),
    "no such layer": (
        lambda f: edit(
            f, lambda c: c["description"]["layers"].update(nowhere={"type": "QuantLinear"})
        ),
        StorageError,
        "no such module",
    ),
    "unknown structure": (
        lambda f: edit(
            f,
            lambda c: c["description"].update(
                structures=[{"path": "conv_in", "structure": "knot"}]
            ),
        ),
        StorageError,
        "no structure 'knot'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_repositories(saved, damage):
    harm, error, match = DAMAGE[damage]
    harm(saved / "unet")
    with pytest.raises(error, match=match):
        UNet2DModel.from_pretrained(saved / "unet")


def test_bad_configurations():
    with pytest.raises(RecipeError, match="a recipe and fields"):
        TDQConfig(tdq.Recipe(), weights=4)
    with pytest.raises(RecipeError, match="bits"):
        TDQConfig(weights=77)
    with pytest.raises(RecipeError, match="unknown fields"):
        TDQConfig(wheights=4)


def test_a_configuration_survives_its_dictionary():
    config = TDQConfig(weights=4, scale="static", timestep="t", compact=False)
    again = TDQConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()


@pytest.fixture(scope="module")
def fresh():
    programs = Fresh()
    yield programs
    programs.close()


IMPORTS = """
import sys
sys.modules["peft"] = sys.modules["transformers"] = None  # which take seconds
{first}
import tdquant
assert {lazy} or "diffusers" not in sys.modules
from diffusers import UNet2DModel
from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING
assert "tdquant" in AUTO_QUANTIZER_MAPPING
UNet2DModel.from_pretrained({folder!r})
"""


@pytest.mark.parametrize(
    "first", ["", "import diffusers", "import tdquant.integrations.diffusers"]
)
def test_importing_tdquant_is_all_it_takes(fresh, saved, tmp_path, first):
    code = IMPORTS.format(first=first, lazy=bool(first), folder=str(saved / "unet"))
    assert fresh.run(code, tmp_path / "output") == 0, (tmp_path / "output").read_text()


def test_tdq_and_diffusers_save_the_same_numbers(frozen, saved, tmp_path):
    tdq.save(frozen, tmp_path / "tdq")
    loaded = tdq.load(tmp_path / "tdq")
    assert equal(outputs(loaded), outputs(UNet2DModel.from_pretrained(saved / "unet")))
    shutil.rmtree(saved / "unet")
    loaded.save_pretrained(saved / "unet")  # and from one way to the other
    pipe = DiffusionPipeline.from_pretrained(saved)
    assert equal(outputs(pipe.unet), outputs(frozen))


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "4KB"}, {"variant": "w4"}], ids=str)
def test_tdq_loads_what_diffusers_saved(frozen, tmp_path, options):
    frozen.save_pretrained(tmp_path, **options)
    assert equal(outputs(tdq.load(tmp_path)), outputs(frozen))
    assert "mid_block.resnets.0.conv1" in inspect_saved(tmp_path)


def test_a_whole_pipeline_is_inspected_and_its_models_are_named(saved):
    text = inspect_saved(saved)
    assert text.startswith("unet: diffusers UNet2DModel, timestep argument 'timestep'")
    with pytest.raises(StorageError, match=r"one of its models: .*unet"):
        tdq.load(saved)
    (saved / "unet" / "config.json").write_text("{")
    with pytest.raises(StorageError, match="is damaged"):
        tdq.load(saved / "unet")


def test_without_tdquant_diffusers_names_what_is_missing(fresh, saved, tmp_path):
    code = (
        "import sys; sys.modules['peft'] = sys.modules['transformers'] = None\n"
        "from diffusers import UNet2DModel\n"
        f"UNet2DModel.from_pretrained({str(saved / 'unet')!r})"
    )
    assert fresh.run(code, tmp_path / "output") != 0
    assert "tdquant" in (tmp_path / "output").read_text().splitlines()[-1]
    assert "import tdquant" in (saved / "unet" / "README.md").read_text()


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}])
def test_weights_of_torch_save_are_read_without_unpickling(frozen, tmp_path, shards):
    frozen.save_pretrained(tmp_path, safe_serialization=False, **shards)
    files = list(tmp_path.glob("*.bin"))
    assert len(files) > 1 or not shards
    assert equal(outputs(tdq.load(tmp_path)), outputs(frozen))
    assert "UNet2DModel" in inspect_saved(tmp_path)
    files[0].write_bytes(b"cut")
    with pytest.raises(StorageError, match="cannot be read"):
        tdq.load(tmp_path)


def test_an_index_says_which_files_are_the_models(frozen, tmp_path):
    from tdquant.storage.diffusers_folder import weight_files

    frozen.save_pretrained(tmp_path)
    whole = [file.name for file in weight_files(tmp_path)]
    assert whole == [WEIGHTS]
    frozen.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    for file in (tmp_path / "b").iterdir():
        shutil.copy(file, tmp_path)
    shards = [file.name for file in weight_files(tmp_path)]
    assert len(shards) > 1
    assert WEIGHTS not in shards
    for name in shards:
        (tmp_path / name).unlink()
    assert [file.name for file in weight_files(tmp_path)] == whole
    variants = tmp_path / "variants"
    for variant in ("a", "b"):
        frozen.save_pretrained(variants, variant=variant)
    with pytest.raises(StorageError, match="variants a, b"):
        tdq.load(variants)


def test_diffusers_goes_on_without_accelerate(fresh, tmp_path):
    program = (
        "import sys; sys.modules |= dict.fromkeys(('accelerate', 'peft', 'transformers'))\n"
        "import tdquant\n"
        "from diffusers import UNet2DModel\n"
        "print(UNet2DModel.__name__)"
    )
    assert fresh.run(program, tmp_path / "output") == 0, (tmp_path / "output").read_text()
    assert "UNet2DModel" in (tmp_path / "output").read_text().splitlines()


@pytest.mark.parametrize("backend", ["reference", "onednn", "openvino"])
def test_pipelines_run_what_was_compiled(frozen, backend):
    pipe = DDIMPipeline(tdq.compile(frozen, backend), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=1, num_inference_steps=2, output_type="np").images
    assert images.shape[0] == 1
