"""The onednn backend: time, memory and compile time against the float model in eager PyTorch.

    python benchmarks/integers.py

Three kinds of model, W4A8 and others: the 35.7M-parameter CIFAR UNet, the embedded models, and a
latent UNet of the size of LSUN churches. Times are medians of interleaved calls in one process,
float and integers both channels last on the same threads. Memory is the peak of a process of its
own that loads the model and samples a few steps, the float one in the layout that it was saved
in. Scales do not matter to time: they come from one random call.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import tdquant as tdq
from cost import cifar_unet
from interleaved import interleaved
from record import RESULTS, write
from tdquant.models import load_embedded
from tdquant.models.compvis.unet import UNetModel
from tdquant.quantizers import activation_quantizers
from tdquant.scales import TableScale

CHURCHES = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 192,
    "attention_resolutions": [1, 2, 4, 8],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 2, 4, 4],
    "num_heads": 8,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}


def churches_unet():
    """Random weights, also where training starts from zeros, which cannot be quantized."""
    torch.manual_seed(0)
    model = UNetModel(**CHURCHES).eval()
    for p in model.parameters():
        if p.ndim > 1 and not p.any():
            torch.nn.init.normal_(p, std=0.02)
    return model


MODELS = {
    "CIFAR UNet 35.7M": (cifar_unet, (3, 32, 32)),
    "cats-ddpm": (lambda: load_embedded("cats-ddpm").unet, (3, 32, 32)),
    "cats-ldm": (lambda: load_embedded("cats-ldm").unet, load_embedded("cats-ldm").shape),
    "churches-shaped UNet": (churches_unet, (4, 32, 32)),
}


def frozen_model(model, shape, weights, activations, scale="static", labels=()):
    """Frozen with the largest inputs of one random call as scales; temporal ones are tables over
    1000 timesteps made of them.
    """
    model = copy.deepcopy(model)
    recipe = tdq.Recipe(
        weights=weights,
        activations=activations,
        scale="dynamic" if scale == "dynamic" else "auto",
        remedies=(),
    )
    tdq.quantize(model, recipe)
    if scale == "dynamic":
        return tdq.freeze(model)
    knots = torch.arange(1000.0 if scale == "temporal" else 1.0)

    def observe(quantizer, args):
        step = max(float(args[0].abs().max()), 1e-3) / max(quantizer.grid.high, 1)
        quantizer.scale = TableScale(knots, step * (1 + knots / 5000)).requires_grad_(False)

    hooks = [q.register_forward_pre_hook(observe) for _, q in activation_quantizers(model)]
    with torch.no_grad():
        model(torch.randn(1, *shape), torch.tensor([500]), *labels)
    for hook in hooks:
        hook.remove()
    return tdq.freeze(model)


def speed(name, batches, bits, rounds):
    """Rows of times for one model."""
    make, shape = MODELS[name]
    model = make().to(memory_format=torch.channels_last)
    rows = []
    for weights, activations in bits:
        kinds = ("temporal", "static") if (weights, activations) == (4, 8) else ("temporal",)
        frozen = {k: frozen_model(model, shape, weights, activations, k) for k in kinds}
        for batch in batches:
            x, t = torch.randn(batch, *shape), torch.tensor(500)
            functions = {"float": lambda x=x, t=t: model(x, t)}
            seconds = {}
            for kind, one in frozen.items():
                start = time.perf_counter()
                fast = tdq.compile(one, "onednn", example=(x, t))
                seconds[kind] = time.perf_counter() - start
                functions[kind] = lambda fast=fast, x=x, t=t: fast(x, t)
            times = interleaved(functions, rounds)
            rows.append(
                {
                    "model": name,
                    "bits": f"W{weights}A{activations}",
                    "batch": batch,
                    "float_ms": 1e3 * times["float"],
                    "integer_ms": 1e3 * times["temporal"],
                    "speedup": times["float"] / times["temporal"],
                    "compile_s": seconds["temporal"],
                }
            )
            if "static" in times:
                rows[-1]["temporal_over_static"] = times["temporal"] / times["static"]
            print(rows[-1], flush=True)
    return rows


def dynamic(rounds):
    """Against scales from each input: torch's own on the linear layers, ours on all layers."""
    make, shape = MODELS["CIFAR UNet 35.7M"]
    model = make().to(memory_format=torch.channels_last)
    x, t = torch.randn(1, *shape), torch.tensor(500)
    linears = torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8
    )
    functions = {"float": lambda: model(x, t), "torch dynamic linears": lambda: linears(x, t)}
    for kind in ("temporal", "dynamic"):
        fast = tdq.compile(frozen_model(model, shape, 4, 8, kind), "onednn", example=(x, t))
        functions[kind] = lambda fast=fast: fast(x, t)
    times = interleaved(functions, rounds)
    return {name: 1e3 * seconds for name, seconds in times.items()}


CHILD = """
import re, sys, time
import torch
import tdquant as tdq
sys.path.insert(0, {folder!r})
torch.set_num_threads({threads})
from tdquant.models.compvis.unet import UNetModel
from tdquant.models import build
def resident(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before = resident("VmRSS")
start = time.perf_counter()
if {kind!r} == "float":
    with build.without_parameters():
        model = UNetModel(**{config!r})
    from safetensors.torch import load_file
    model.load_state_dict(load_file({path!r}), assign=True)
    model = model.eval()
else:
    frozen = tdq.load({path!r}, compact=True)
    loaded = time.perf_counter()
    model = tdq.compile(frozen, "onednn")
    del frozen
    with torch.no_grad():
        model(torch.randn({batch}, 4, 32, 32), torch.tensor(500))
    print("compile", time.perf_counter() - loaded)
from tdquant.diffusion.ddim import DDIM
x = torch.randn({batch}, 4, 32, 32)
with torch.no_grad():
    for t in (999, 749, 499, 249):
        x = x - 0.1 * model(x, torch.tensor(t))
print("before", before, "peak", resident("VmHWM"), "after", resident("VmRSS"))
"""


def memory(batch, threads, folder):
    """Peak resident memory of loading and sampling the churches-shaped UNet, in MB."""
    from safetensors.torch import save_file

    make, shape = MODELS["churches-shaped UNet"]
    files = {"float": folder / "float.safetensors", "onednn": folder / "w4a8"}
    if not files["float"].exists():
        save_file(make().state_dict(), files["float"])
    if not files["onednn"].exists():
        tdq.save(frozen_model(make(), shape, 4, 8, "temporal"), files["onednn"])
    out = {}
    for kind, path in files.items():
        code = CHILD.format(
            folder=str(Path(__file__).parent), threads=threads, kind=kind, path=str(path),
            config=CHURCHES, batch=batch,
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        words = done.stdout.split()
        out[kind] = {k: float(v) for k, v in zip(words[::2], words[1::2], strict=True)}
    out["disk"] = {
        "float": files["float"].stat().st_size / 2**20,
        "onednn": sum(p.stat().st_size for p in files["onednn"].iterdir()) / 2**20,
    }
    out["peak_ratio"] = out["onednn"]["peak"] / out["float"]["peak"]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="*", default=["speed", "churches", "dynamic", "memory"])
    parser.add_argument("--cache", type=Path, help="keep the large models here between runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    if "speed" in options.parts:
        many = [(4, 8), (8, 8), (6, 8), (4, 4)]
        rows = speed("CIFAR UNet 35.7M", (1, 8), many, options.rounds)
        rows += speed("cats-ddpm", (1, 32), [(4, 8)], options.rounds)
        rows += speed("cats-ldm", (1, 32), [(4, 8)], options.rounds)
        results["speed"] = rows
    if "churches" in options.parts:
        results["speed_churches"] = speed("churches-shaped UNet", (1,), [(4, 8)], 5)
    if "dynamic" in options.parts:
        results["dynamic_ms"] = dynamic(options.rounds)
    if "memory" in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            results["memory_mb"] = memory(1, options.threads, options.cache or Path(folder))
    print(json.dumps(results, indent=1))
    path = RESULTS / "integers.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.pop("machine", None)
    write("integers", **known | results)


if __name__ == "__main__":
    main()
