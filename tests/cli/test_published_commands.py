"""The two published commands, word for word, on files of the published forms.

A folder looks as a researcher's does: the configuration and the checkpoint at the published paths,
both of the embedded latent model with a smaller UNet so that it takes seconds. Lightning is not
installed.
"""

import functools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tdquant as tdq
from tdquant.choice.size import float_bytes
from tdquant.cli import main, published_main
from tdquant.files.config import read_config
from tdquant.lab.opening import open_model
from tdquant.models import UNetModel
from tests.files.checkpoints.lightning import write_lightning
from tests.models.compvis.emulation import UNet
from tests.models.compvis.examples import checkpoint, published, read, weights

ROOT = Path(__file__).parents[2]
TRAIN = """
python main.py \
    --base configs/lsun_churches-ldm-kl-8.yaml \
    --ckpt models/ldm/lsun_churches256/model.ckpt \
    --train True \
    --scale_lr False \
    --n_bit_w ${w_bit} \
    --n_bit_a ${a_bit} \
    --name churches_W${w_bit}A${a_bit}_TDQ \
    --use_dynamic
"""
SAMPLE = """
python sample.py \
    --ckpt ${ckpt} \
    --config configs/lsun_churches-ldm-kl-8.yaml  \
    --logdir samples \
    --n_samples 10 \
    --custom_steps 100 \
    --gpus 0 \
    --batch_size 100 \
    --name test
"""


def words(command, **values):
    """What a shell makes of a published command."""
    for name, value in values.items():
        command = command.replace("${" + name + "}", str(value))
    program, script, *rest = shlex.split(command)
    assert program == "python"
    return [sys.executable, str(ROOT / script), *rest]


def run(place, command, **values):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RANK", None)
    return subprocess.run(
        words(command, **values), cwd=place, env=environment, capture_output=True, text=True
    )


@functools.cache
def unet_state():
    return weights(configuration()["model"]["params"]["unet_config"]["params"])


def float_state():
    """The state dict of a CompVis checkpoint: averages, first stage and factor of the latents
    included.
    """
    pipe = tdq.models.load_embedded("cats-ldm")
    from tdquant.models.compvis.autoencoder import to_published

    stage = to_published(pipe.vae)
    schedule = {"betas": pipe.scheduler.betas, "alphas_cumprod": pipe.scheduler.alphas_cumprod}
    factor = {"scale_factor": torch.tensor(pipe.scale_factor)}
    return checkpoint(unet_state(), stage, ema=unet_state(), **schedule, **factor)


def configuration(**params):
    """The embedded model's configuration, smaller and short to train, as the published file."""
    conf = read_config(ROOT / "configs" / "cats-ldm.yaml")
    conf["model"]["params"].pop("scale_factor")
    conf["model"]["params"].update(params)
    conf["model"]["params"]["unet_config"]["params"] |= {"model_channels": 32, "num_res_blocks": 1}
    conf["data"]["params"]["batch_size"] = 4
    conf["data"]["params"]["train"]["params"]["count"] = 16
    conf["tdquant"] = {"steps": 2, "warmup": 1, "calibration_batches": 2}
    return conf


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("researcher")
    (folder / "configs").mkdir()
    (folder / "models/ldm/lsun_churches256").mkdir(parents=True)
    file = folder / "configs/lsun_churches-ldm-kl-8.yaml"
    file.write_text(json.dumps(configuration(scale_by_std=False, scale_factor=1.0)))
    compvis = folder / "configs/compvis.yaml"
    compvis.write_text(json.dumps(configuration(scale_by_std=True)))
    write_lightning(folder / "models/ldm/lsun_churches256/model.ckpt", float_state())
    return folder


@pytest.mark.slow
def test_both_commands_on_a_lightning_file(place):
    done = run(place, TRAIN, w_bit=4, a_bit=4)
    assert done.returncode == 0, done.stderr
    assert "pytorch_lightning" not in done.stderr
    folder = place / "logs" / "churches_W4A4_TDQ"
    assert (folder / "frozen" / "tdquant.json").exists()
    done = run(place, SAMPLE, ckpt="models/ldm/lsun_churches256/model.ckpt")
    assert done.returncode == 0, done.stderr
    pictures = sorted((place / "samples" / "test").glob("*.png"))
    assert [p.name for p in pictures] == [f"{i:06d}.png" for i in range(10)]
    # The model is that of the file, to the bit.
    embedded = tdq.models.load_embedded("cats-ldm")
    unet = UNetModel(**configuration()["model"]["params"]["unet_config"]["params"]).eval()
    unet.load_state_dict(unet_state())
    loaded = open_model(
        place / "models/ldm/lsun_churches256/model.ckpt",
        config=place / "configs/lsun_churches-ldm-kl-8.yaml",
    ).model
    x, t = torch.randn(2, *embedded.shape), torch.tensor([10, 900])
    with torch.no_grad():
        assert torch.equal(loaded.unet(x, t), unet(x, t))
        assert torch.equal(loaded.decode(x), embedded.decode(x))
    # And the run, which has its own configuration, samples by the same words.
    command = SAMPLE.replace("--name test", "--name trained")
    done = run(place, command, ckpt="logs/churches_W4A4_TDQ")
    assert done.returncode == 0, done.stderr
    assert len(list((place / "samples" / "trained").glob("*.png"))) == 10


KINDS = {"W4A4 TDQ": (4, 4, True), "W8A8 TDQ": (8, 8, True), "W4A8 LSQ": (4, 8, False)}


def quantized_state(bits_w, bits_a, dynamic):
    """A checkpoint of TDQ's authors: quantized layers, averages of them, no factor."""
    state = float_state()
    del state["scale_factor"]
    prefix, unet = "model.diffusion_model.", {}
    for name in [n for n in state if n.startswith(prefix)]:
        unet[name.removeprefix(prefix)] = state.pop(name)
    state = {k: v for k, v in state.items() if not k.startswith("model_ema.")}
    conf = configuration()["model"]["params"]["unet_config"]["params"]
    layers = published(unet, conf, bits_w, bits_a, dynamic)
    buffers = ("n_lv", "act_func.b", "act_func.dynamic")
    ema = {k: v for k, v in layers.items() if not k.endswith(buffers)}
    return checkpoint(layers, ema=ema) | state, layers, conf


@pytest.mark.parametrize(
    "kind",
    ["W4A4 TDQ", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k != "W4A4 TDQ")],
)
def test_both_commands_on_the_authors_format(place, kind, monkeypatch, capsys):
    monkeypatch.chdir(place)
    state, layers, conf = quantized_state(*KINDS[kind])
    name = kind.replace(" ", "_")
    file = write_lightning(place / f"{name}.ckpt", state)
    sampling = words(SAMPLE.replace("--name test", f"--name {name}"), ckpt=file.name)
    assert published_main("sample", [*sampling[2:], "--quiet"]) == 0
    assert len(list((place / "samples" / name).glob("*.png"))) == 10
    # What was sampled is the published arithmetic.
    pipe = open_model(file, config=place / "configs/lsun_churches-ldm-kl-8.yaml").model
    x, t = torch.randn(2, *pipe.shape), torch.tensor([10, 900])
    with torch.no_grad():
        found, expected = pipe.unet(x, t), UNet(conf, layers)(x, t)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    # It trains on, and ends as a checkpoint in the same format.
    training = words(TRAIN, w_bit=KINDS[kind][0], a_bit=KINDS[kind][1])
    training[training.index("--ckpt") + 1] = file.name
    training[training.index("--name") + 1] = name
    assert published_main("train", [*training[2:], "--quiet"]) == 0
    written = read(place / "logs" / name / "published.ckpt")
    missing = {k for k in state if k not in written}
    assert {k for k in missing if "tdq_module" not in k} == set()
    assert bool(missing) == (not KINDS[kind][2])  # static layers have no use for a network
    odd = {k for k in state if k in written and written[k].shape != state[k].shape}
    assert odd == set()


def test_the_wrong_configuration_is_refused_and_not_grey(place, capsys):
    state, *_ = quantized_state(4, 4, True)
    file = write_lightning(place / "authors.ckpt", state)
    common = ["--ckpt", str(file), "--logdir", str(place / "grey"), "-n", "1", "-c", "2"]
    compvis = str(place / "configs/compvis.yaml")
    assert main(["sample", *common, "--config", compvis]) == 1
    said = capsys.readouterr().err
    assert "the factor of the latents is not known" in said
    assert "0.2458" in said
    assert "model.params.scale_factor" in said
    assert not (place / "grey").exists()
    override = "model.params.scale_factor=1.0"
    assert main(["sample", *common, "--config", compvis, override, "--quiet"]) == 0
    base = ["train", "--base", compvis, "--ckpt", str(file), "--logdir", str(place / "none")]
    assert main([*base, "--quiet"]) == 1
    assert "0.2458" in capsys.readouterr().err
    assert not (place / "none").exists()
    # CompVis's own file has the factor, and its configuration needs none.
    own = str(place / "models/ldm/lsun_churches256/model.ckpt")
    assert open_model(own, config=compvis).model.scale_factor == 1.0


@pytest.mark.slow
def test_without_train_main_py_only_calibrates(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    command = words(TRAIN.replace("--train True", ""), w_bit=8, a_bit=8)[2:]
    assert published_main("train", [*command, "--quiet"]) == 0
    assert "without training" in capsys.readouterr().out
    folder = place / "logs" / "churches_W8A8_TDQ"
    assert (folder / "frozen").is_dir()
    assert not (folder / "checkpoints").exists()


def test_training_as_published_from_a_float_checkpoint(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    command = words(TRAIN, w_bit=4, a_bit=4)[2:]
    command[command.index("--name") + 1] = "published"
    options = ["--scheme", "published", "--quiet", "tdquant.calibration_batches=3"]
    options += ["--step-rate", "3"]
    assert published_main("train", [*command, *options]) == 0
    run_folder = place / "logs" / "published"
    asked = json.loads((run_folder / "run.json").read_text())["asked"]
    assert asked["recipe"]["grid"] == "published"
    assert asked["options"]["clip"] == 0
    assert asked["options"]["rates"] == "published"
    assert asked["options"]["step_rate"] == 3
    # A killed run goes on: the folder knows its quantizers.
    assert main(["train", "--resume", str(run_folder), "--max_steps", "3", "--quiet"]) == 0
    config = place / "configs/lsun_churches-ldm-kl-8.yaml"
    written = open_model(run_folder / "published.ckpt", config=config).model
    x, t = torch.randn(2, *written.shape), torch.tensor([10, 900])
    with torch.no_grad():
        frozen = open_model(run_folder).model.unet(x, t)
        assert torch.equal(tdq.freeze(written.unet)(x, t), frozen)


def test_options_that_contradict_the_published_scheme(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    command = words(TRAIN, w_bit=4, a_bit=4)[2:]
    options = ["--scheme", "published", "tdquant.dropout=0.1", "--scale", "table"]
    assert published_main("train", [*command, *options]) == 1
    said = capsys.readouterr().err
    assert "tdquant.dropout=0.1" in said
    assert "static or temporal" in said


def test_the_factor_is_measured_on_the_first_batch_and_stored(place, capsys):
    base = ["train", "--base", str(place / "configs/compvis.yaml"), "--quiet"]
    base += ["--logdir", str(place / "fresh"), "--name", "a", "--n_bit_w", "0", "--n_bit_a", "0"]
    stage = place / "stage.ckpt"
    state = {k.removeprefix("first_stage_model."): v for k, v in float_state().items()
             if k.startswith("first_stage_model.")}  # fmt: skip
    write_lightning(stage, state)
    first = f"model.params.first_stage_config.params.ckpt_path={stage}"
    assert main([*base, first]) == 0
    said = capsys.readouterr().out
    factor = json.loads((place / "fresh" / "a" / "run.json").read_text())["scale_factor"]
    assert f"latents times {factor:.5f}" in said
    # The latents of that model have a standard deviation of about 1.4.
    assert factor == pytest.approx(1 / 1.4, rel=0.15)
    pipe = open_model(place / "fresh" / "a").model
    assert pipe.scale_factor == factor
    cats = tdq.data.Cats("train", count=64)
    images = torch.stack([cats[i] for i in range(64)])
    with torch.no_grad():
        assert float(pipe.encode(images).std()) == pytest.approx(1, rel=0.1)


def test_post_training_quantization_of_a_checkpoint(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    ckpt, config = "models/ldm/lsun_churches256/model.ckpt", "configs/compvis.yaml"
    words = ["--config", config, "--out", "w4a8", "--steps", "4", "--samples", "4", "--quiet"]
    words += ["--batch", "4", "--correct", "--weights", "4"]
    assert main(["quantize", "--model", ckpt, *words]) == 0
    said = capsys.readouterr().out
    assert "PSNR" in said
    assert (place / "w4a8" / "comparison.png").exists()
    assert not (place / "w4a8.work").exists()
    # It samples by the published command, is evaluated, and its model loads.
    assert (
        main(["sample", "--ckpt", "w4a8", "--name", "w4a8", "-n", "2", "-c", "4", "--quiet"]) == 0
    )
    assert len(list((place / "samples" / "w4a8").glob("*.png"))) == 2
    frozen = tdq.load(place / "w4a8" / "frozen")
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    with torch.no_grad():
        assert torch.equal(open_model(place / "w4a8").model.unet(x, t), frozen(x, t))
    # The folder is this command's own: it may be written again, and nothing else trains into it.
    words += ["--scale", "static", "--budget", "size=0.5,time=0.9"]
    assert main(["quantize", "--model", ckpt, *words]) == 0
    assert "bits  kept" in capsys.readouterr().out
    assert (place / "w4a8/frozen/model.safetensors").stat().st_size <= 0.51 * float_bytes(frozen)
    assert main(["train", "--resume", "w4a8"]) == 1
    assert "never trained" in capsys.readouterr().err


def test_what_quantize_refuses_of_checkpoints(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    ckpt, config = "models/ldm/lsun_churches256/model.ckpt", "configs/compvis.yaml"
    state, *_ = quantized_state(8, 8, True)
    write_lightning(place / "theirs.ckpt", state)
    (place / "prompts.txt").write_text("a cat\n")
    cases = {
        ("--model", ckpt): "without its configuration",
        ("--model", "configs", "--config", config): "nor a run or a checkpoint",
        ("--model", ckpt, "--config", config, "--prompts", "prompts.txt"): "takes no prompts",
        ("--model", "theirs.ckpt", "--config", "configs/lsun_churches-ldm-kl-8.yaml"): (
            "of a quantized model"
        ),
        ("--model", "theirs.ckpt", "--config", config): "0.2458",
    }
    for words, expected in cases.items():
        assert main(["quantize", *words, "--out", "refused", "--quiet"]) == 1
        assert expected in capsys.readouterr().err
    assert not (place / "refused").exists()


def test_without_train_a_trained_run_stays_what_it_is(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    command = words(TRAIN, w_bit=4, a_bit=4)[2:]
    command[command.index("--name") + 1] = "kept"
    command += ["--scheme", "published", "--quiet", "tdquant.calibration_batches=2"]
    assert published_main("train", [*command]) == 0
    folder = place / "logs" / "kept"
    before = {k: v.clone() for k, v in tdq.load(folder / "frozen").state_dict().items()}
    untrained = [w for w in command if w not in ("--train", "True")]
    assert published_main("train", [*untrained]) == 0
    assert "the average of step 2 is frozen" in capsys.readouterr().out
    after = tdq.load(folder / "frozen").state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert (folder / "published.ckpt").exists()
    assert main(["train", "--resume", str(folder), "--train", "False", "--quiet"]) == 0
    after = tdq.load(folder / "frozen").state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_a_folder_of_somebody_else_beside_the_output(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (place / "mine.work").mkdir()
    (place / "mine.work" / "thesis.txt").write_text("precious")
    ckpt = "models/ldm/lsun_churches256/model.ckpt"
    job = ["quantize", "--model", ckpt, "--config", "configs/compvis.yaml"]
    job += ["--out", "mine", "--steps", "2", "--samples", "2", "--quiet"]
    assert main(job) == 1
    assert "mine.work" in capsys.readouterr().err
    assert (place / "mine.work" / "thesis.txt").read_text() == "precious"
    odd = ["--dtype", "bfloat16", "--part", "transformer", "height=8"]
    assert main([*job, *odd]) == 1
    assert "height=, --part transformer, --dtype for a checkpoint" in capsys.readouterr().err


def test_images_of_two_models_are_never_mixed(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    sampling = ["sample", "--ckpt", "copy.ckpt", "--name", "mixed", "-c", "2", "--quiet"]
    state = float_state()
    write_lightning(place / "copy.ckpt", state)
    config = "configs/lsun_churches-ldm-kl-8.yaml"
    assert main([*sampling, "--config", config, "-n", "1"]) == 0
    state = {k: v * 1.01 if k.startswith("model_ema.diffusion") else v for k, v in state.items()}
    write_lightning(place / "copy.ckpt", state)  # another model under the same name
    assert main([*sampling, "--config", config, "-n", "2"]) == 1
    assert "images of other settings" in capsys.readouterr().err


def test_settings_that_fail_leave_the_folder_free(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    sampling = ["sample", "--ckpt", "cats-ldm", "--name", "free", "-n", "1", "--quiet"]
    for bad in (["-c", "1001"], ["-c", "0"], ["--eta", "7"], ["--scheduler", "euler", "-e", "0.5"],
                ["--n_start", "-2"], ["--n_bit_w", "4"]):  # fmt: skip
        assert main([*sampling, *bad]) == 1
        assert not (place / "samples" / "free").exists(), bad
    assert "n_bit_w=4, but the checkpoint has no bits" in capsys.readouterr().err
    assert main([*sampling, "-c", "2", "--n_bit_w", "0", "--n_bit_a", "32"]) == 0


@pytest.mark.parametrize(
    "change",
    [
        "data=null", "data.params.batch_size=abc", "model.params.timesteps=abc",
        "model.params.timesteps=-4", "model.params.linear_start=abc",
        "model.params.given_betas=[a]", "model.params.scale_factor=abc",
        "model.params.unet_config.params.model_channels=abc",
        "model.params.unet_config.params.channel_mult=3",
        "model.params.unet_config.params.num_res_blocks=[1]",
        "model.params.unet_config.params.attention_resolutions=4",
        "model.params.unet_config.params.dropout=2",
        "model.params.unet_config.params.image_size=0",
        "model.params.unet_config.params.in_channels=abc",
        "model.params.first_stage_config.params.ddconfig.ch=33",
        "model.params.first_stage_config.params.ddconfig.ch_mult=abc",
        "model.params.first_stage_config.params.embed_dim=abc",
    ],
)  # fmt: skip
def test_configurations_of_wrong_types(place, monkeypatch, capsys, change):
    monkeypatch.chdir(place)
    config = "configs/lsun_churches-ldm-kl-8.yaml"
    base = ["train", "--base", config, "--name", "typed", "--quiet", change]
    assert main(base) == 1
    said = capsys.readouterr().err
    assert said.startswith("tdquant: ")
    assert "Traceback" not in said
    assert not (place / "logs" / "typed").exists()
