import hashlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import tdquant as tdq
from tdquant.cli import main
from tdquant.errors import ModelError, StorageError
from tdquant.freezing import is_frozen
from tdquant.lab.opening import open_model
from tdquant.lab.run_folder import RunFolder
from tdquant.lab.runs import pictures, sample_pictures
from tdquant.lab.runs.pictures import claim_folder
from tdquant.layers.correction import correction_of
from tests.lab.runs.tiny import CONFIG, workspace
from tests.models.compvis.examples import checkpoint, published, read, weights, write

ROOT = Path(__file__).parents[3]
SCHEDULE = ("betas", "alphas_cumprod")
pytestmark = pytest.mark.filterwarnings("ignore:.*model_ema")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return workspace(tmp_path_factory.mktemp("workspace"))


def train(place, logs, *more):
    return main(
        ["train", "--base", str(place / "config.yaml"), "--ckpt", str(place / "model.safetensors")]
        + ["--train", "True", "--scale_lr", "False", "--n_bit_w", "4", "--n_bit_a", "4"]
        + ["--name", "run", "--use_dynamic", "--logdir", str(logs), "--quiet", *more]
    )


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    assert train(place, logs) == 0
    return logs / "run"


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.png")}


def test_the_published_training_command_leaves_a_frozen_run(trained):
    folder = RunFolder(trained)
    assert is_frozen(tdq.load(folder.frozen))
    assert folder.checkpoints.latest().step == 4
    recipe = folder.asked()["recipe"]
    assert (recipe["weights"], recipe["activations"], recipe["scale"]) == (4, 4, "temporal")
    assert folder.asked()["rate"] == 1e-4
    assert [json.loads(line)["step"] for line in (trained / "log.jsonl").open()] == [4]


def test_without_use_dynamic_scales_are_static(place, tmp_path):
    arguments = ["train", "--base", str(place / "config.yaml"), "--logdir", str(tmp_path)]
    arguments += ["--ckpt", str(place / "model.safetensors"), "--name", "s", "--quiet"]
    assert main([*arguments, "--train", "False"]) == 0
    asked = RunFolder(tmp_path / "s").asked()
    assert asked["recipe"]["scale"] == "static"
    assert asked["rate"] == pytest.approx(1e-4 * 4)  # scale_lr: times the batch
    kinds = {q.scale.static for q in _quantizers(tdq.load(tmp_path / "s" / "frozen"))}
    assert kinds == {True}


def _quantizers(model):
    from tdquant.quantizers import activation_quantizers

    return [q for _, q in activation_quantizers(model)]


def test_more_steps_go_on_and_other_arguments_are_refused(place, tmp_path, capsys):
    assert train(place, tmp_path) == 0
    assert train(place, tmp_path, "--max_steps", "6") == 0
    assert "going on" in capsys.readouterr().out
    assert RunFolder(tmp_path / "run").checkpoints.latest().step == 6
    assert train(place, tmp_path, "--scale", "static") == 1
    assert "recipe" in capsys.readouterr().err
    # The folder alone is enough to go on.
    assert main(["train", "--resume", str(tmp_path / "run"), "--max_steps", "7", "--quiet"]) == 0
    assert RunFolder(tmp_path / "run").checkpoints.latest().step == 7


def test_a_run_whose_layers_were_split_goes_on(place, tmp_path):
    wide = ("data.params.batch_size=8", "--max_steps")
    assert train(place, tmp_path, *wide, "2") == 0
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoints.latest().state["structure"]["structures"]
    assert train(place, tmp_path, *wide, "3") == 0
    assert folder.checkpoints.latest().step == 3
    assert is_frozen(open_model(tmp_path / "run").model.unet)


def test_correcting_at_the_end_or_later(place, tmp_path):
    frozen = RunFolder(tmp_path / "run").frozen
    assert train(place, tmp_path, "--max_steps", "2", "--correct", "2") == 0
    assert correction_of(tdq.load(frozen)) is not None
    assert main(["train", "--resume", str(tmp_path / "run"), "--correct", "0", "--quiet"]) == 0
    assert correction_of(tdq.load(frozen)) is None


def test_nothing_to_correct_against(place, trained, tmp_path, capsys):
    base = ["train", "--base", str(place / "config.yaml"), "--logdir", str(tmp_path), "--quiet"]
    assert main([*base, "--name", "new", "--correct"]) == 1
    assert "no float model to correct against" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_going_on_ends_like_one_run(place, trained, tmp_path):
    assert train(place, tmp_path, "--max_steps", "2") == 0
    assert train(place, tmp_path) == 0
    ends = [RunFolder(p).checkpoints.latest() for p in (trained, tmp_path / "run")]
    a, b = (end.tensors("average") for end in ends)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_samples_from_frozen_checkpoint_or_step(trained):
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([3, 700])
    from_run = open_model(trained).model
    step = _last(trained)
    live = open_model(step).model
    raw = open_model(step, ema=False).model
    assert is_frozen(from_run.unet)
    with torch.no_grad():
        assert torch.equal(from_run.unet(x, t), live.unet(x, t))
        assert not torch.equal(raw.unet(x, t), live.unet(x, t))
    assert from_run.scale_factor == live.scale_factor
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(from_run.encode(image), live.encode(image))


def test_samples_are_exactly_as_many_and_the_same_however_split(trained, tmp_path):
    pipe = open_model(trained).model
    common = {"steps": 5, "batch": 3, "seed": 1, "progress": False}
    assert sample_pictures(pipe, tmp_path / "a", 7, **common) == 7
    whole = digests(tmp_path / "a")
    assert sorted(whole) == [f"{i:06d}.png" for i in range(7)]
    # Interrupted and gone on with.
    for name in ("000001.png", "000004.png", "000005.png"):
        (tmp_path / "a" / name).unlink()
    assert sample_pictures(pipe, tmp_path / "a", 7, **common) == 3
    assert digests(tmp_path / "a") == whole
    assert sample_pictures(pipe, tmp_path / "a", 7, **common) == 0
    # Two processes.
    for rank in (0, 1):
        sample_pictures(pipe, tmp_path / "b", 7, rank=rank, world=2, **common)
    assert digests(tmp_path / "b") == whole


def test_a_folder_of_other_settings_is_refused(trained, tmp_path):
    pipe = open_model(trained).model
    sample_pictures(pipe, tmp_path, 1, steps=2, progress=False)
    with pytest.raises(StorageError, match="steps: 2, now 3"):
        sample_pictures(pipe, tmp_path, 1, steps=3, progress=False)


def test_a_failure_before_the_first_image_leaves_nothing(tmp_path, monkeypatch):
    pipe = open_model("tiny").model
    monkeypatch.setattr(pictures, "to_uint8", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample_pictures(pipe, tmp_path / "new", 1, steps=1, progress=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("where", ["weight", "output"])
def test_samples_that_are_not_finite_are_named_and_not_written(tmp_path, where):
    pipe = open_model("tiny").model
    path, layer = next((n, m) for n, m in pipe.unet.named_modules() if n.endswith("conv2"))
    if where == "weight":
        torch.nn.init.constant_(layer.weight[:1], float("nan"))
        said = f"parameters are not finite: {path}.weight"
    else:
        layer.register_forward_hook(lambda module, args, y: y * float("inf"))
        said = f"{path} gave them first"
    with pytest.raises(ModelError, match=f"2 of 2 samples are NaN or infinite(.|\n)*{said}"):
        sample_pictures(pipe, tmp_path / "new", 2, steps=1, progress=False)
    assert not (tmp_path / "new").exists()


def test_a_failure_leaves_the_settings_of_a_process_that_shares_the_folder(tmp_path, monkeypatch):
    pipe = open_model("tiny").model
    sample_pictures(pipe, tmp_path / "a", 1, steps=1, progress=False)
    settings = (tmp_path / "a" / "samples.json").read_text()

    def fail(images):  # while the other process has claimed the folder, but written no image yet
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "samples.json").write_text(settings)
        raise MemoryError

    monkeypatch.setattr(pictures, "to_uint8", fail)
    with pytest.raises(MemoryError):
        sample_pictures(pipe, tmp_path / "b", 1, steps=1, progress=False)
    assert (tmp_path / "b" / "samples.json").read_text() == settings


def test_of_two_that_claim_a_folder_at_once_one_wins(tmp_path, monkeypatch):
    free = pictures.is_claimed
    claim_folder(tmp_path / "folder", {"seed": 1})
    seen = iter([False])  # the second looked before the first wrote
    monkeypatch.setattr(
        pictures, "is_claimed", lambda *a: False if next(seen, None) is False else free(*a)
    )
    with pytest.raises(StorageError, match="seed: 1, now 2"):
        claim_folder(tmp_path / "folder", {"seed": 2})
    assert json.loads((tmp_path / "folder" / "samples.json").read_text()) == {"seed": 1}
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["samples.json"]
    claim_folder(tmp_path / "folder", {"seed": 1})


def test_what_a_killed_process_left_of_its_claim_is_removed(tmp_path):
    claim_folder(tmp_path, {"seed": 1})
    left = tmp_path / ".samples.json.tdquant-0"
    left.mkdir()
    (left / "lock").touch()
    (left / "new").write_text("{}")
    claim_folder(tmp_path, {"seed": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["samples.json"]


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def link(*args):
        raise PermissionError

    monkeypatch.setattr(os, "link", link)
    claim_folder(tmp_path / "folder", {"seed": 1})
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["samples.json"]


@pytest.mark.parametrize("steps", ["1", "7"])
def test_the_published_sampling_command(place, trained, tmp_path, steps):
    arguments = ["sample", "--ckpt", str(trained), "--config", str(place / "config.yaml")]
    arguments += ["--logdir", str(tmp_path), "--n_samples", "3", "--custom_steps", steps]
    arguments += ["--gpus", "0", "--batch_size", "100", "--name", "test", "--quiet"]
    assert main(arguments) == 0
    assert len(digests(tmp_path / "test")) == 3


def test_sampling_a_float_checkpoint_file(place, tmp_path):
    state = {k: v for k, v in read(place / "model.safetensors").items() if k not in SCHEDULE}
    file = write(tmp_path / "model.safetensors", state)
    arguments = ["sample", "--ckpt", str(file), "--logdir", str(tmp_path), "-n", "2", "--quiet"]
    assert main([*arguments, "-c", "3"]) == 1  # no configuration
    arguments += ["--config", str(place / "config.yaml"), "model.params.timesteps=20"]
    for name, steps in (("some", ["-c", "3"]), ("all", ["-c", "20"]), ("each", ["--vanilla"])):
        assert main([*arguments, "--name", name, *steps]) == 0
        assert len(digests(tmp_path / name)) == 2
    assert main([*arguments, "-c", "21", "--name", "more"]) == 1


def test_the_bits_are_checked_and_unknown_words_refused(trained, tmp_path, capsys):
    arguments = ["sample", "--ckpt", str(trained), "--logdir", str(tmp_path), "--quiet"]
    assert main([*arguments, "--n_bit_w", "8"]) == 1
    assert "n_bit_w=8" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--custom_step", "3"])


@pytest.mark.slow
def test_two_processes_sample_together(trained, tmp_path):
    command = [sys.executable, str(ROOT / "sample.py"), "--ckpt", str(trained), "--quiet"]
    command += ["--logdir", str(tmp_path), "-n", "5", "-c", "3", "-b", "2", "--threads", "1"]
    subprocess.run([*command, "--gpus", "0,1", "--name", "two"], check=True, capture_output=True)
    subprocess.run([*command, "--gpus", "0", "--name", "one"], check=True, capture_output=True)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert len(digests(tmp_path / "one")) == 5


@pytest.mark.parametrize(
    ("source", "error", "word"),
    [("nothing.ckpt", StorageError, "no such model"), (".", StorageError, "nor a run")],
)
def test_what_is_no_model_says_so(tmp_path, monkeypatch, source, error, word):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=word):
        open_model(source)


def test_every_timestep_is_ddpm(tmp_path, capsys):
    arguments = ["sample", "--model", "tiny", "--logdir", str(tmp_path), "-n", "1", "--quiet"]
    assert main([*arguments, "-v", "--scheduler", "euler"]) == 1
    assert "--vanilla with --scheduler euler" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_our_flags_and_the_published_ones_sample_alike(tmp_path):
    ours = ["--out", str(tmp_path / "a"), "--images", "2", "--steps", "2", "--batch", "2"]
    theirs = ["--logdir", str(tmp_path), "--name", "b", "--n_samples", "2", "--custom_steps", "2"]
    for flags in (ours, [*theirs, "--batch_size", "2"]):
        assert main(["sample", "--model", "tiny", "--quiet", *flags]) == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_run_is_exported_inspected_and_sampled_from_its_frozen_folder(trained, tmp_path, capsys):
    out = tmp_path / "model.xml"
    assert main(["export", "--model", str(trained), "--out", str(out), "--quiet"]) == 0
    session, frozen = tdq.open_session(out), open_model(trained).frozen()
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([3, 700])
    with torch.no_grad():
        exact = frozen(x, t)
    assert (session(x, t) - exact).abs().mean() <= 1e-2 * exact.abs().max()
    words = ["-n", "1", "--steps", "2", "--quiet"]
    for name, source in (("run", trained), ("saved", trained / "frozen")):
        more = ["--model", str(source), "--out", str(tmp_path / name)]
        assert main(["sample", *more, *words]) == 0
    assert digests(tmp_path / "run") == digests(tmp_path / "saved")
    for source, said in (("tiny", "an embedded model"), (trained, "a training run")):
        capsys.readouterr()
        assert main(["inspect", str(source)]) == 0
        assert said in capsys.readouterr().out
    for source, said in ((out, "an exported file is not taken"), ("a/b", "a pipeline on the hub")):
        assert main(["inspect", str(source)]) == 1
        assert said in capsys.readouterr().err


def test_what_commands_refuse_of_models_that_they_cannot_use(place, tmp_path, capsys):
    (tmp_path / "model.xml").touch()
    file = str(tmp_path / "model.xml")
    float_file = [str(place / "model.safetensors"), "--config", str(place / "config.yaml")]
    for words, said in (
        (["bench", "--model", file], "in --backends"),
        (["bench", "--model", *float_file], "the model is not quantized"),
        (
            ["export", "--model", "tiny", "--out", f"{tmp_path}/m.xml"],
            "the model is not quantized",
        ),
        (["export", "--model", file, "--out", f"{tmp_path}/m.xml"], "exported from"),
        (["quantize", "--model", "tiny", "--out", f"{tmp_path}/m"], "no configuration to save"),
        (["quantize", "--model", file, "--out", f"{tmp_path}/m"], "the float model"),
        (["sample", "--model", file, "--out", f"{tmp_path}/m"], "exported from"),
        (["evaluate", file, "--out", f"{tmp_path}/m"], "exported from"),
    ):
        assert main(words) == 1
        assert said in capsys.readouterr().err, words
    assert [path.name for path in tmp_path.iterdir()] == ["model.xml"]


def test_embedded_models_sample_by_name(tmp_path):
    arguments = ["sample", "--model", "tiny", "--logdir", str(tmp_path), "-n", "2", "-c", "2"]
    assert main([*arguments, "--quiet"]) == 0
    assert main([*arguments, "--scheduler", "euler", "--name", "e", "--quiet"]) == 0
    assert main([*arguments, "--scheduler", "none", "--name", "n", "--quiet"]) == 1
    assert len(digests(tmp_path / "e")) == 2


def test_no_images_asked_for(tmp_path):
    arguments = ["sample", "--model", "tiny", "--logdir", str(tmp_path), "-n", "0", "--quiet"]
    assert main(arguments) == 1


def test_mistakes_in_the_configuration_are_listed_at_once(place, tmp_path, capsys):
    more = ["model.params.unet_config.params.chanel_mult=[1]", "tdquant.stepps=3"]
    assert train(place, tmp_path, *more) == 1
    error = capsys.readouterr().err
    assert "nearest: channel_mult" in error
    assert "nearest: steps" in error


def test_missing_data_and_configuration(place, tmp_path, capsys):
    assert train(place, tmp_path, "data.params.train.params.root=/nowhere") == 1
    assert "/nowhere" in capsys.readouterr().err
    assert main(["train", "--quiet"]) == 1
    assert "--base" in capsys.readouterr().err


def test_a_float_run_is_a_start_for_a_quantized_one(place, tmp_path, capsys):
    base = ["train", "--base", str(place / "config.yaml"), "--logdir", str(tmp_path), "--quiet"]
    start = ["--ckpt", str(place / "model.safetensors"), "--n_bit_w", "0", "--n_bit_a", "32"]
    assert main([*base, *start, "--name", "float"]) == 0
    assert not (tmp_path / "float" / "frozen").exists()
    assert main([*base, "--ckpt", str(tmp_path / "float"), "--name", "w8"]) == 0
    assert is_frozen(open_model(tmp_path / "w8").model.unet)
    other = "model.params.unet_config.params.num_heads=1"
    assert main([*base, "--ckpt", str(tmp_path / "float"), "--name", "w", other]) == 1
    assert "another model" in capsys.readouterr().err


def test_a_float_run_is_quantized_without_training(place, tmp_path):
    base = ["train", "--base", str(place / "config.yaml"), "--logdir", str(tmp_path), "--quiet"]
    start = ["--ckpt", str(place / "model.safetensors"), "--weights", "0", "--activations", "0"]
    assert main([*base, *start, "--name", "float"]) == 0
    words = ["--steps", "2", "--samples", "2", "--pictures", "1", "--scale", "static", "--quiet"]
    out = tmp_path / "w4a8"
    assert main(["quantize", "--model", str(tmp_path / "float"), "--out", str(out), *words]) == 0
    assert is_frozen(open_model(out).model.unet)
    assert open_model(out).model.scale_factor == open_model(tmp_path / "float").model.scale_factor


def test_a_published_quantized_checkpoint_trains_on(place, tmp_path):
    params = CONFIG["model"]["params"]["unet_config"]["params"]
    state = published(weights(params), params)
    source = read(place / "model.safetensors") | checkpoint(state)
    file = write(tmp_path / "theirs.ckpt", source)
    base = ["train", "--base", str(place / "config.yaml"), "--ckpt", str(file), "--quiet"]
    base += ["--logdir", str(tmp_path), "--name", "t"]
    assert main([*base, "--max_steps", "2"]) == 0
    assert main([*base, "--max_steps", "4"]) == 0
    run = tmp_path / "t"
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([3, 700])
    with torch.no_grad():
        frozen, live = (open_model(p).model.unet(x, t) for p in (run, _last(run)))
    assert torch.allclose(frozen, live, rtol=1e-4, atol=1e-5)


def _last(run):
    return sorted((run / "checkpoints").iterdir())[-1]


@pytest.mark.slow
def test_two_processes_train_one_run(place, tmp_path):
    command = [sys.executable, str(ROOT / "main.py"), "--base", str(place / "config.yaml")]
    command += ["--ckpt", str(place / "model.safetensors"), "--scale_lr", "False", "--quiet"]
    command += ["--logdir", str(tmp_path), "--threads", "1", "--max_steps", "2"]
    command += ["--train", "True"]
    two = [*command, "--name", "two", "--gpus", "0,1", "data.params.batch_size=2"]
    one = [*command, "--name", "one", "tdquant.accumulate=2", "data.params.batch_size=2"]
    for words in (two, one):
        subprocess.run(words, check=True, capture_output=True, timeout=240)
    a, b = (
        RunFolder(tmp_path / n).checkpoints.latest().tensors("average") for n in ("two", "one")
    )
    assert all(torch.equal(a[k], b[k]) for k in a)
    # The whole batch is what counts, not how many share it.
    assert RunFolder(tmp_path / "two").asked()["batch"] == 4


def test_another_whole_batch_is_refused(place, tmp_path, capsys):
    assert train(place, tmp_path, "--max_steps", "2") == 0
    assert train(place, tmp_path, "data.params.batch_size=2") == 1
    assert "batch: 4, now 2" in capsys.readouterr().err


def test_a_quantized_run_is_no_start(place, trained, tmp_path, capsys):
    base = ["train", "--base", str(place / "config.yaml"), "--logdir", str(tmp_path), "--quiet"]
    assert main([*base, "--ckpt", str(trained), "--name", "again"]) == 1
    assert "quantized already" in capsys.readouterr().err


def test_resuming_takes_no_other_flags(trained, capsys):
    assert main(["train", "--resume", str(trained), "--scale", "static", "a.b=3"]) == 1
    assert "--scale, a.b=3" in capsys.readouterr().err
    assert main(["train", "--resume", str(trained), "--n_bit_w", "4", "--use_dynamic"]) == 1
    assert "--n_bit_w, --use_dynamic" in capsys.readouterr().err
    assert main(["train", "--resume", str(trained / "last.ckpt")]) == 1
    assert "the index of a run is missing" in capsys.readouterr().err


def test_fresh_weights_depend_on_the_seed_alone(place, tmp_path):
    base = ["train", "--base", str(place / "config.yaml"), "--logdir", str(tmp_path), "--quiet"]
    for name in ("a", "b"):
        arguments = [*base, "--n_bit_w", "0", "--n_bit_a", "0", "--max_steps", "1", "--name", name]
        assert main(arguments) == 0
    a, b = (RunFolder(tmp_path / n).checkpoints.latest().tensors("model") for n in ("a", "b"))
    assert all(torch.equal(a[k], b[k]) for k in a)
