import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import types
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

import tdquant as tdq
from tdquant.errors import DataError, ModelError, StorageError
from tdquant.lab.evaluation import (
    EvaluationConfig,
    Record,
    evaluate,
    evaluate_images,
    incomparable,
)
from tdquant.lab.evaluation.folder import check_out
from tdquant.lab.evaluation.image_files import read_pictures
from tdquant.lab.evaluation.pairing import paired_metrics
from tdquant.lab.metrics import clip_score
from tdquant.models import load_embedded
from tests.clip import save_clip
from tests.conftest import THREADS
from tests.lab.evaluation import small
from tests.training.test_distributed import free_port

ROOT = Path(__file__).parents[3]


def pictures(out):
    files = sorted((out / "images").glob("*.png"))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def numbers(record):
    return {**record.metrics, **record.paired["metrics"]}, record.sqnr


def test_what_a_run_leaves(whole):
    out, record = whole
    assert len(pictures(out)) == 12
    assert {p.name for p in out.iterdir()} == {
        "images", "features", "grid.png", "layers.json", "record.json",
    }  # fmt: skip
    assert Record.read(out) == record
    assert record.model["bits"] == "W4A4"
    assert record.paired["against"]["bits"] == "float"
    assert record.model["history"][0]["step"] == "calibrate"
    assert list(record.metrics) == ["frechet", "kid", "precision", "recall"]
    for measured in (*record.metrics.values(), *record.paired["metrics"].values()):
        assert measured["low"] <= measured["value"] <= measured["high"]
    assert record.metrics["frechet"]["images"] == 12
    assert record.paired["metrics"]["mse"]["images"] == 6
    assert record.cost["images_per_second"] > 0
    assert record.cost["seconds"] > record.cost["sampling_seconds"] > 0
    assert record.cost["resumed"] is False
    assert record.sqnr["times"] == [0.0, 500.0]
    assert record.sampling["device"] == "cpu"
    assert "device" not in record.machine  # which would be the name of a GPU


def test_a_finished_run_is_not_done_again(whole, monkeypatch):
    out, record = whole
    monkeypatch.setattr(import_module("tdquant.lab.evaluation.run"), "_sample", None)
    assert small.run(out) == record


def test_options_come_by_keyword_or_in_a_config(whole, monkeypatch):
    out, record = whole
    monkeypatch.setattr(import_module("tdquant.lab.evaluation.run"), "_sample", None)
    names = ("batch", "paired", "resamples", "backend", "device", "progress")
    config = EvaluationConfig(**{name: small.OPTIONS[name] for name in names})
    options = {
        "images": 12, "steps": 2, "network": small.Random(), "reference": small.reference(),
        "against": load_embedded("tiny"), "config": config,
    }  # fmt: skip
    assert evaluate(small.pipe(), out, **options) == record
    with pytest.raises(StorageError, match="batch: 4, now 6"):
        evaluate(small.pipe(), out, batch=6, **options)
    with pytest.raises(TypeError, match="bacth"):
        evaluate(small.pipe(), out, bacth=4)
    with pytest.raises(TypeError, match="eta"):
        evaluate_images(out / "images", out, eta=0.5)


def test_a_run_can_be_watched_while_its_reference_set_is_measured(tmp_path):
    class Watched(small.Random):
        def run(self, images):
            with pytest.raises(StorageError, match="still being written") as caught:
                Record.read(self.watched)
            told.append(str(caught.value))
            return super().run(images)

    options = {"metrics": ["frechet"], "resamples": 0, "reference": small.reference()}
    for seed, name in ((5, "run"), (6, "given")):
        told, network = [], Watched(seed)
        network.watched = tmp_path / name
        if name == "run":
            small.run(tmp_path / name, network=network, images=8, against=None, **options)
        else:
            images = tmp_path / "run" / "images"
            evaluate_images(images, tmp_path / name, network=network, progress=False, **options)
        assert "features of the reference set: 0 of 16" in told[0]
        assert not (tmp_path / name / "progress.json").exists()


def test_other_judges_take_the_same_images(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    before = pictures(whole[0])
    record = small.run(tmp_path / "run", metrics=["frechet", "is"], images=20, paired=3)
    after = pictures(tmp_path / "run")
    assert {name: after[name] for name in before} == before
    assert len(after) == 20
    assert list(record.metrics) == ["frechet", "is"]
    assert record.cost["sampling_seconds"] > whole[1].cost["sampling_seconds"]
    assert Record.read(tmp_path / "run" / "record.previous.json") == whole[1]


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"steps": 3}, {"batch": 6}, {"backend": "reference"}]
)
def test_images_of_other_settings_are_refused(whole, tmp_path, changes):
    shutil.copytree(whole[0], tmp_path / "run")
    with pytest.raises(StorageError, match="other settings"):
        small.run(tmp_path / "run", **changes)
    assert pictures(tmp_path / "run") == pictures(whole[0])
    assert Record.read(tmp_path / "run") == whole[1]  # which is as good as before


def test_images_go_on_in_the_batches_they_were_made_in(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    record = small.run(tmp_path / "run", images=20, batch=None)
    assert record.sampling["batch"] == 4
    assert len(pictures(tmp_path / "run")) == 20


def test_fewer_images_than_a_batch_go_on_in_the_batch_that_was_asked_for(tmp_path):
    out = tmp_path / "run"
    options = {"batch": 8, "against": None, "metrics": ["frechet"], "resamples": 0}
    few = small.run(out, images=6, **options)
    before = pictures(out)
    more = small.run(out, images=12, **options)
    after = pictures(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == 12
    fewer = small.run(out, images=5, **options | {"batch": None})
    assert [r.sampling["batch"] for r in (few, more, fewer)] == [8, 8, 8]
    assert pictures(out) == after
    assert json.loads((out / "images" / "samples.json").read_text())["batch"] == 8


def test_speed_is_that_of_the_images_that_were_made(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    before = whole[1].cost
    fewer = small.run(tmp_path / "run", images=8, paired=3).cost
    assert fewer["images_per_second"] == pytest.approx(before["images_per_second"], rel=1e-2)
    assert fewer["sampling_seconds"] == pytest.approx(
        before["sampling_seconds"] * 8 / 12, abs=1e-2
    )


def test_resizing_is_of_images_and_reference_alike(tmp_path):
    options = {"against": None, "metrics": ["frechet"], "resamples": 0, "images": 8}
    record = small.run(tmp_path / "a", load_embedded("tiny"), backend="auto", resize=8, **options)
    assert record.sampling["size"] == [8, 8]
    assert "resized" in record.sampling["preprocessing"]
    assert record.reference["preprocessing"] == record.sampling["preprocessing"]
    with pytest.raises(DataError, match=r"reference images of 32x32 .*(?s:.)*drawn in any size"):
        small.run(tmp_path / "b", load_embedded("tiny"), backend="auto",
                  **options | {"reference": "cats-heldout"})  # fmt: skip
    assert not list((tmp_path / "b").rglob("*.png"))


def test_images_of_another_model_are_refused(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    with pytest.raises(StorageError, match="model: "):
        small.run(tmp_path / "run", load_embedded("tiny"), backend="auto")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="something else"):
        small.run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_newer_record_stays(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "given").mkdir()
    newer = json.dumps(whole[1].to_dict() | {"version": 9})
    for name in ("run", "given"):
        (tmp_path / name / "record.json").write_text(newer)
    with pytest.raises(StorageError, match=r"version 9, newer than 1(?s:.)*update tdquant"):
        small.run(tmp_path / "run", images=8)
    with pytest.raises(StorageError, match="version 9, newer than 1"):
        evaluate_images(
            tmp_path / "run" / "images", tmp_path / "given", reference=None, metrics=[],
            network=small.Random(),
        )  # fmt: skip
    for name in ("run", "given"):
        assert (tmp_path / name / "record.json").read_text() == newer
        assert not (tmp_path / name / "record.previous.json").exists()


def test_float_pictures_are_shared_by_runs_of_one_float_model(whole, tmp_path):
    folders = list(whole[0].parent.glob(".float-*"))
    assert len(folders) == 1
    assert len(list(folders[0].glob("*.png"))) == 6
    stamps = {p: p.stat().st_mtime_ns for p in folders[0].glob("*.png")}
    small.run(whole[0].parent / "float", load_embedded("tiny"), backend="auto")
    assert list(whole[0].parent.glob(".float-*")) == folders
    assert {p: p.stat().st_mtime_ns for p in folders[0].glob("*.png")} == stamps


def test_a_model_against_itself_has_no_error(tmp_path):
    record = small.run(tmp_path / "run", load_embedded("tiny"), backend="auto", batch=6)
    found = record.paired["metrics"]
    assert found["mse"]["value"] == 0
    assert found["ssim"]["value"] == pytest.approx(1)
    assert found["psnr"]["value"] is None  # infinite
    assert not (tmp_path / "run" / "layers.json").exists()


@pytest.mark.parametrize("missing", ["record", "features", "half", "cut"])
def test_a_run_goes_on_from_wherever_it_stopped(whole, tmp_path, missing):
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    (out / "record.json").unlink()
    if missing in ("features", "half", "cut"):
        shutil.rmtree(out / "features")
    if missing in ("half", "cut"):
        for i in (3, 4, 9, 10, 11):
            (out / "images" / f"{i:06d}.png").unlink()
    if missing == "cut":  # killed while it wrote
        (out / "images" / ".000003.png.ab.new").write_bytes(b"half")
        (out / "features").mkdir()
        (out / "features" / "random-00000.safetensors").write_bytes(b"half")
    began = time.perf_counter()
    record = small.run(out)
    assert numbers(record) == numbers(whole[1])
    assert pictures(out) == pictures(whole[0])
    assert record.cost["resumed"] is True
    assert 0 < record.cost["seconds"] <= time.perf_counter() - began


def test_a_killed_run_ends_like_one_that_was_not(whole, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    command = [sys.executable, "-m", "tests.lab.evaluation.small", str(tmp_path / "run"), "12"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.poll() is None:
        if len(list((tmp_path / "run").glob("images/*.png"))) >= 4:
            process.kill()
            break
        time.sleep(0.01)
    process.wait()
    if not (tmp_path / "run" / "record.json").exists():
        with pytest.raises(StorageError, match="still being written"):
            Record.read(tmp_path / "run")
    record = small.run(tmp_path / "run")
    assert pictures(tmp_path / "run") == pictures(whole[0])
    assert numbers(record) == numbers(whole[1])


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port"],
    "accelerate": [
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.slow)]
)
def test_two_processes_judge_like_one(launcher, tmp_path):
    command = [
        sys.executable, "-m", *LAUNCHERS[launcher], str(free_port()),
        "-m", "tests.lab.evaluation.small", str(tmp_path / "both"), "24",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    torch.set_num_threads(1)  # other numbers of threads round otherwise
    try:
        alone = small.run(tmp_path / "alone", images=24)
    finally:
        torch.set_num_threads(THREADS)
    assert pictures(tmp_path / "both") == pictures(tmp_path / "alone")
    assert numbers(Record.read(tmp_path / "both")) == numbers(alone)


def test_a_process_whose_companions_are_gone_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("tdquant.lab.evaluation.feature_files"), "SHARD", 5)
    monkeypatch.setattr(import_module("tdquant.lab.evaluation.progress"), "PATIENCE", 0.2)
    out = tmp_path / "run"
    with pytest.raises(StorageError, match="images are missing"):
        small.run(out, rank=1, world=2)  # its features need images of the other process
    assert len(pictures(out)) == 4  # the second of three batches
    assert not (out / "record.json").exists()
    assert not (out / "progress.json").exists()
    with pytest.raises(StorageError, match="images are missing"):
        small.run(out, rank=0, world=3)
    with pytest.raises(StorageError, match="still being written"):
        Record.read(out)


def test_mistakes_are_told_before_anything_is_sampled(tmp_path):
    with pytest.raises(DataError, match="nonsense") as caught:
        small.run(tmp_path / "a", images=3, metrics=["precision", "is", "nonsense"])
    assert "precision: 3 images, and 4 are needed" in str(caught.value)
    assert "is: 3 images" in str(caught.value)
    with pytest.raises(DataError, match="no reference set"):
        small.run(tmp_path / "a", reference=None, metrics=["frechet"])
    with pytest.raises(DataError, match="prompts"):
        small.run(tmp_path / "a", clip=tmp_path)
    with pytest.raises(ModelError, match="at least 1"):
        small.run(tmp_path / "a", images=0)
    with pytest.raises(ModelError, match="takes none"):
        small.run(tmp_path / "a", prompts=["a cat"])
    with pytest.raises(ModelError, match="float model"):
        small.run(tmp_path / "a", load_embedded("tiny"), backend="onednn")
    assert not list(tmp_path.glob("a/images/*.png"))


def test_without_reference_and_resamples(tmp_path):
    record = small.run(
        tmp_path / "a", images=20, reference=None, against=None, metrics=["is"], resamples=0
    )
    assert record.reference is None
    assert record.paired is None
    assert record.metrics["is"]["low"] is None


def test_the_onednn_backend_gives_the_same_images_again(tmp_path):
    options = {"backend": "onednn", "against": None, "images": 8, "metrics": ["frechet"]}
    first = small.run(tmp_path / "a", **options)
    again = small.run(tmp_path / "b", **options)
    assert first.sampling["backend"] == "onednn"
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")
    assert first.metrics == again.metrics


def test_paired_errors_of_two_sizes_are_refused(whole, tmp_path):
    from tdquant.diffusion.pictures import save_png

    save_png(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "000000.png")
    with pytest.raises(DataError, match="shapes"):
        paired_metrics(whole[0] / "images", tmp_path, 1)


def test_paired_errors_are_those_of_the_pictures(whole):
    other = next(whole[0].parent.glob(".float-*"))
    sets = [
        read_pictures([folder / f"{i:06d}.png" for i in range(6)])
        for folder in (whole[0] / "images", other)
    ]
    error = ((sets[0].double() - sets[1].double()) / 127.5).square().mean()
    assert whole[1].paired["metrics"]["mse"]["value"] == pytest.approx(float(error), rel=1e-5)


def test_a_metric_with_weights_stands_beside_the_others(whole):
    other = next(whole[0].parent.glob(".float-*"))
    found = paired_metrics(
        whole[0] / "images",
        other,
        6,
        more={"lpips": lambda a, b: (a - b).abs().flatten(1).amax(1)},
    )
    assert found["lpips"]["title"] == "LPIPS"
    assert found["lpips"]["low"] <= found["lpips"]["value"] <= found["lpips"]["high"]
    assert found["mse"]["value"] == whole[1].paired["metrics"]["mse"]["value"]


class Distance(torch.nn.Module):
    """In the place of LPIPS, whose networks need larger images: its file is a number."""

    title = "LPIPS (weights ...)"

    def __init__(self, weights):
        super().__init__()
        self.digest = weights.read_text()

    def forward(self, a, b):
        return float(self.digest) * (a - b).abs().flatten(1).mean(1)


def test_lpips_by_another_file_is_computed_again(whole, tmp_path, monkeypatch):
    run = import_module("tdquant.lab.evaluation.run")
    monkeypatch.setattr(run, "Lpips", Distance)
    shutil.copytree(whole[0], tmp_path / "run")
    files = [tmp_path / name for name in "ab"]
    for file, digest in zip(files, "12", strict=True):
        file.write_text(digest)
    first, other = (small.run(tmp_path / "run", lpips=file) for file in files)
    found = [r.paired["metrics"]["lpips"] for r in (first, other)]
    assert [m["network"] for m in found] == ["1", "2"]
    assert found[0]["title"] == "LPIPS (weights ...)"
    assert found[1]["value"] == pytest.approx(2 * found[0]["value"])
    assert incomparable(first, other) == ["LPIPS (weights ...) by two networks"]
    assert "network" not in other.paired["metrics"]["mse"]
    shutil.copy(files[1], tmp_path / "moved")
    monkeypatch.setattr(run, "_sample", None)
    assert small.run(tmp_path / "run", lpips=tmp_path / "moved") == other


def test_lpips_without_its_weights_says_where_they_are_to_be_had(tmp_path):
    with pytest.raises(DataError, match=r"alexnet.*(?s:.)*download.pytorch.org"):
        small.run(tmp_path, lpips=True)
    assert not any(tmp_path.iterdir())


def test_images_with_prompts_get_a_clip_score(tmp_path, whole):
    clip = save_clip(tmp_path / "clip")
    texts = [f"{chr(97 + i)} cat" for i in range(12)]
    options = {"network": small.Random(), "reference": small.reference(), "clip": clip}
    record = evaluate_images(
        whole[0] / "images", tmp_path / "run", prompts=texts, progress=False, **options
    )
    score = record.metrics["clip"]
    assert score["low"] <= score["value"] <= score["high"]
    assert score["images"] == 12
    files = [whole[0] / "images" / f"{i:06d}.png" for i in range(12)]
    assert score["value"] == pytest.approx(
        float(clip_score(read_pictures(files), texts, clip).mean())
    )
    with pytest.raises(DataError, match="without prompts"):
        evaluate_images(whole[0] / "images", tmp_path / "other", progress=False, **options)


def test_a_latent_model_is_judged_by_its_decoded_images(tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        latent_channels=12,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    pipe = load_embedded("tiny")
    pipe = replace(pipe, unet=pipe.unet.unet, vae=vae.eval(), shape=(12, 8, 8))
    record = evaluate(
        pipe, tmp_path / "a", **small.OPTIONS | {
            "network": small.Random(), "backend": "auto", "images": 4, "metrics": ["frechet"],
            "resamples": 0, "reference": small.reference(),
        }
    )  # fmt: skip
    assert record.sampling["shape"] == [12, 8, 8]
    assert record.reference["preprocessing"] == "RGB 16x16, as they are"
    assert json.loads((tmp_path / "a/images/samples.json").read_text())["first_stage"]


def test_prompts_draw_one_image_each(tmp_path):
    from tests.pipelines.unets import stable_diffusion_1

    pipe, call = stable_diffusion_1()
    options = {
        "prompts": ["a cat", "two cats", "no cat"], "images": 5, "batch": 2, "steps": 2,
        "call": {key: call[key] for key in ("guidance_scale", "height", "width")},
        "reference": None, "metrics": [], "backend": "auto",
    }  # fmt: skip
    record = small.run(tmp_path / "a", pipe, against=pipe, **options)
    assert record.sampling["prompts"]
    assert record.paired["metrics"]["mse"]["value"] == 0
    drawn = pictures(tmp_path / "a")
    assert len(drawn) == len(set(drawn.values())) == 5
    (tmp_path / "a" / "record.json").unlink()
    (tmp_path / "a" / "images" / "000003.png").unlink()
    again = small.run(tmp_path / "a", pipe, against=None, **options)
    assert pictures(tmp_path / "a") == drawn
    assert again.paired is None
    with pytest.raises(StorageError, match="prompts: "):
        small.run(tmp_path / "a", pipe, against=None, **options | {"prompts": ["a dog"]})


@pytest.mark.parametrize("labels", [[1], [1, 2]])
def test_a_pipeline_that_draws_one_at_a_time(tmp_path, labels):
    from tests.pipelines.transformers import dit

    pipe, _ = dit()
    options = {
        "images": 3, "batch": 2, "steps": 2, "against": None, "reference": None, "metrics": [],
        "backend": "auto", "call": {"class_labels": labels},
    }  # fmt: skip
    if len(labels) > 1:
        with pytest.raises(ModelError, match="a run gives 2 images in the place of 1"):
            small.run(tmp_path / "a", pipe, **options)
        return
    record = small.run(tmp_path / "a", pipe, **options)
    assert record.sampling["call"] == {"class_labels": labels}
    drawn = pictures(tmp_path / "a")
    assert len(drawn) == len(set(drawn.values())) == 3


def test_a_pipeline_whose_first_image_fails_leaves_the_folder_to_others(tmp_path):
    from tests.pipelines.transformers import dit

    pipe, _ = dit()
    options = {
        "images": 1, "steps": 1, "against": None, "reference": None, "metrics": [],
        "backend": "auto",
    }  # fmt: skip
    with pytest.raises(ModelError, match="a run gives 2 images"):
        small.run(tmp_path / "a", pipe, **options, call={"class_labels": [1, 2]})
    assert not (tmp_path / "a/images/samples.json").exists()
    record = small.run(tmp_path / "a", pipe, **options, call={"class_labels": [1]})
    assert record.sampling["call"] == {"class_labels": [1]}


def test_a_changed_reference_set_of_a_pipeline_is_seen(tmp_path, monkeypatch):
    from tests.pipelines.transformers import dit

    images = shutil.copytree(small.reference(), tmp_path / "set")
    options = {
        "images": 2, "steps": 2, "against": None, "reference": images, "metrics": ["frechet"],
        "backend": "auto", "resize": 8, "resamples": 0, "call": {"class_labels": [1]},
    }  # fmt: skip
    first = small.run(tmp_path / "a", dit()[0], **options)
    with monkeypatch.context() as patch:
        patch.setattr(import_module("tdquant.lab.evaluation.run"), "_sample", None)
        assert small.run(tmp_path / "a", dit()[0], **options) == first
    shutil.copy(images / "1.png", images / "0.png")
    drawn = pictures(tmp_path / "a")
    again = small.run(tmp_path / "a", dit()[0], **options)
    assert again.reference["digest"] != first.reference["digest"]
    assert again.metrics["frechet"]["value"] != first.metrics["frechet"]["value"]
    assert pictures(tmp_path / "a") == drawn


def test_the_record_of_a_pipeline_names_what_ran(tmp_path):
    from tests.pipelines.transformers import dit

    pipe, call = dit()
    tdq.quantize(pipe.transformer, tdq.Recipe(8, 8, remedies=()))
    tdq.calibrate(
        pipe.transformer,
        tdq.trajectories(pipe, [call], progress=False),
        estimator="minmax",
        progress=False,
    )
    options = {
        "images": 1, "steps": 2, "against": None, "reference": None, "metrics": [],
        "backend": "auto", "call": {"class_labels": [1]},
    }  # fmt: skip
    record = small.run(tmp_path / "a", pipe, **options)
    assert record.sampling["backend"] == "openvino"
    assert json.loads((tmp_path / "a/images/samples.json").read_text())["backend"] == "openvino"
    assert small.run(tmp_path / "a", pipe, **options | {"backend": "cpu"}) == record
    with pytest.raises(StorageError, match="backend: openvino, now simulated"):
        small.run(tmp_path / "a", pipe, **options | {"backend": "simulated"})


def test_what_does_not_fit_a_pipeline_is_told_at_its_first_image(tmp_path):
    from tests.pipelines.transformers import dit

    pipe, _ = dit()
    with pytest.raises(DataError, match="reference images of 16x16"):
        small.run(tmp_path / "a", pipe, against=None, steps=2, images=4, backend="auto",
                  metrics=["frechet"], call={"class_labels": [1]})  # fmt: skip
    assert len(pictures(tmp_path / "a")) == 1


def test_waiting_for_metrics_goes_on_while_they_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("tdquant.lab.evaluation.progress"), "PATIENCE", 0.5)
    folder = import_module("tdquant.lab.evaluation.folder")
    began = time.monotonic()

    def read(out):
        if time.monotonic() - began < 1.5:
            (out / "progress.json").write_text(str(time.monotonic()))
            raise StorageError("none yet")
        return types.SimpleNamespace(asked="mine")

    monkeypatch.setattr(folder, "Record", types.SimpleNamespace(read=read))
    assert folder.wait_for_record(tmp_path, "mine").asked == "mine"
    with pytest.raises(StorageError, match="records are missing"):
        folder.wait_for_record(tmp_path, "another's")


def test_equal_pairs_do_not_make_psnr_infinite(whole, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(whole[0] / "images", tmp_path / name)
    found = paired_metrics(tmp_path / "a", tmp_path / "b", 4)["psnr"]
    assert found["infinite"] == 4
    shutil.copy(tmp_path / "a" / "000000.png", tmp_path / "b" / "000001.png")
    found = paired_metrics(tmp_path / "a", tmp_path / "b", 4)["psnr"]
    assert found["infinite"] == 3
    assert 0 < found["value"] < 100


def test_any_number_of_shards_gives_the_same_numbers(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("tdquant.lab.evaluation.feature_files"), "SHARD", 5)
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "run" / "record.json").unlink()
    record = small.run(tmp_path / "run")
    assert len(list((tmp_path / "run" / "features").iterdir())) == 3
    for name, measured in record.metrics.items():
        assert measured["value"] == pytest.approx(whole[1].metrics[name]["value"], rel=1e-3)


def test_the_usual_network(tmp_path):
    record = small.run(
        tmp_path / "a", load_embedded("tiny"), network="efficientnet-lite0", backend="auto",
        images=4, against=None, metrics=["frechet"], resamples=0,
    )  # fmt: skip
    assert record.metrics["frechet"]["title"] == "Frechet EfficientNet-Lite0 distance"
    assert record.metrics["frechet"]["value"] > 10


def test_what_a_killed_evaluation_left_is_not_foreign(tmp_path):
    left = tmp_path / ".progress.json.tdquant-0"
    left.mkdir()
    (left / "lock").touch()
    check_out(tmp_path)
    (tmp_path / "notes").touch()
    with pytest.raises(StorageError, match="something else"):
        check_out(tmp_path)
