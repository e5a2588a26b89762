"""``tdquant sample``, and ``sample.py`` of the published implementation, flag for flag."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tdquant.cli.launch import spread
from tdquant.cli.switches import overrides_among, positive


def add(commands: Any) -> None:
    """Adds the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "sample",
        help="sample PNGs from a checkpoint, a run or an embedded model",
        description="Samples images into LOGDIR/NAME/000000.png and so on, exactly as many as "
        "asked. Image i depends on the seed and on i alone; run again, the command goes on where "
        "it stopped.",
        epilog="Further arguments KEY.PATH=VALUE change the configuration.",
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("--ckpt", "--model", required=True, help="a .ckpt or .safetensors file, a run, or a name")
    flag("--config", nargs="+", help="configuration of a checkpoint file")
    flag("-l", "--logdir", type=Path, default=Path("samples"), help="where (default: samples)")
    flag("-n", "--n_samples", type=int, default=5, help="number of images (default: 5)")
    flag("-v", "--vanilla", action="store_true", help="DDPM with all timesteps instead of DDIM")
    flag("-c", "--custom_steps", type=int, default=200, help="sampler steps (default: 200)")
    flag("-e", "--eta", type=float, default=0.0, help="share of noise in DDIM (default: 0)")
    flag("-g", "--gpus", help="device numbers, such as 0,1: one process each")
    flag("-b", "--batch_size", type=int, default=32, help="images at a time (default: 32)")
    flag("--name", default="_", help="folder below LOGDIR")
    flag("--n_start", type=int, default=0, help="index of the first image (default: 0)")
    flag("--n_bit_w", type=int, help="checked against the checkpoint, which knows its bits")
    flag("--n_bit_a", type=int, help="checked against the checkpoint, which knows its bits")
    flag("--use_dynamic", action="store_true", help=argparse.SUPPRESS)
    flag("-d", "--dataset", help=argparse.SUPPRESS)
    more = parser.add_argument_group("further flags")
    flag = more.add_argument
    flag("-s", "--seed", type=int, default=23, help="seed of all noise (default: 23)")
    flag("--scheduler", help="ddim, dpm++, euler, euler-a, unipc, ddpm (default: ddim)")
    flag("--embeddings", type=Path, metavar="FILE", help="what a text-to-image model is to show: "
         "tensors context (N, tokens, width) and, for guidance, empty (1, tokens, width), in "
         ".safetensors or of torch.save; image i takes row i modulo N")  # fmt: skip
    flag("--prompt", action="append", metavar="TEXT", help="the same as text; may be repeated")
    flag("--text-encoder", type=Path, metavar="DIR", help="folder of the CLIP text encoder "
         "and its tokenizer, for --prompt")  # fmt: skip
    flag("--guidance", type=float, help="guidance scale (default: 7.5 with --prompt, else 1)")
    flag("--no-ema", action="store_true", help="the parameters themselves, not their averages")
    flag("--threads", type=positive, help="threads of torch")
    flag("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run, overridden=parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    arguments = ["sample", *sys.argv[1:]] if options.published else sys.argv[1:]
    status = spread(options.gpus, arguments)
    if status is not None:
        return status
    import torch

    from tdquant.lab.runs import open_pipe, sample_pictures

    if options.threads:
        torch.set_num_threads(options.threads)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"
    config, changes = overrides_among(options.config or [])
    pipe = open_pipe(
        options.ckpt,
        config or None,
        ema=not options.no_ema,
        text_encoder=options.text_encoder,
        overrides=[*changes, *options.overrides],
    )
    pipe = _ready(pipe, options)
    steps = len(pipe.scheduler.alphas_cumprod) if options.vanilla else options.custom_steps
    folder, began = options.logdir / options.name, time.perf_counter()
    written = sample_pictures(
        pipe,
        folder,
        options.n_samples,
        steps=steps,
        batch=options.batch_size,
        seed=options.seed,
        start=options.n_start,
        eta=options.eta,
        condition=_condition(pipe, options),
        settings={
            "ckpt": str(Path(options.ckpt).resolve())
            if Path(options.ckpt).exists()
            else options.ckpt,
            "scheduler": type(pipe.scheduler).__name__,
            "ema": not options.no_ema,
            "overrides": [*changes, *options.overrides],
        },
        rank=rank,
        world=world,
        device=device,
        progress=not options.quiet,
    )
    took = time.perf_counter() - began
    speed = f", {written / took:.2f} images/s" if written else ": they were there already"
    share = f"process {rank}: " if world > 1 else ""
    print(f"{share}{written} images in {folder}, {steps} steps, {took:.1f} s{speed}")
    return 0


def _condition(pipe: Any, options: argparse.Namespace) -> Any:
    """What is to be shown, or None for an unconditional model.

    Raises:
        TDQError: Flags contradict each other, or the embeddings cannot be read.
    """
    from tdquant.diffusion import Condition
    from tdquant.errors import TDQError
    from tdquant.files.checkpoints import open_checkpoint

    if options.prompt and options.embeddings:
        raise TDQError("--prompt and --embeddings", fix="one of them")
    if options.prompt:
        if pipe.text_encoder is None:
            raise TDQError("--prompt without a text encoder", fix="--text-encoder FOLDER")
        return pipe.text_encoder.condition(options.prompt, options.guidance)
    guidance = 1.0 if options.guidance is None else options.guidance
    if options.embeddings is None:
        if options.guidance is not None:
            raise TDQError("--guidance without a condition", fix="--prompt or --embeddings")
        return None
    with open_checkpoint(options.embeddings) as found:
        if "context" not in found:
            raise TDQError(
                "no tensor named context",
                where=str(options.embeddings),
                why=f"it has {', '.join(list(found)[:5])}",
            )
        empty = found["empty"].read() if "empty" in found else None
        return Condition(found["context"].read(), empty, guidance)


def _ready(pipe: Any, options: argparse.Namespace) -> Any:
    """The pipe with the scheduler that was asked for and, if quantized, its scales as tables."""
    from dataclasses import replace

    from tdquant.clock import is_quantized
    from tdquant.diffusion import make_scheduler
    from tdquant.errors import ModelError
    from tdquant.freezing import freeze, is_frozen
    from tdquant.layers import quantized_layers
    from tdquant.recipe import FLOAT

    kind = "ddpm" if options.vanilla else options.scheduler
    if kind:
        pipe = replace(pipe, scheduler=make_scheduler(kind, pipe.scheduler))
    layers = [layer for _, layer in quantized_layers(pipe.unet)]
    for name, operand in (("n_bit_w", "weight_quantizer"), ("n_bit_a", "input_quantizer")):
        grids = [getattr(getattr(layer, operand), "grid", None) for layer in layers]
        bits = Counter(grid.bits for grid in grids if grid is not None)
        most = bits.most_common(1)[0][0] if bits else 0
        asked = getattr(options, name)
        if asked is not None and asked % FLOAT != most:
            raise ModelError(
                f"{name}={asked}, but the checkpoint has {most or 'no'} bits",
                where=str(options.ckpt),
                fix=f"leave --{name} away: the checkpoint knows",
            )
    if not is_quantized(pipe.unet) or is_frozen(pipe.unet):
        return pipe
    return replace(pipe, unet=freeze(pipe.unet))
