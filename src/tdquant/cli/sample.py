"""``tdquant sample``, and ``sample.py`` of the published implementation, flag for flag."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tdquant.cli.launch import own_share, spread
from tdquant.cli.options import add_command, picked, shared, unicode_text
from tdquant.cli.published import add_sample_flags
from tdquant.files.looking import exists

_REFUSED = {
    "pipeline": "tdquant evaluate, or the pipeline itself",
    "exported": "the model that it was exported from",
}


def add(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        run,
        overrides=True,
        help="sample PNGs from a checkpoint, a run, a saved or an embedded model",
        description="Samples images into OUT/000000.png and so on, exactly as many as asked. "
        "Image i depends on the seed and on i alone; run again, the command goes on where it "
        "stopped.",
        epilog="Without --out images go to samples/_. Further arguments KEY.PATH=VALUE change the "
        "configuration. The flags of the published sample.py are understood too.",
        allow_abbrev=False,
        parents=[_own_flags()],
    )
    add_sample_flags(parser, hidden=True)


def published_parser() -> argparse.ArgumentParser:
    """The parser of ``sample.py``."""
    parser = argparse.ArgumentParser(
        prog="sample.py",
        description="Samples images into LOGDIR/NAME/000000.png and so on.",
        allow_abbrev=False,
        parents=[_own_flags()],
    )
    add_sample_flags(parser)
    parser.set_defaults(run=run, parser=parser, takes_overrides=True)
    return parser


def _own_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        add_help=False,
        parents=[
            shared(
                "config", "ema", "text_encoder", "scheduler", "eta", "shape", "out", "device",
                "gpus", "threads", "quiet", steps=200, batch=32, seed=23,
            )
        ],
    )  # fmt: skip
    flag = parser.add_argument
    flag("--model", "--ckpt", required=True, help="a .ckpt or .safetensors file, a run, a folder "
         "of tdq.save, or an embedded model's name")  # fmt: skip
    flag("-n", "--images", type=int, default=5, help="number of images (default: 5)")
    flag("--start", type=int, default=0, help="index of the first image (default: 0)")
    flag("--pipe", metavar="MODEL", help="for a folder of tdq.save: the model that it was made "
         "from")  # fmt: skip
    flag("--embeddings", type=Path, metavar="FILE", help="what a text-to-image model is to show: "
         "tensors context (N, tokens, width) and, for guidance, empty (1, tokens, width), in "
         ".safetensors or of torch.save; image i takes row i modulo N")  # fmt: skip
    flag("--prompt", type=unicode_text, action="append", metavar="TEXT", help="the same as text; "
         "may be repeated")  # fmt: skip
    flag("--guidance", type=float, help="guidance scale (default: 7.5 with --prompt, else 1)")
    return parser


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    status = spread(options.gpus, options.words)
    if status is not None:
        return status
    from tdquant.errors import TDQError
    from tdquant.files.places import check_writable_folder
    from tdquant.lab.opening import open_model
    from tdquant.lab.runs import sample_pictures
    from tdquant.support.devices import default_device

    if options.vanilla and options.scheduler not in (None, "ddpm"):
        raise TDQError(
            f"--vanilla with --scheduler {options.scheduler}",
            why="--vanilla is DDPM with all timesteps",
            fix="one of them",
        )
    folder = options.out or options.logdir / options.name
    check_writable_folder(folder)
    rank, world = own_share()
    opened = open_model(
        options.model,
        parts=options.pipe,
        scheduler="ddpm" if options.vanilla else options.scheduler,
        refused=_REFUSED,
        **picked(options, "config", "ema", "overrides", "text_encoder", "shape"),
    )
    pipe = _ready(opened, options)
    steps = len(pipe.scheduler.alphas_cumprod) if options.vanilla else options.steps
    source, began = Path(options.model), time.perf_counter()
    written = sample_pictures(
        pipe,
        folder,
        options.images,
        steps=steps,
        condition=_condition(pipe, options),
        settings={
            "ckpt": str(source.resolve()) if exists(source) else options.model,
            "scheduler": type(pipe.scheduler).__name__,
            "ema": options.ema,
            "overrides": options.overrides,
        },
        rank=rank,
        world=world,
        device=options.device or default_device(),
        **picked(options, "batch", "seed", "start", "eta", "progress"),
    )
    took = time.perf_counter() - began
    speed = f", {written / took:.2f} images/s" if written else ": they were there already"
    share = f"process {rank}: " if world > 1 else ""
    print(f"{share}{written} images in {folder}, {steps} steps, {took:.1f} s{speed}")
    return 0


def _condition(pipe: Any, options: argparse.Namespace) -> Any:
    """The condition of all images, or None for an unconditional model.

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


def _ready(opened: Any, options: argparse.Namespace) -> Any:
    """The pipe with a frozen denoiser, if it is quantized; checks ``--n_bit_w`` and ``--n_bit_a``.

    Raises:
        ModelError: The checkpoint has other bits.
    """
    from dataclasses import replace

    from tdquant.clock import is_quantized
    from tdquant.errors import ModelError
    from tdquant.layers import quantized_layers
    from tdquant.recipe import FLOAT

    pipe = opened.model
    layers = [layer for _, layer in quantized_layers(pipe.unet)]
    for name, operand in (("n_bit_w", "weight_quantizer"), ("n_bit_a", "input_quantizer")):
        grids = [getattr(getattr(layer, operand), "grid", None) for layer in layers]
        bits = Counter(grid.bits for grid in grids if grid is not None)
        most = bits.most_common(1)[0][0] if bits else 0
        asked = getattr(options, name)
        if asked is not None and asked % FLOAT != most:
            raise ModelError(
                f"{name}={asked}, but the checkpoint has {most or 'no'} bits",
                where=options.model,
                fix=f"leave --{name} out: the checkpoint has its own bits",
            )
    return replace(pipe, unet=opened.frozen()) if is_quantized(pipe.unet) else pipe
