"""``tdquant quantize``: from a float pipeline or checkpoint to a quantized folder."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from tdquant.cli.options import add_command, call_arguments, picked, shared


def add(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        run,
        overrides=True,
        help="quantize a diffusers pipeline or a latent-diffusion checkpoint",
        description="Records what the pipeline's denoisers get while it samples, quantizes and "
        "calibrates them, compares pictures with the float pipeline's, and saves an ordinary "
        "diffusers folder. A job that was stopped goes on where it was: repeat the command. Of a "
        "checkpoint file with --config, or of a run that trained in float, the folder is one that "
        "tdquant sample and evaluate take.",
        epilog="KEY=VALUE are further arguments of the pipeline, the value JSON or a word: "
        "guidance_scale=5 height=256. KEY.PATH=VALUE changes the configuration. An example: "
        "tdquant quantize --model my-pipeline --out my-small-pipeline --prompts prompts.txt "
        "--budget size=0.15,time=0.5",
        parents=[
            shared(
                "config", "ema", "text_encoder", "dtype", "quiet",
                required=["out"], weights=4, activations=8, steps=50, batch=1, seed=0,
                device="cpu",
            )
        ],
    )  # fmt: skip
    flag = parser.add_argument
    flag("--model", required=True, help="folder of a diffusers pipeline, or its name on the hub; "
         "a latent-diffusion checkpoint file; or a run")  # fmt: skip
    flag("--scale", default="auto", help="activation scales: auto (default), temporal, static, "
         "dynamic")  # fmt: skip
    flag("--recipe", type=Path, help="JSON file of a whole Recipe, instead of --weights, "
         "--activations and --scale")  # fmt: skip
    flag("--prompts", type=Path, help="file of prompts, one a line; or of JSON objects, one a "
         "line, of arguments of the pipeline")  # fmt: skip
    flag("--samples", type=int, help="number of samples, for a model without prompts (16)")
    flag("--part", action="append", default=[], help="denoiser to quantize, such as transformer; "
         "may be repeated (default: all)")  # fmt: skip
    flag("--budget", metavar="NAME=SHARE,...", help="what each denoiser may cost: size, of the "
         "float32 bytes, within which bits are chosen layer by layer; time, of the float one, by "
         "multiply-accumulates; protection, of the work, whose inputs get more bits (0.03). As in "
         "size=0.15,time=0.5,protection=0.02")  # fmt: skip
    flag("--target-bits", type=float, help="search bits layer by layer, this many a weight on "
         "average")  # fmt: skip
    flag("--max-error", type=float, help="search bits layer by layer, for this mean squared error "
         "of the output")  # fmt: skip
    flag("--reconstruct", choices=("adaround", "gptq"), help="choose codes by what blocks "
         "compute: learned (hours) or in closed form")  # fmt: skip
    flag("--iterations", type=int, default=400, help="updates a block of adaround (default: 400)")
    flag("--balance", type=float, metavar="ALPHA", help="first move this share of outlier "
         "channels' range into the weights, for transformers: 0.5")  # fmt: skip
    flag("--correct", action="store_true", help="correct predictions by a gain and a bias over "
         "time, fitted on the quantized model's own samples: less grain at few bits")  # fmt: skip
    flag("--pictures", type=int, default=4, help="samples to compare with float (default: 4)")
    flag("--layers", action="store_true", help="print the layer table")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from tdquant.support.optional import require

    require("diffusers", "pipelines")
    from tdquant.lab.jobs import QuantizeOptions, run_job

    changes = [word for word in options.overrides if "." in word.partition("=")[0]]
    same = picked(
        options,
        *("model", "out", "steps", "batch", "seed", "balance", "target_bits", "max_error"),
        *("reconstruct", "iterations", "correct", "pictures", "dtype", "device", "progress"),
        *("config", "ema", "text_encoder"),
    )
    outcome = run_job(
        QuantizeOptions(
            recipe=_recipe(options),
            budget=_budget(options),
            prompts=_prompts(options),
            call=call_arguments(word for word in options.overrides if word not in changes),
            overrides=changes,
            parts=tuple(options.part),
            **same,
        ),
        report=print,
    )
    if options.layers:
        # What goes to a file or another program stays whole.
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for name, layers in outcome.layers.items():
            print(f"\n{name}\n{layers.table(width)}")
        print()
    print(outcome)


def _recipe(options: argparse.Namespace) -> Any:
    from tdquant.errors import RecipeError, StorageError
    from tdquant.files.documents import read_json
    from tdquant.recipe import Recipe

    if options.recipe is None:
        return Recipe(options.weights, options.activations, options.scale)
    try:
        return Recipe.from_dict(read_json(options.recipe, "the recipe"))
    except (StorageError, TypeError, AttributeError) as error:
        raise RecipeError(
            "the recipe cannot be read", where=str(options.recipe), why=str(error)
        ) from error


def _budget(options: argparse.Namespace) -> Any:
    from tdquant.choice import Budget
    from tdquant.errors import TDQError

    budget = Budget() if options.budget is None else Budget.from_text(options.budget)
    searched = options.target_bits is not None or options.max_error is not None
    if budget.size is not None and searched:
        raise TDQError(
            "--budget size= with --target-bits or --max-error",
            why="each of them chooses the bits of weights",
            fix="one of them",
        )
    return budget


def _prompts(options: argparse.Namespace) -> Any:
    import json

    from tdquant.calls.prompts import read_prompts
    from tdquant.errors import TDQError

    if options.prompts is None:
        return 16 if options.samples is None else options.samples
    if options.samples is not None:
        raise TDQError("--prompts and --samples", fix="one of them: a prompt gives one sample")
    lines = read_prompts(options.prompts)
    if not all(line.startswith("{") for line in lines):
        return lines
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise TDQError(
            "the prompts are not JSON objects", where=str(options.prompts), why=str(error)
        ) from error
