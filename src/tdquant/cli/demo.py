"""``tdquant demo``: what scales and remedies do to pictures, in minutes and without a GPU."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from tdquant.cli.options import add_command, picked, positive, shared


def add(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        run,
        help="quantize the embedded model twelve ways; print a table, draw a picture",
        description="Quantizes the embedded cat model at W8A8, W8A5 and W4A4 with static, "
        "input-dynamic and temporal activation scales, and as it is done by default, samples from "
        "each with the same noise, and writes demo.png and demo.json.",
        epilog="Without options: 192 images of each model, 25 steps; quick: 48 and 12.",
        parents=[shared("steps", "threads", "quiet", out=Path("demo"), seed=0)],
    )
    flag = parser.add_argument
    flag(
        "--quick",
        action="store_true",
        help="fewer images and steps: under 90 s on two cores",
    )
    flag("--images", type=positive, help="images of each model")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    import torch

    from tdquant.files.places import check_writable_folder
    from tdquant.lab.demo import Settings, run_demo
    from tdquant.lab.demo.picture import draw
    from tdquant.lab.demo.run import TIMED
    from tdquant.lab.demo.table import text_table

    settings = Settings.quick(options.seed) if options.quick else Settings(seed=options.seed)
    given = picked(options, "images", "steps")
    settings = replace(settings, **{k: v for k, v in given.items() if v is not None})
    check_writable_folder(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    print(
        f"cats-ddpm, {settings.images} images, {settings.steps} DDIM steps, seed {settings.seed}, "
        f"threads: {torch.get_num_threads()}"
    )
    result = run_demo(settings, progress=options.progress)
    print(text_table(result.rows))
    print(
        "Frechet EfficientNet-Lite0 distance to 5,000 held-out cats, lower is better; no FID.\n"
        "It falls with the number of images: compare it within this table alone.\n"
        "Paired MSE is against the float model from the same noise.\n"
        "Quantized models run on torch's int8 operators (onednn backend), the float one in eager "
        f"PyTorch, with as many threads; a call takes {TIMED} images."
    )
    picture, file = options.out / "demo.png", options.out / "demo.json"
    draw(result, picture)
    result.write_json(file, settings)
    print(f"{result.seconds:.0f} s; wrote {picture} and {file}")
