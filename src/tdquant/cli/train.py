"""``tdquant train``, and ``main.py`` of the published implementation, flag for flag."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tdquant.cli.launch import INTERRUPTED, leave_group, own_share, spread
from tdquant.cli.options import add_command, changed_flags, picked, shared, truth
from tdquant.cli.published import add_train_flags

_FIXED = (
    "base", "model", "name", "postfix", "out", "seed", "scale_lr", "weights", "activations",
    "scale", "rates", "step_rate", "scheme", "distill",
)  # fmt: skip
"""Options that a run keeps when it goes on."""


def add(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        run,
        overrides=True,
        help="quantization-aware training from a configuration",
        description="Quantizes the model of a latent-diffusion configuration, calibrates its "
        "scales on noised training images and trains it, in a folder of its own. Run again, the "
        "same command goes on where it stopped.",
        epilog="Further arguments KEY.PATH=VALUE change the configuration, such as "
        "data.params.batch_size=8 or tdquant.steps=1000. On several machines: accelerate launch. "
        "The flags of the published main.py are understood too.",
        allow_abbrev=False,
        parents=[_own_flags()],
    )
    add_train_flags(parser, hidden=True)


def published_parser() -> argparse.ArgumentParser:
    """The parser of ``main.py``."""
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Quantizes and trains the model of a latent-diffusion configuration. Without "
        "--train True it only calibrates and freezes, as published.",
        allow_abbrev=False,
        parents=[_own_flags()],
    )
    add_train_flags(parser)
    parser.set_defaults(run=run, parser=parser, takes_overrides=True, train=False)
    return parser


def _own_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        add_help=False,
        parents=[
            shared("out", "seed", "gpus", "threads", "quiet", weights=8, activations=8),
        ],
    )
    flag = parser.add_argument
    flag("-b", "--base", nargs="+", metavar="CFG", help="YAML configurations; later ones win")
    flag("--model", "--ckpt", help="what to start from: .ckpt, .safetensors, a run, an embedded "
         "model")  # fmt: skip
    flag("-t", "--train", type=truth, nargs="?", const=True, default=True, metavar="BOOL",
         help="False: calibrate and freeze only")  # fmt: skip
    flag("--scale-lr", type=truth, nargs="?", const=True, default=True, metavar="BOOL",
         help="learning rate = base rate x processes x batch x accumulation "
         "(default: True)")  # fmt: skip
    flag("--scale", help="activation scales: temporal, static (default), static-log, dynamic, "
         "table, pact, nipq, auto")  # fmt: skip
    flag("--steps", type=int, help="optimizer steps in all (default: tdquant.steps of the "
         "configuration)")  # fmt: skip
    flag("-n", "--name", help="name of the run (default: that of the configuration)")
    flag("-l", "--logdir", type=Path, default=Path("logs"), help="where runs are (default: logs)")
    flag("-r", "--resume", metavar="RUN", help="folder of a run to go on with")
    flag("--rates", help="learning rates of scales: equal or published")
    flag("--step-rate", type=float, metavar="X", help="learning rate of activation scales: X "
         "times the network's (default: by --rates)")  # fmt: skip
    flag("--scheme", help="published: grids, starts and scale networks of the published code "
         "(default: ours)")  # fmt: skip
    flag("--distill", type=float, metavar="SHARE", help="learn from the float model's output, "
         "0 to 1")  # fmt: skip
    flag("--correct", type=int, nargs="?", const=32, metavar="SAMPLES", help="in the end fit a "
         "gain and a bias of the output over time, which take grain out of samples of few bits "
         "(on 32 samples)")  # fmt: skip
    flag("--recompute", action="store_true", help="gradient checkpointing: less memory, more time")
    flag("--workers", type=int, help="processes that read data (default: data.params.num_workers)")
    return parser


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    status = spread(options.gpus, [*options.words, "--train", str(options.train)])
    if status is not None:
        return status
    from tdquant.lab.runs import run_training

    job = _resumed(options) if options.resume else _described(options)
    data = (job["config"].get("data") or {}).get("params") or {}
    workers = data.get("num_workers") or 0 if options.workers is None else options.workers
    if not options.train:
        print("--train False: calibrates and freezes, without training")
    try:
        trained = run_training(
            **job,
            train_scales=options.train,
            workers=workers,
            report=print,
            **picked(options, "recompute", "progress"),
        )
    finally:
        leave_group()
    return 0 if trained is None or trained.finished else INTERRUPTED


def _described(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``run_training`` from configurations and flags."""
    from tdquant.errors import ConfigError
    from tdquant.files.config import read_config, training_options
    from tdquant.models.compvis.configuration import check_latent_diffusion
    from tdquant.recipe import FLOAT

    if not options.base:
        raise ConfigError("no configuration", fix="--base FILE.yaml, or --resume RUN")
    where = " + ".join(options.base)
    config = read_config(options.base, options.overrides)
    check_latent_diffusion(config, where)
    names = ("seed", "steps", "rates", "step_rate", "scheme", "scale", "correct")
    given = picked(options, *names)
    given = {name: value for name, value in given.items() if value is not None}
    settings = training_options(config | {"tdquant": (config.get("tdquant") or {}) | given}, where)
    base = settings["rate"] or config["model"].get("base_learning_rate")
    if base is None:
        raise ConfigError(
            "no learning rate", where="model.base_learning_rate", fix="such as 5.0e-5"
        )
    data = (config.get("data") or {}).get("params") or {}
    rate, words = learning_rate(float(base), options.scale_lr, data, settings["accumulate"])
    print(f"learning rate {rate:.3g} ({words})")
    weights, activations = (bits or FLOAT for bits in (options.weights, options.activations))
    recipe = _recipe(weights, activations, settings)
    name = options.name or Path(options.base[-1]).stem
    name += f"_{options.postfix}" if options.postfix else ""
    return {
        "config": config,
        "options": settings,
        "out": options.out or options.logdir / name,
        "recipe": None if min(weights, activations) == FLOAT else recipe,
        "checkpoint": options.model,
        "rate": rate,
        "distill": options.distill,
    }


def _recipe(weights: int, activations: int, settings: dict[str, Any]) -> Any:
    """The recipe for bits and training settings."""
    from tdquant.recipe import Recipe

    scale = settings["scale"] or "static"
    if settings["scheme"] == "published":
        return Recipe.published(weights, activations, dynamic=scale == "temporal")
    temporal = {k: settings[k] for k in ("depth", "dropout") if settings[k] is not None}
    chosen = {k: settings[k] for k in ("granularity", "time_weights") if settings[k] is not None}
    return Recipe(weights, activations, scale, temporal=temporal, **chosen)


def _resumed(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments that a run was started with; only the number of steps and the correction at
    the end may be others.

    Raises:
        ConfigError: Others are given.
    """
    from tdquant.errors import ConfigError
    from tdquant.lab.run_folder import RunFolder
    from tdquant.recipe import Recipe

    useless = [*changed_flags(options, _FIXED), *options.overrides]
    if useless:
        raise ConfigError(
            f"--resume with {', '.join(useless)}",
            why="a run goes on with what it was started with",
            fix="--resume RUN alone, or with --steps",
        )
    asked = RunFolder(Path(options.resume)).asked()
    recipe = asked.pop("recipe")
    del asked["batch"]  # it follows from the configuration
    job = asked | {"out": options.resume, "recipe": recipe and Recipe.from_dict(recipe)}
    for name in ("steps", "correct"):
        if getattr(options, name) is not None:
            job["options"][name] = getattr(options, name)
    return job


def learning_rate(
    base: float, scaled: bool, data: dict[str, Any], accumulate: int
) -> tuple[float, str]:
    """The learning rate, and in words where it comes from."""
    if not scaled:
        return base, "the base rate: --scale_lr False"
    processes, batch = own_share()[1], int(data.get("batch_size", 32))
    rate = base * accumulate * processes * batch
    return rate, f"{base:.3g} x {accumulate} parts x {processes} processes x {batch} images"
