"""Text-to-image checkpoints in latent diffusion's names, at a small size."""

import json
import math
import warnings

import pytest
import torch
from safetensors.torch import save_file

import tdquant as tdq
from tdquant.cli import main
from tdquant.diffusion import Condition
from tdquant.errors import ModelError, StorageError
from tdquant.files.config import read_config
from tests.clip import save_clip
from tests.files.checkpoints.lightning import write_lightning
from tests.models.compvis.emulation import UNet
from tests.models.compvis.examples import KL_NODE, checkpoint, config, inputs, stage, weights
from tests.models.compvis.test_load import yaml

# As configs/stable-diffusion-v1.yaml has them, but for widths.
SD = {
    "image_size": 4,  # not used
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [2, 1],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_heads": 2,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 16,
    "use_checkpoint": True,
    "legacy": False,
}
CLIP = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}
BERT = {"target": "ldm.modules.encoders.modules.BERTEmbedder", "params": {"n_embed": 16}}


def conf(condition=CLIP, **params):
    params = {"scale_factor": 0.18215, "use_ema": False, **params}
    out = config(SD, KL_NODE, cond_stage_config=condition, **params)
    out["model"]["params"]["image_size"] = 8
    return out


def state():
    text = "cond_stage_model.transformer.text_model."
    return checkpoint(weights(SD), stage(KL_NODE)) | {
        text + "embeddings.position_ids": torch.arange(77)[None],
        text + "final_layer_norm.weight": torch.ones(16),
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a Lightning file, a single-file safetensors, a config and a text encoder."""
    folder = tmp_path_factory.mktemp("sd")
    write_lightning(folder / "sd-v1.ckpt", state())
    half = {k: v.half() if v.is_floating_point() else v for k, v in state().items()}
    save_file(half, folder / "sd-v1.safetensors")
    yaml(folder / "sd.yaml", conf())
    save_clip(folder / "clip")
    save_file({"context": torch.randn(3, 5, 16), "empty": torch.randn(1, 5, 16)},
              folder / "embeddings.safetensors")  # fmt: skip
    return folder


def load(place, name="sd-v1.ckpt", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tdq.models.load_compvis(place / "sd.yaml", place / name, **options)


def test_lightning_and_single_files(place):
    with pytest.warns(UserWarning, match=r"the CLIP text encoder FrozenCLIPEmbedder.*left out"):
        pipe = tdq.models.load_compvis(place / "sd.yaml", place / "sd-v1.ckpt")
    x, t, context, _ = inputs(SD)
    with torch.no_grad():
        found = pipe.unet(x, t, context)
    expected = UNet(SD, weights(SD))(x, t, context)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert pipe.shape == (4, 8, 8)
    assert pipe.scale_factor == pytest.approx(0.18215)
    with torch.no_grad():
        rounded = load(place, "sd-v1.safetensors").unet(x, t, context)
    assert 0 < (found - rounded).abs().max() < 1e-2 * found.abs().max()


def test_diffusers_own_conversion_computes_the_same(place):
    """An oracle that shares nothing with us but the names in the file."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=16,
    ).eval()
    names = {f"model.diffusion_model.{k}": v for k, v in weights(SD).items()}
    unet.load_state_dict(convert_ldm_unet_checkpoint(names, dict(unet.config)))
    x, t, context, _ = inputs(SD)
    with torch.no_grad():
        found = load(place).unet(x, t, context)
        expected = unet(x, t, context).sample
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.slow), 3.0])
def test_quantized_and_sampled_from_embeddings(place, guidance):
    pipe = load(place)
    torch.manual_seed(0)
    condition = Condition(torch.randn(2, 5, 16), torch.randn(1, 5, 16), guidance)
    common = {"steps": 3, "condition": condition, "progress": False}
    exact = tdq.sample(pipe.unet, pipe.scheduler, 4, pipe.shape, **common)
    calls = tdq.trajectories(
        pipe.unet, pipe.scheduler, 4, pipe.shape, steps=3, batch=3, condition=condition
    )
    shapes = {(len(x), len(context)) for x, t, context in calls}
    assert shapes == ({(3, 3), (1, 1)} if guidance == 1 else {(6, 6), (2, 2)})
    tdq.quantize(pipe.unet, tdq.Recipe(weights=8, activations=8, remedies=()))
    tdq.calibrate(pipe.unet, calls, progress=False)
    frozen = tdq.freeze(pipe.unet)
    found = tdq.sample(frozen, pipe.scheduler, 4, pipe.shape, **common)
    assert 0 < (found - exact).norm() < 0.2 * exact.norm()
    # Images of one row of the embeddings, from other noise, in whatever batches.
    again = tdq.sample(frozen, pipe.scheduler, 4, pipe.shape, batch=3, **common)
    assert (again - found).norm() < 0.05 * found.norm()
    fast = tdq.compile(frozen, "reference")
    assert tdq.sample(fast, pipe.scheduler, 2, pipe.shape, **common).isfinite().all()


def test_guidance_goes_from_the_empty_prompt_to_the_full_one():
    def model(x, t, context):
        return context.mean((1, 2))[:, None].expand_as(x) + x

    full, empty = torch.full((1, 2, 3), 5.0), torch.full((1, 2, 3), 1.0)
    x = torch.zeros(2, 4)
    for guidance, expected in ((1.0, 5.0), (0.0, 1.0), (2.0, 9.0)):
        predict = Condition(full, empty, guidance).bound(model, [0, 7], "cpu")
        assert torch.equal(predict(x, torch.tensor(0)), torch.full((2, 4), expected))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"context": torch.zeros(2, 3)}, "context of shape"),
        ({"context": torch.zeros(0, 3, 4)}, "context of shape"),
        ({"context": torch.zeros(2, 3, 4), "guidance": 2.0}, "without the embedding"),
        ({"context": torch.zeros(2, 3, 4), "empty": torch.zeros(3, 4)}, "empty of shape"),
        ({"context": torch.zeros(2, 0, 4)}, "context of shape"),
        ({"context": torch.full((2, 3, 4), torch.nan)}, "finite real numbers"),
        ({"context": torch.zeros(2, 3, 4, dtype=torch.int64)}, "finite real numbers"),
        ({"context": torch.zeros(2, 3, 4, dtype=torch.complex64)}, "finite real numbers"),
        (
            {"context": torch.zeros(2, 3, 4), "empty": torch.zeros(1, 3, 4), "guidance": math.nan},
            "guidance=nan",
        ),
    ],
)
def test_conditions_that_cannot_be(given, words):
    with pytest.raises(ModelError, match=words):
        Condition(**given)


def test_embeddings_of_double_precision(place):
    context = torch.randn(1, 5, 16, dtype=torch.float64)
    assert Condition(context).context.dtype == torch.float32


def test_prompts_of_a_job(place, tmp_path, capsys):
    (tmp_path / "p.txt").write_text('{"prompt": "a cat"}\n{"prompt": "a dog"}\n')
    job = ["quantize", "--model", str(place / "sd-v1.ckpt"), "--config", str(place / "sd.yaml")]
    job += ["--text-encoder", str(place / "clip"), "--out", str(tmp_path / "out"), "--quiet"]
    job += ["--steps", "2", "--prompts", str(tmp_path / "p.txt"), "guidance_scale=2"]
    (tmp_path / "recipe.json").write_text(json.dumps(tdq.Recipe(remedies=()).to_dict()))
    job += ["--recipe", str(tmp_path / "recipe.json")]
    assert main(job) == 0
    assert "PSNR" in capsys.readouterr().out
    (tmp_path / "p.txt").write_text('{"prompt": "a cat", "height": 64}\n')
    assert main(job) == 1
    assert "arguments prompt, height" in capsys.readouterr().err


def sample(place, out, *more, name="sd-v1.ckpt"):
    return main(
        ["sample", "--ckpt", str(place / name), "--config", str(place / "sd.yaml"), "--quiet"]
        + ["--logdir", str(out), "--name", "a", "-n", "2", "-c", "2", *more]
    )


@pytest.mark.parametrize("name", ["sd-v1.ckpt", "sd-v1.safetensors"])
def test_the_command_samples_from_embeddings(place, tmp_path, name):
    words = ["--embeddings", str(place / "embeddings.safetensors"), "--guidance", "2"]
    assert sample(place, tmp_path, *words, name=name) == 0
    assert len(list((tmp_path / "a").glob("*.png"))) == 2


def test_the_command_samples_from_prompts(place, tmp_path, capsys):
    words = ["--text-encoder", str(place / "clip"), "--prompt", "a cat"]
    assert sample(place, tmp_path, *words) == 0
    first = (tmp_path / "a" / "000000.png").read_bytes()
    assert sample(place, tmp_path / "b", *words[:-1], "a dog") == 0
    assert (tmp_path / "b" / "a" / "000000.png").read_bytes() != first
    assert sample(place, tmp_path, *words[:-1], "a dog") == 1
    assert "other settings" in capsys.readouterr().err


def test_what_the_command_refuses(place, tmp_path, capsys):
    embeddings = ["--embeddings", str(place / "embeddings.safetensors")]
    save_file({"context": torch.zeros(1, 5, 7)}, tmp_path / "narrow.safetensors")
    save_file({"other": torch.zeros(1, 5, 7)}, tmp_path / "other.safetensors")
    cases = {
        (): "takes a context of width 16, and none is given",
        ("--prompt", "a cat"): "without a text encoder",
        (*embeddings, "--prompt", "a cat"): "--prompt and --embeddings",
        ("--guidance", "2"): "without a condition",
        ("--embeddings", str(tmp_path / "narrow.safetensors")): "embeddings of width 7 are given",
        ("--embeddings", str(tmp_path / "other.safetensors")): "no tensor named context",
        ("--embeddings", str(tmp_path / "absent.pt")): "no such file",
        ("--text-encoder", str(tmp_path)): "no CLIP text encoder",
        ("--text-encoder", str(tmp_path / "absent")): "no such folder",
    }
    for words, expected in cases.items():
        assert sample(place, tmp_path, *words) == 1
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_text_encoder_where_there_is_none(place, tmp_path):
    file = yaml(tmp_path / "bert.yaml", conf(BERT))
    with pytest.raises(ModelError, match="only CLIP text encoders"):
        tdq.models.load_compvis(file, place / "sd-v1.ckpt", text_encoder=place / "clip")
    with pytest.warns(UserWarning, match="BERTEmbedder"):
        tdq.models.load_compvis(file, place / "sd-v1.ckpt")
    plain = yaml(tmp_path / "plain.yaml", config())
    with pytest.raises(ModelError, match="an unconditional model"):
        tdq.models.load_compvis(plain, text_encoder=place / "clip")


def test_prompts_as_embeddings(place):
    pipe = load(place, text_encoder=place / "clip")
    found = pipe.text_encoder(["a cat", ""])
    assert found.shape == (2, 8, 16)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(pipe.text_encoder(["a cat"])[0], found[0])


@pytest.mark.parametrize(
    ("name", "width", "context"), [("stable-diffusion-v1", 64, 768), ("txt2img-1p4B", 32, 1280)]
)
def test_shipped_configurations(name, width, context):
    from pathlib import Path

    file = Path(__file__).parents[3] / "configs" / f"{name}.yaml"
    params = read_config(file)["model"]["params"]
    with torch.device("meta"):
        unet = tdq.models.UNetModel(**params["unet_config"]["params"])
    assert unet.config["context_dim"] == context
    assert params["image_size"] == width
    count = sum(p.numel() for p in unet.parameters())
    assert count == {"stable-diffusion-v1": 859_520_964, "txt2img-1p4B": 872_300_484}[name]


def test_a_file_that_is_missing(place):
    with pytest.raises(StorageError, match="no such file"):
        load(place, "absent.ckpt")
