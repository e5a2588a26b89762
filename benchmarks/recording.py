"""Memory of recording and observing an SD-1.5-shaped UNet: flat in the number of calls.

    python benchmarks/recording.py --calls 32 512

Random weights, all layers of the architecture at a quarter of its width (``--width 1`` is the
whole of 860M parameters, and takes hours), latents of 8x8, guidance. Each number of calls runs in
a process of its own, which records to shards on disk and then observes them; its peak resident
memory is compared with what it held before.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

import tdquant as tdq
from record import table, write


def pipeline(width):
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=[int(channels * width) for channels in (320, 640, 1280, 1280)],
        cross_attention_dim=768,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    vae = AutoencoderKL(latent_channels=4, block_out_channels=(8,) * 4, norm_num_groups=4,
                        down_block_types=("DownEncoderBlock2D",) * 4,
                        up_block_types=("UpDecoderBlock2D",) * 4)  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet.eval(), scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def measure(calls, steps, width):
    """Peak memory over that of the model, in MB, of recording and of observing."""
    sys.path.insert(0, str(Path(__file__).parent))
    from cost import Peak

    pipe = pipeline(width)
    rng = torch.Generator().manual_seed(1)
    runs = [
        {
            "prompt_embeds": torch.randn(1, 77, 768, generator=rng),
            "negative_prompt_embeds": torch.randn(1, 77, 768, generator=rng),
        }
        for _ in range(calls // steps)
    ]
    found = {
        "calls": calls,
        "width": width,
        "resident_mb": psutil.Process().memory_info().rss / 1e6,
    }
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with Peak() as peak:
            saved = tdq.trajectories(
                pipe, runs, steps=steps, height=64, width=64, progress=False
            ).save(Path(folder) / "calls")
        found |= {"recording_mb": peak.grown / 1e6, "recording_s": time.perf_counter() - started}
        found["shards_mb"] = sum(f.stat().st_size for f in saved.folder.iterdir()) / 1e6
        tdq.quantize(pipe.unet, tdq.Recipe(weights=32, activations=8))
        started = time.perf_counter()
        with Peak() as peak:
            seen = tdq.observe(pipe.unet, saved, calls=16, samples=2, progress=False)
        found |= {"observing_mb": peak.grown / 1e6, "observing_s": time.perf_counter() - started}
        assert seen.count == calls
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--one", type=int, help="measure this number of calls here, and print it")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.steps, options.width)))
        return
    rows = []
    for calls in options.calls:
        command = [sys.executable, __file__, "--one", str(calls), "--steps", str(options.steps)]
        command += ["--width", str(options.width)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    head = ["calls", "recording_mb", "observing_mb", "shards_mb", "resident_mb"]
    table(head, [[row[key] for key in head] for row in rows])
    write("recording", width=options.width, rows=rows)


if __name__ == "__main__":
    main()
