"""The published commands at the published size: seconds and peak memory of each stage.

    python benchmarks/published_size.py [--models churches cifar10] [--work DIR] [--threads 2]

The configurations as they ship, checkpoints as Lightning 1.4 writes them with random weights of
full size, and made-up pictures in LSUN's and CIFAR-10's layouts. Every stage is a process of its
own; its peak is the largest resident memory that the system saw. What is compared:

    load        memory beyond that of the imports, over the size of the checkpoint
    train       whole process, over the float32 weights of UNet and first stage, at batch 2
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from record import table, write

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
CONFIGS = {
    "churches": ROOT / "configs" / "lsun_churches-ldm-kl-8.yaml",
    "cifar10": ROOT / "configs" / "cifar10-ddpm.yaml",
}
LOAD = """
import re, sys
import tdquant as tdq
from tdquant.diffusion import ddim  # diffusers is an import, not the load
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
import diffusers; diffusers.AutoencoderKL, diffusers.VQModel
before = peak()
pipe = tdq.models.load_compvis(sys.argv[1], sys.argv[2], quiet=True)
print(before, peak())
"""
COMPILED = """
import sys, time
import torch
import tdquant as tdq
from tdquant.lab.opening import open_model
torch.set_num_threads(int(sys.argv[2]))
pipe = open_model(sys.argv[1]).model
begun = time.perf_counter()
fast = tdq.compile(pipe.unet, "openvino", example=(torch.randn(2, *pipe.shape), torch.tensor(5)))
print("compile", time.perf_counter() - begun)
x = tdq.sample(fast, pipe.scheduler, 2, pipe.shape, steps=4, progress=False)
with torch.no_grad():
    assert pipe.decode(x).isfinite().all()
print("with sampling", time.perf_counter() - begun)
"""


def make(name, work):
    """Writes the checkpoint and the pictures."""
    from tests.files.checkpoints.lightning import write_lightning

    from tdquant.files.config import read_config
    from tdquant.models.compvis.autoencoder import build_first_stage, to_published
    from tdquant.models.compvis.unet import UNetModel

    torch.manual_seed(0)
    params = read_config(CONFIGS[name])["model"]["params"]
    unet = UNetModel(**params["unet_config"]["params"])
    for parameter in unet.parameters():
        if not parameter.any():  # what starts at zero cannot be quantized
            torch.nn.init.normal_(parameter, std=0.02)
    state = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
    for key, value in unet.named_parameters():
        averaged = "model_ema.diffusion_model" + key.replace(".", "")
        state[averaged] = value.detach().clone()
    state["model_ema.decay"] = torch.tensor(0.9999)
    state["model_ema.num_updates"] = torch.tensor(500000, dtype=torch.int32)
    weights = sum(p.numel() for p in unet.parameters())
    if "first_stage_config" in params:
        stage = build_first_stage("AutoencoderKL", params["first_stage_config"]["params"], 1.0)
        weights += sum(p.numel() for p in stage.parameters())
        state |= {f"first_stage_model.{k}": v for k, v in to_published(stage).items()}
        state["scale_factor"] = torch.tensor(0.2458)
    file = write_lightning(work / "model.ckpt", state)
    rng = np.random.default_rng(0)
    if name == "churches":
        from PIL import Image

        folder = work / "data" / "lsun" / "churches"
        folder.mkdir(parents=True)
        names = [f"{i:040x}.webp" for i in range(8)]
        for one in names:
            small = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(small).resize((320, 256)).save(folder / one)
        lists = work / "data" / "lsun" / "church_outdoor_train.txt"
        lists.write_text("\n".join(names) + "\n")
    else:
        folder = work / "data" / "cifar-10-batches-bin"
        folder.mkdir(parents=True)
        for one in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
            records = rng.integers(0, 256, (8, 3073), dtype=np.uint8)
            records[:, 0] %= 10
            (folder / one).write_bytes(records.tobytes())
    print(json.dumps({"weights": weights, "checkpoint": file.stat().st_size}))


def stage(title, command, work, threads):
    """Runs one stage; seconds, peak in MB, and what it printed last."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    log = work / "log.txt"
    begun = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    text = log.read_text(errors="replace")
    if status:
        raise SystemExit(f"{title} failed:\n{text[-3000:]}")
    found = {"stage": title, "seconds": seconds, "peak_mb": usage.ru_maxrss / 1024}
    print(f"{title:28} {seconds:7.1f} s {found['peak_mb']:8.0f} MB", flush=True)
    return found, text


def measure(name, work, threads):
    python, config = sys.executable, str(CONFIGS[name])
    _, text = stage("make", [python, __file__, "--make", name], work, threads)
    facts = json.loads(text.splitlines()[-1])
    checkpoint, weights = facts["checkpoint"] / 2**20, facts["weights"] * 4 / 2**20
    rows = []

    def run(title, *command):
        row, text = stage(title, [python, *command], work, threads)
        rows.append(row)
        return row, text

    row, text = run("load", "-c", LOAD, config, "model.ckpt")
    before, after = map(float, text.split()[-2:])
    row |= {"grown_mb": after - before, "over_checkpoint": (after - before) / checkpoint}
    common = [str(ROOT / "sample.py"), "--config", config, "--logdir", "samples", "--quiet"]
    common += ["--n_samples", "2", "--custom_steps", "4", "--batch_size", "2", "--gpus", "0"]
    run("sample.py, float", *common, "--ckpt", "model.ckpt", "--name", "float")
    train = [str(ROOT / "main.py"), "--base", config, "--ckpt", "model.ckpt", "--train", "True"]
    train += ["--scale_lr", "False", "--n_bit_w", "4", "--n_bit_a", "4", "--use_dynamic"]
    train += ["--name", "w4a4", "--max_steps", "2", "--quiet", "data.params.batch_size=2"]
    train += ["data.params.num_workers=0"]
    row, text = run("main.py, 2 steps of batch 2", *train)
    row["over_weights"] = row["peak_mb"] / weights
    steps = [json.loads(line) for line in (work / "logs/w4a4/log.jsonl").open()]
    row["seconds_a_step"] = steps[-1]["seconds"] / steps[-1]["step"]
    run("sample.py, quantized", *common, "--ckpt", "logs/w4a4", "--name", "frozen")
    row, text = run("compiled (OpenVINO)", "-c", COMPILED, "logs/w4a4", str(threads))
    row["compile_s"] = float(re.search(r"^compile (\S+)", text, re.M)[1])
    pictures = sorted(p.name for p in (work / "samples" / "frozen").glob("*.png"))
    assert pictures == ["000000.png", "000001.png"]
    return {"checkpoint_mb": checkpoint, "weights_mb": weights, "stages": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--work", type=Path, help="folder for files of a few GB (default: temp)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.make, Path.cwd())
        return
    torch.set_num_threads(options.threads)
    found = {}
    for name in options.models:
        work = Path(tempfile.mkdtemp(dir=options.work))
        try:
            found[name] = measure(name, work, options.threads)
        finally:
            shutil.rmtree(work)
    for name, result in found.items():
        print(f"\n{name}: checkpoint {result['checkpoint_mb']:.0f} MB, float32 weights "
              f"{result['weights_mb']:.0f} MB")  # fmt: skip
        table(
            ["stage", "seconds", "peak MB", "over"],
            [
                [r["stage"], round(r["seconds"], 1), round(r["peak_mb"]),
                 r.get("over_checkpoint", r.get("over_weights", "-"))]
                for r in result["stages"]
            ],
        )  # fmt: skip
    if options.models == list(CONFIGS):
        write("published_size", **found)


if __name__ == "__main__":
    main()
