"""``tdquant quantize``, from a float pipeline in a folder to a quantized one in another."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from PIL import Image

import tdquant as tdq
from tdquant.cli import main
from tdquant.lab.jobs import run as job
from tests.pipelines import PIPELINES, sample


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An unconditional and a prompted pipeline."""
    folder = tmp_path_factory.mktemp("float")
    PIPELINES["ddim"]()[0].save_pretrained(folder / "ddim")
    pipe, _ = PIPELINES["stable_diffusion_1"]()
    pipe.scheduler = DDIMScheduler()
    pipe.save_pretrained(folder / "sd")
    (folder / "prompts.txt").write_text("a cat\n\n  a dog \n")
    return folder


def run(source, model, out, *words):
    return main(
        ["quantize", "--model", str(source / model), "--out", str(out), "--quiet", "--steps", "3"]
        + [str(word) for word in words]
    )


def test_prompts_to_a_folder_that_samples(source, tmp_path, capsys):
    prompts = ("--prompts", source / "prompts.txt", "height=8", "width=8", "guidance_scale=3.5")
    assert run(source, "sd", tmp_path / "out", "--scale", "static", *prompts) == 0
    said = capsys.readouterr().out
    assert "PSNR" in said
    assert "saved to" in said
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    assert pipe.unet.is_quantized
    call = {"prompt": "a cat", "height": 8, "width": 8, "num_inference_steps": 3}
    assert sample(pipe, call).isfinite().all()
    card = (tmp_path / "out" / "unet" / "README.md").read_text()
    assert "weights 4 bits" in card
    assert "pipeline StableDiffusionPipeline" in card
    assert "psnr" in card
    with Image.open(tmp_path / "out" / "comparison.png") as picture:
        assert picture.size == (2 * 12, 2 * 12)  # two samples of 8x8, float above quantized
    assert not (tmp_path / "out.work").exists()


def test_searched_and_reconstructed(source, tmp_path, capsys):
    words = ("--samples", 4, "--batch", 2, "--target-bits", 4.5, "--reconstruct", "gptq",
             "--correct", "--scale", "static")  # fmt: skip
    assert run(source, "ddim", tmp_path / "out", *words, "--layers") == 0
    said = capsys.readouterr().out
    assert "weights of 4.50 bits on average" in said or "weights of 4.4" in said
    assert "mid_block.resnets.0.conv1" in said
    unet = DiffusionPipeline.from_pretrained(tmp_path / "out").unet
    recipe = unet.tdq.recipe
    assert recipe.overrides
    steps = [step["step"] for step in unet.tdq.history]
    assert steps == ["calibrate", "reconstruct", "correct", "compare"]
    assert unet.tdq_correction.scale.table.min() > 0.5
    assert (tmp_path / "out" / "search-unet.png").exists()


def test_within_a_budget(source, tmp_path, capsys):
    words = ("--samples", 1, "--scale", "static", "--pictures", 0)
    size, budget = 0.42, "size=0.42,time=0.9,protection=0.1"
    assert run(source, "ddim", tmp_path / "out", *words, "--budget", budget) == 0
    said = capsys.readouterr().out
    for words in ("% of the float32 bytes", "bits  kept", "layers quantized", "saved to"):
        assert words in said.partition("MB on disk")[2]
    file = tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors"
    floats = DiffusionPipeline.from_pretrained(source / "ddim").unet.num_parameters()
    assert file.stat().st_size <= 1.02 * size * 4 * floats
    unet = DiffusionPipeline.from_pretrained(tmp_path / "out").unet
    assert unet.tdq.remedies.trials[0].name == "bits"
    assert main(["inspect", str(tmp_path / "out" / "unet")]) == 0
    assert str(unet.tdq.remedies) in capsys.readouterr().out


def test_a_whole_recipe_from_a_file(source, tmp_path):
    recipe = tdq.Recipe(weights=8, activations=32, exclude=("mid_block.*",))
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe.to_dict()))
    words = ("--samples", 1, "--recipe", file, "--pictures", 0)
    assert run(source, "ddim", tmp_path / "out", *words) == 0
    unet = DiffusionPipeline.from_pretrained(tmp_path / "out").unet
    assert unet.tdq.recipe == recipe
    assert not (tmp_path / "out" / "comparison.png").exists()


def test_half_precision(source, tmp_path):
    words = ("--prompts", source / "prompts.txt", "--dtype", "bfloat16", "--scale", "static")
    assert run(source, "sd", tmp_path / "out", *words, "height=8", "width=8") == 0
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet", dtype=torch.bfloat16)
    assert unet.conv_in.weight.dtype == torch.bfloat16


def test_a_stopped_job_takes_the_calls_that_it_recorded(source, tmp_path, monkeypatch):
    from tdquant.calls import from_pipeline as recording
    from tdquant.lab.jobs import run as stages

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    words = ("--samples", 2, "--scale", "static", "--pictures", 0)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "calibrate", stop)
        assert run(source, "ddim", tmp_path / "out", *words) == 130
    assert (tmp_path / "out.work" / "calls" / "calls.json").exists()
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr(recording.Recording, "save", stop)
        assert run(source, "ddim", tmp_path / "other", *words) == 130  # another job records
        assert run(source, "ddim", tmp_path / "out", *words, "--seed", 1) == 130
        assert run(source, "ddim", tmp_path / "out", *words) == 0
    assert not (tmp_path / "out.work").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prompts", "missing.txt"), "prompts cannot be read"),
        (("--samples", "0"), "0 samples"),
        (("--samples", "1", "colour=red"), "takes no colour"),
        (("--samples", "1", "--part", "transformer"), "no denoiser transformer"),
        (("--samples", "1", "--weights", "77"), "bits"),
        (("--samples", "1", "--recipe", "missing.json"), "recipe cannot be read"),
        (("--samples", "1", "--target-bits", "1"), "target_bits"),
        (("--samples", "1", "--budget", "size=0.01"), "size=0.01 cannot be met"),
        (("--samples", "1", "--budget", "sise=0.1"), "no budget 'sise'"),
        (("--samples", "1", "--target-bits", "4", "--budget", "size=0.3"), "one of them"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_bad_input_is_explained_and_writes_nothing(source, tmp_path, capsys, words, said):
    assert run(source, "ddim", tmp_path / "out", *words) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be(source, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    assert run(source, "ddim", tmp_path / "mine", "--samples", 1) == 1
    assert "something else" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "words"
    assert run(source, "nowhere", tmp_path / "out", "--samples", 1) == 1
    assert "no such model" in capsys.readouterr().err
    done = ("--samples", 1, "--pictures", 0, "--scale", "static")
    assert run(source, "ddim", tmp_path / "out", *done) == 0
    assert run(tmp_path, "out", tmp_path / "twice", *done) == 1
    assert "quantized already" in capsys.readouterr().err


def test_prompts_for_a_pipeline_without(source, tmp_path, capsys):
    words = ("--prompts", source / "prompts.txt")
    assert run(source, "ddim", tmp_path / "out", *words) == 1
    assert "takes none" in capsys.readouterr().err
    assert run(source, "ddim", tmp_path / "out", *words, "--samples", 2) == 1
    assert "one of them" in capsys.readouterr().err


def test_only_the_folder_of_a_job_is_replaced(source, tmp_path, capsys, monkeypatch):
    float_one = tmp_path / "float"
    PIPELINES["ddim"]()[0].save_pretrained(float_one)
    words = ("--samples", 1, "--pictures", 0, "--scale", "static")
    assert run(tmp_path, "float", float_one, *words) == 1  # a pipeline is no mark of a job
    assert "something else" in capsys.readouterr().err
    out = tmp_path / "out"
    assert run(tmp_path, "float", out, *words) == 0
    assert run(tmp_path, "float", out, *words) == 0
    real = job.freeze

    def freeze(model):  # somebody puts a file there while the job runs
        (out / "results").mkdir()
        (out / "results" / "notes.txt").write_text("mine")
        return real(model)

    monkeypatch.setattr(job, "freeze", freeze)
    assert run(tmp_path, "float", out, *words) == 0
    assert (out / "results" / "notes.txt").read_text() == "mine"
    shutil.rmtree(out / "results")
    (out / "notes.txt").write_text("mine")
    assert run(tmp_path, "float", out, *words) == 1
    assert "notes.txt" in capsys.readouterr().err
    assert (out / "notes.txt").read_text() == "mine"


def test_prompts_and_recipes_that_are_no_json(source, tmp_path, capsys):
    (tmp_path / "p.txt").write_text('{"prompt": "a"\n')
    (tmp_path / "r.json").write_text('{"overrides": []}')
    assert run(source, "sd", tmp_path / "out", "--prompts", tmp_path / "p.txt") == 1
    assert "not JSON objects" in capsys.readouterr().err
    assert (
        run(source, "sd", tmp_path / "out", "--samples", 1, "--recipe", tmp_path / "r.json") == 1
    )
    assert "overrides=[]: a dictionary" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_there(source, tmp_path, capsys, device):
    assert run(source, "ddim", tmp_path / "out", "--samples", 2, "--device", device) == 1
    assert f"no device {device}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
