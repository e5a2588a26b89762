"""``tdquant quantize``: from a float pipeline or checkpoint file to a quantized folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tdquant.cli.switches import argument_of, overrides_among

DTYPES = ("float32", "bfloat16", "float16")


def add(commands: Any) -> None:
    """Adds the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "quantize",
        help="quantize a diffusers pipeline or a latent-diffusion checkpoint",
        description="Records what the pipeline's denoisers get while it samples, quantizes and "
        "calibrates them, compares pictures with the float pipeline's, and saves an ordinary "
        "diffusers folder. A job that was stopped goes on where it was: repeat the command. Of a "
        "checkpoint file with --config the folder is one that tdquant sample and evaluate take.",
        epilog="KEY=VALUE are further arguments of the pipeline, the value JSON or a word: "
        "guidance_scale=5 height=256.",
    )
    flag = parser.add_argument
    flag("--model", required=True, help="folder of a diffusers pipeline, or its name on the hub; "
         "or a latent-diffusion checkpoint file")  # fmt: skip
    flag("--config", nargs="+", help="configuration of a checkpoint file; KEY.PATH=VALUE among "
         "its words changes it")  # fmt: skip
    flag("--text-encoder", type=Path, metavar="DIR", help="folder of the CLIP text encoder of a "
         "text-to-image checkpoint, for --prompts")  # fmt: skip
    flag("--no-ema", action="store_true", help="of a checkpoint, the parameters themselves, not "
         "their averages")  # fmt: skip
    flag("--out", type=Path, required=True, help="folder to write")
    flag("--weights", type=int, default=4, help="bits of the weights (default: 4)")
    flag("--activations", type=int, default=8, help="bits of the activations (default: 8)")
    flag("--scale", default="auto", help="law of the activation scales: auto (default), temporal, "
         "static, dynamic")  # fmt: skip
    flag("--recipe", type=Path, help="JSON file of a whole Recipe, in the place of these three")
    flag("--prompts", type=Path, help="file of prompts, one a line; or of JSON objects, one a "
         "line, of arguments of the pipeline")  # fmt: skip
    flag("--samples", type=int, help="number of samples, for a pipeline without prompts (16)")
    flag("--steps", type=int, default=50, help="sampler steps while recording (default: 50)")
    flag("--batch", type=int, default=1, help="samples a run while recording (default: 1)")
    flag("--part", action="append", default=[], help="denoiser to quantize, such as transformer; "
         "may be repeated (default: all)")  # fmt: skip
    flag("--target-bits", type=float, help="search bits layer by layer, this many a weight on "
         "average")  # fmt: skip
    flag("--max-error", type=float, help="search bits layer by layer, for this mean squared error "
         "of the output")  # fmt: skip
    flag("--reconstruct", choices=("adaround", "gptq"), help="choose codes by what blocks "
         "compute: learned (hours) or in closed form")  # fmt: skip
    flag("--iterations", type=int, default=400, help="updates a block of adaround (default: 400)")
    flag("--balance", type=float, metavar="ALPHA", help="first move this share of outlier "
         "channels' range into the weights, for transformers: 0.5")  # fmt: skip
    flag("--correct", action="store_true", help="unbias predictions by a gain over time, fitted "
         "on the quantized pipeline's own samples: less grain at few bits")  # fmt: skip
    flag("--pictures", type=int, default=4, help="samples to compare with float (default: 4)")
    flag("--dtype", choices=DTYPES, help="type to load the pipeline in (default: its own)")
    flag("--device", default="cpu", help="where to run: cpu (default) or cuda")
    flag("--seed", type=int, default=0, help="seed of all noise and draws (default: 0)")
    flag("--layers", action="store_true", help="print the layer table")
    flag("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run, overridden=parser)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from tdquant.support.optional import require

    require("diffusers", "pipelines")
    import torch

    from tdquant.lab.jobs.checkpoint_job import run_checkpoint_job
    from tdquant.lab.jobs.job import Job
    from tdquant.lab.jobs.workflow import run_job

    job = Job(
        model=options.model,
        out=options.out,
        recipe=_recipe(options),
        prompts=_prompts(options),
        call=dict(argument_of(word) for word in options.overrides),
        steps=options.steps,
        batch=options.batch,
        seed=options.seed,
        parts=tuple(options.part),
        balance=options.balance,
        target_bits=options.target_bits,
        max_error=options.max_error,
        reconstruct=options.reconstruct,
        iterations=options.iterations,
        correct=options.correct,
        pictures=options.pictures,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        device=_device(options.device),
        progress=not options.quiet,
        config=_config(options),
        ema=not options.no_ema,
        text_encoder=options.text_encoder,
    )
    outcome = run_job(job) if job.config is None else run_checkpoint_job(job)
    if options.layers:
        for name, table in outcome.layers.items():
            print(f"\n{name}\n{table}")
    print(outcome)


def _device(text: str) -> str:
    """The device, if it is there.

    Raises:
        TDQError: There is none of that name.
    """
    import torch

    from tdquant.errors import TDQError

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        why = str(error).splitlines()[0]
        raise TDQError(f"no device {text}", where="--device", why=why, fix="cpu") from error
    return text


def _config(options: argparse.Namespace) -> Any:
    """The configuration of a checkpoint file, None for a pipeline.

    Raises:
        TDQError: A checkpoint file without one, or one for a pipeline.
    """
    from tdquant.errors import TDQError
    from tdquant.files.config import read_config

    is_file = Path(options.model).is_file()
    if is_file and not options.config:
        raise TDQError(
            "a checkpoint file without its configuration",
            where=options.model,
            fix="--config FILE.yaml, the one that it was trained with",
        )
    if options.config and not is_file:
        raise TDQError("--config without a checkpoint file", where=options.model)
    if not is_file:
        return None
    files, changes = overrides_among(options.config)
    return read_config(files, changes)


def _recipe(options: argparse.Namespace) -> Any:
    from tdquant.errors import RecipeError
    from tdquant.recipe import Recipe

    if options.recipe is None:
        return Recipe(
            weights=options.weights, activations=options.activations, scale=options.scale
        )
    try:
        return Recipe.from_dict(json.loads(options.recipe.read_text()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RecipeError(
            "the recipe cannot be read", where=str(options.recipe), why=str(error)
        ) from error


def _prompts(options: argparse.Namespace) -> Any:
    from tdquant.calls.prompts import read_prompts
    from tdquant.errors import TDQError

    if options.prompts is None:
        return 16 if options.samples is None else options.samples
    if options.samples is not None:
        raise TDQError("--prompts and --samples", fix="one of them: a prompt gives one sample")
    lines = read_prompts(options.prompts)
    if all(line.startswith("{") for line in lines):
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise TDQError(
                "the prompts are no JSON objects", where=str(options.prompts), why=str(error)
            ) from error
    return lines
