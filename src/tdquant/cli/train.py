"""``tdquant train``, and ``main.py`` of the published implementation, flag for flag."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tdquant.cli.launch import leave_group, spread
from tdquant.cli.switches import changed_flags, overrides_among, positive, truth
from tdquant.recipe import Recipe


def add(commands: Any) -> None:
    """Adds the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train",
        help="quantization-aware training from a configuration",
        description="Quantizes the model of a latent-diffusion configuration, calibrates its "
        "scales on noised training images and trains it, in a folder of its own. Run again, the "
        "same command goes on where it stopped.",
        epilog="Further arguments KEY.PATH=VALUE change the configuration, such as "
        "data.params.batch_size=8 or tdquant.steps=1000. On several machines: accelerate launch.",
        allow_abbrev=False,
    )
    add_train_arguments(parser)
    parser.set_defaults(run=run, overridden=parser)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags: first the published ones, then further ones."""
    flag = parser.add_argument
    flag("-b", "--base", nargs="+", metavar="CFG", help="YAML configurations; later ones win")
    flag("--ckpt", help="what to start from: .ckpt, .safetensors, a run, an embedded model")
    flag(
        "-t", "--train", type=truth, nargs="?", const=True, metavar="BOOL",
        help="False: calibrate and freeze only (default: True; False for main.py, as published)",
    )  # fmt: skip
    flag(
        "--scale_lr", type=truth, nargs="?", const=True, default=True, metavar="BOOL",
        help="learning rate = base rate x processes x batch x accumulation (default: True)",
    )  # fmt: skip
    flag("--n_bit_w", type=int, default=8, metavar="N", help="bits of weights; 0: float (8)")
    flag("--n_bit_a", type=int, default=8, metavar="N", help="bits of activations; 0: float (8)")
    flag("-n", "--name", help="name of the run (default: that of the configuration)")
    flag("--use_dynamic", action="store_true", help="scales follow the timestep (TDQ)")
    flag("-f", "--postfix", default="", help="appended to the name")
    flag("-l", "--logdir", type=Path, default=Path("logs"), help="where runs are (default: logs)")
    flag("-s", "--seed", type=int, help="seed of everything (default: the configuration's, 23)")
    flag(
        "-r",
        "--resume",
        "--resume_from_checkpoint",
        metavar="RUN",
        help="folder of a run to go on with",
    )
    flag("-g", "--gpus", help="device numbers, such as 0,1: one process each")
    flag(
        "--max_steps", type=int, help="steps in all (default: tdquant.steps of the configuration)"
    )
    flag("--accelerator", help=argparse.SUPPRESS)
    flag("--no-test", nargs="?", const=True, type=truth, help=argparse.SUPPRESS)
    more = parser.add_argument_group("further flags")
    flag = more.add_argument
    flag("--scale", help="law of the scales: temporal, static, dynamic, table, pact, nipq, auto")
    flag("--rates", help="rates of scales: equal or published")
    flag(
        "--scheme",
        help="published: grids, starts and scale networks of the published code (default: ours)",
    )
    flag(
        "--distill",
        type=float,
        metavar="SHARE",
        help="learn from the float model's output, 0 to 1",
    )
    flag(
        "--correct",
        type=int,
        nargs="?",
        const=32,
        metavar="SAMPLES",
        help="in the end fit a gain of the output over time, which takes grain out of samples of "
        "few bits (on 32 samples)",
    )
    flag("--recompute", action="store_true", help="gradient checkpointing: less memory, more time")
    flag("--workers", type=int, help="processes that read data (default: data.params.num_workers)")
    flag("--threads", type=positive, help="threads of torch")
    flag("--quiet", action="store_true", help="no progress bars")


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    if options.train is None:
        options.train = not options.published
    arguments = sys.argv[1:]
    if options.published:
        arguments = ["train", *arguments, "--train", str(options.train)]
    status = spread(options.gpus, arguments)
    if status is not None:
        return status
    import torch

    from tdquant.lab.runs import run_training

    if options.threads:
        torch.set_num_threads(options.threads)
    job = _resumed(options) if options.resume else _described(options)
    data = (job["config"].get("data") or {}).get("params") or {}
    workers = data.get("num_workers") or 0 if options.workers is None else options.workers
    if not options.train:
        print("--train False: calibrates and freezes, without training")
    try:
        trained = run_training(
            **job,
            recompute=options.recompute,
            train_scales=options.train,
            workers=workers,
            progress=not options.quiet,
        )
    finally:
        leave_group()
    return 0 if trained is None or trained.finished else 130


def _described(options: argparse.Namespace) -> dict[str, Any]:
    """What the configurations and flags describe, as arguments of ``run_training``."""
    from tdquant.errors import ConfigError
    from tdquant.files.config import read_config, training_options
    from tdquant.models.compvis.configuration import check_latent_diffusion
    from tdquant.recipe import FLOAT

    bases, changes = overrides_among(options.base or [])
    if not bases:
        raise ConfigError("no configuration", fix="--base FILE.yaml, or --resume RUN")
    where = " + ".join(bases)
    config = read_config(bases, [*changes, *options.overrides])
    check_latent_diffusion(config, where)
    flags = {
        "seed": options.seed,
        "steps": options.max_steps,
        "rates": options.rates,
        "scheme": options.scheme,
        "scale": options.scale or ("temporal" if options.use_dynamic else None),
        "correct": options.correct,
    }
    given = {k: v for k, v in flags.items() if v is not None}
    settings = training_options(config | {"tdquant": (config.get("tdquant") or {}) | given}, where)
    base = settings["rate"] or config["model"].get("base_learning_rate")
    if base is None:
        raise ConfigError(
            "no learning rate", where="model.base_learning_rate", fix="such as 5.0e-5"
        )
    data = (config.get("data") or {}).get("params") or {}
    rate, words = learning_rate(float(base), options.scale_lr, data, settings["accumulate"])
    print(f"learning rate {rate:.3g} ({words})")
    weights, activations = (bits or FLOAT for bits in (options.n_bit_w, options.n_bit_a))
    recipe = _recipe(weights, activations, settings)
    name = options.name or Path(bases[-1]).stem
    return {
        "config": config,
        "options": settings,
        "out": options.logdir / (name + (f"_{options.postfix}" if options.postfix else "")),
        "recipe": None if min(weights, activations) == FLOAT else recipe,
        "checkpoint": options.ckpt,
        "rate": rate,
        "distill": options.distill,
    }


def _recipe(weights: int, activations: int, settings: dict[str, Any]) -> Recipe:
    """The recipe of bits and of options of training."""
    scale = settings["scale"] or "static"
    if settings["scheme"] == "published":
        return Recipe.published(weights, activations, dynamic=scale == "temporal")
    temporal = {k: settings[k] for k in ("depth", "dropout") if settings[k] is not None}
    chosen = {k: settings[k] for k in ("granularity", "time_weights") if settings[k] is not None}
    return Recipe(weights, activations, scale, temporal=temporal, **chosen)


def _resumed(options: argparse.Namespace) -> dict[str, Any]:
    """What a run was started with; only the number of steps and the correction at the end
    may be others.
    """
    from tdquant.errors import ConfigError
    from tdquant.lab.runs import RunFolder

    fixed = (
        "base", "ckpt", "name", "postfix", "seed", "scale_lr", "n_bit_w", "n_bit_a", "use_dynamic",
        "scale", "rates", "scheme", "distill",
    )  # fmt: skip
    idle = changed_flags(options, fixed)
    if idle or options.overrides:
        raise ConfigError(
            f"--resume with {', '.join([*idle, *options.overrides])}",
            why="a run goes on with what it was started with",
            fix="--resume RUN alone, or with --max_steps",
        )
    asked = RunFolder(Path(options.resume)).asked()
    recipe = asked.pop("recipe")
    del asked["batch"]  # it follows from the configuration
    job = asked | {"out": options.resume, "recipe": recipe and Recipe.from_dict(recipe)}
    if options.max_steps is not None:
        job["options"]["steps"] = options.max_steps
    if options.correct is not None:
        job["options"]["correct"] = options.correct
    return job


def learning_rate(
    base: float, scaled: bool, data: dict[str, Any], accumulate: int
) -> tuple[float, str]:
    """The learning rate, and in words where it comes from."""
    if not scaled:
        return base, "the base rate: --scale_lr False"
    import os

    processes, batch = int(os.environ.get("WORLD_SIZE", 1)), int(data.get("batch_size", 32))
    rate = base * accumulate * processes * batch
    return rate, f"{base:.3g} x {accumulate} parts x {processes} processes x {batch} images"
