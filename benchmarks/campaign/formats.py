"""Every format that tdquant reads: a small good folder of it, and its readers."""

import hashlib
import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tests.files.checkpoints.lightning import write_lightning
from tests.files.checkpoints.test_unpickling import Calls
from tests.lab.evaluation.small import Random
from tests.lab.report.made_up import study, write_run
from tests.lab.runs.tiny import workspace

import tdquant as tdq
from tdquant.calls.shards import read_shards, write_shards
from tdquant.files.digests import hash_tensors
from tdquant.files.job_folder import open_job
from tdquant.lab.data.folder import folder as image_folder
from tdquant.lab.evaluation import evaluate_images
from tdquant.lab.evaluation.references import read_statistics
from tdquant.lab.jobs.folders import check_out, write_mark
from tdquant.lab.opening import open_model
from tdquant.models import load_compvis, load_embedded
from tdquant.storage import inspect_saved
from tdquant.training.checkpoints import Checkpoints, read_checkpoint


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        make: Writes a good folder.
        read: Reads it, may write into a second folder, and returns a digest of what it found.
        sealed: Whether digests in it show every change of its content.
    """

    make: Callable[[Path], object]
    read: Callable[[Path, Path], str]
    sealed: bool = False


def digest(*found):
    """A digest of texts and of dictionaries of tensors."""
    together = hashlib.sha256()
    for part in found:
        if isinstance(part, dict):
            together.update(hash_tensors(part).digest())
        else:
            together.update(str(part).encode("utf-8", "surrogatepass"))
    return together.hexdigest()[:16]


def frozen_tiny(**recipe):
    pipe = load_embedded("tiny")
    model = tdq.quantize(pipe.unet, tdq.Recipe(4, 8, **recipe, remedies=()))
    rng = torch.Generator().manual_seed(0)
    batches = [(torch.randn(2, 3, 16, 16, generator=rng), t) for t in range(0, 999, 200)]
    return tdq.freeze(tdq.calibrate(model, batches, progress=False))


def save(folder):
    tdq.save(frozen_tiny(scale="temporal"), folder / "model")


def load(folder, out):
    model = tdq.load(folder / "model")
    inspect_saved(folder / "model")
    return digest(model.state_dict())


def save_diffusers(folder):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16),
                       layers_per_block=1, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                       up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=4,
                       attention_head_dim=8)  # fmt: skip
    tdq.quantize(unet, tdq.Recipe(4, 8, remedies=()))
    batches = [(torch.randn(2, 3, 8, 8), t) for t in range(0, 999, 200)]
    frozen = tdq.freeze(tdq.calibrate(unet, batches, progress=False))
    frozen.save_pretrained(folder / "unet", max_shard_size="20KB")


def load_diffusers(folder, out):
    return digest(tdq.load(folder / "unet").state_dict(), inspect_saved(folder / "unet"))


def record_calls(folder):
    runs = [{"sample": torch.randn(2, 3, 4, 4), "timestep": t, "added": {"x": [torch.ones(2)]}}
            for t in (1, 500, 900)]  # fmt: skip
    batches = [{"unet": [call], "second": [call]} for call in runs]
    write_shards(folder / "calls", batches, ["unet", "second"], {"steps": 3})


def read_calls(folder, out):
    found = read_shards(folder / "calls")
    return digest(found.made_by, *(str(list(found[name])) for name in found.names))


def write_evaluation(folder):
    write_run(folder / "run", pictures=3)
    (folder / "study.json").write_text(json.dumps(study()))


def report(folder, out):
    tdq.report([folder], out / "report.html")
    return digest((out / "report.html").read_text("utf-8"))


def write_job(folder):
    with open_job(folder / "job", "campaign", {"seed": 1}) as job:
        job.write("part", {"x": torch.arange(9.0)}, {"error": 0.5})
        job.claim("mine").write_text("x")


def read_job(folder, out):
    with open_job(folder / "job", "campaign", {"seed": 1}) as job:
        part = job.read("part")
        found = digest(job.index.names, part.facts if part else None, part.tensors if part else {})
        job.remove()
    return found


def write_output(folder):
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    write_mark(folder)


def check_output(folder, out):
    check_out(folder, "tiny")
    return "taken"


def train(folder):
    from tdquant.cli import main

    place = workspace(folder / "place")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        words = ["--base", place / "config.yaml", "--model", place / "model.safetensors"]
        words += ["--out", folder / "run", "--weights", 4, "--activations", 4, "--quiet"]
        assert main(["train", *map(str, words)]) == 0


def open_run(folder, out):
    finished = open_model(folder / "run").model.unet.state_dict()
    again = open_model(folder / "run", ema=False).model.unet.state_dict()
    return digest(finished, again)


def training_checkpoint(folder):
    state = {"x": torch.arange(12.0)}
    Checkpoints(folder).save(5, {"model": state, "average": state, "optimizer": state}, {"s": 1})


def resume(folder, out):
    place = folder / "step-00000005"
    found = read_checkpoint(place)
    return digest(found.step, found.state, found.tensors("model"), found.tensors("optimizer"))


def write_checkpoints(folder, kind):
    place = workspace(folder / "made")
    (place / "config.yaml").rename(folder / "config.yaml")
    state = load_state(place / "model.safetensors")
    if kind == "safetensors":
        (place / "model.safetensors").rename(folder / "model.safetensors")
    elif kind == "ckpt":
        write_lightning(folder / "model.ckpt", state)
    elif kind == "members":
        write_lightning(folder / "model.ckpt", state)
        unpacked(folder / "model.ckpt")
    else:
        attack = Calls(exec, "open('ran', 'w').write('x')")
        torch.save({"state_dict": state, "callbacks": attack}, folder / "model.ckpt",
                   _use_new_zipfile_serialization=False)  # fmt: skip
        (folder / "bare.pt").write_bytes(pickle.dumps(attack))
    for file in sorted(place.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    place.rmdir()


def load_state(file):
    from safetensors.torch import load_file

    return load_file(file)


def unpacked(file):
    """Takes a zip archive's members apart, so that they are damaged one by one."""
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            (file.parent / "members" / name).parent.mkdir(parents=True, exist_ok=True)
            (file.parent / "members" / name).write_bytes(archive.read(name))
    file.unlink()


def packed(folder):
    """Puts an archive together again; what is no plain file is left out."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for member in sorted((folder / "members").rglob("*")):
            if (
                member.is_file()
                and not member.is_symlink()
                and os.access(member, os.R_OK, effective_ids=True)
            ):
                archive.writestr(
                    member.relative_to(folder / "members").as_posix(), member.read_bytes()
                )
    (folder / "model.ckpt").write_bytes(content.getvalue())


def load_checkpoint(folder, out):
    if (folder / "members").is_dir():
        packed(folder)
    config, found = folder / "config.yaml", []
    for file in sorted(folder.glob("*.*")):
        if file.suffix in (".safetensors", ".ckpt"):
            pipe = load_compvis(config, file, quiet=True)
            found += [pipe.unet.state_dict(), pipe.vae.state_dict(), pipe.scale_factor]
    if not found:
        pipe = load_compvis(config, folder / "model.ckpt", quiet=True)
    return digest(*found)


def export(folder, suffix):
    frozen = frozen_tiny(scale="temporal")
    example = torch.zeros(1, 3, 16, 16), torch.tensor([5])
    tdq.export(frozen, folder / f"model{suffix}", example=example)


def run_session(folder, out, suffix):
    session = tdq.open_session(folder / f"model{suffix}", threads=1)
    x = torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)
    return digest({"y": session(x, torch.tensor([300]))}, session.about["digest"])


def draw_pictures(folder):
    draw = np.random.default_rng(0)
    (folder / "more").mkdir()
    for i in range(20):
        pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.{('png', 'jpg', 'webp', 'bmp')[i % 4]}")
    (folder / "0.png").rename(folder / "more" / "0.png")
    mean, covariance = np.zeros(6), np.eye(6)
    np.savez(folder / "statistics.npz", mu=mean, sigma=covariance)
    (folder / "prompts.txt").write_text("a cat\na dog\n")


def judge_pictures(folder, out):
    from tdquant.calls.prompts import read_prompts

    network = Random()
    statistics = read_statistics(folder / "statistics.npz", network)
    words = read_prompts(folder / "prompts.txt")
    images = image_folder(folder, 16, progress=False)
    record = evaluate_images(folder, out / "run", reference=None, network=network,
                             metrics=["is"], resamples=2, progress=False)  # fmt: skip
    pixels = torch.stack([images[i] for i in range(len(images))])
    return digest(statistics.mean, words, {"x": pixels}, record.metrics)


def export_pipe(folder):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8,),
                       layers_per_block=1, down_block_types=("DownBlock2D",),
                       up_block_types=("UpBlock2D",), norm_num_groups=4)  # fmt: skip
    tdq.quantize(unet, tdq.Recipe(8, 8, remedies=()))
    batches = [(torch.randn(2, 3, 8, 8), t) for t in range(0, 999, 200)]
    unet = tdq.freeze(tdq.calibrate(unet, batches, progress=False))
    pipe = DDPMPipeline(unet, DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    tdq.export_pipeline(pipe, folder / "pipe")


def open_pipe(folder, out):
    pipe = tdq.open_pipeline(folder / "pipe", threads=1)
    x = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)
    return digest({"y": pipe.unet(x, torch.tensor([300])).sample}, pipe.scheduler.config)


FORMATS = {
    "saved model": Format(save, load, sealed=True),
    "diffusers folder": Format(save_diffusers, load_diffusers),
    "recorded calls": Format(record_calls, read_calls),
    "evaluation and study": Format(write_evaluation, report),
    "job folder": Format(write_job, read_job),
    "job output": Format(write_output, check_output),
    "training run": Format(train, open_run),
    "training checkpoint": Format(training_checkpoint, resume, sealed=True),
    "safetensors of others": Format(
        partial(write_checkpoints, kind="safetensors"), load_checkpoint
    ),
    "ckpt of others": Format(partial(write_checkpoints, kind="ckpt"), load_checkpoint),
    "hostile ckpt": Format(partial(write_checkpoints, kind="hostile"), load_checkpoint),
    "members of a ckpt": Format(partial(write_checkpoints, kind="members"), load_checkpoint),
    "OpenVINO": Format(partial(export, suffix=".xml"), partial(run_session, suffix=".xml"), True),
    "ONNX": Format(partial(export, suffix=".onnx"), partial(run_session, suffix=".onnx"), True),
    "exported pipeline": Format(export_pipe, open_pipe),
    "pictures": Format(draw_pictures, judge_pictures),
}
