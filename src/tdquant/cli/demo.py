"""``tdquant demo``: see on pictures what a temporal scale does, in a few minutes and without a
GPU.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch


def add(commands: Any) -> None:
    """Adds the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="quantize the embedded model nine ways; print a table, draw a picture",
        description="Quantizes the embedded cat model at W8A8, W8A5 and W4A4 with static, "
        "input-dynamic and temporal activation scales, samples from each with the same noise, "
        "and writes demo.png and demo.json.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for the results (default: demo)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer images and steps: under 90 s on two cores"
    )
    parser.add_argument(
        "--images", type=int, help="images sampled by each model (default: 192, quick: 48)"
    )
    parser.add_argument("--steps", type=int, help="DDIM steps (default: 25, quick: 12)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of all noise and draws (default: 0)"
    )
    parser.add_argument(
        "--threads", type=int, help="threads of torch (default: torch's own choice)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from tdquant.lab.demo import Settings, run_demo
    from tdquant.lab.demo.picture import draw
    from tdquant.lab.demo.run import TIMED
    from tdquant.lab.demo.table import text_table

    if options.threads:
        torch.set_num_threads(options.threads)
    settings = Settings.quick(options.seed) if options.quick else Settings(seed=options.seed)
    given = {
        k: getattr(options, k) for k in ("images", "steps") if getattr(options, k) is not None
    }
    settings = replace(settings, **given)
    options.out.mkdir(parents=True, exist_ok=True)
    print(
        f"cats-ddpm, {settings.images} images, {settings.steps} DDIM steps, seed {settings.seed}, "
        f"threads: {torch.get_num_threads()}"
    )
    result = run_demo(settings, progress=not options.quiet)
    print(text_table(result.rows))
    print(
        "Frechet EfficientNet-Lite0 distance to 5,000 held-out cats, lower is better; no FID.\n"
        "It falls with the number of images: compare it within this table alone.\n"
        "Paired MSE is against the float model from the same noise.\n"
        "Quantized models run on torch's int8 operators (onednn backend), the float one in eager "
        f"PyTorch, with as many threads; a call takes {TIMED} images."
    )
    draw(result, options.out / "demo.png")
    result.write_json(options.out / "demo.json", settings)
    print(
        f"{result.seconds:.0f} s; wrote {options.out / 'demo.png'} and {options.out / 'demo.json'}"
    )
