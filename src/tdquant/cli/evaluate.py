"""``tdquant evaluate``: samples models, judges their images, and compares records."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from tdquant.cli.launch import spread
from tdquant.cli.switches import argument_of, changed_flags, overrides_among, shape_of

QUICK = {
    "images": 200,
    "steps": 20,
    "paired": 32,
    "resamples": 20,
    "reference": "cats:heldout:500",
}
_SAMPLING = (
    "steps", "scheduler", "eta", "seed", "batch", "backend", "against", "paired", "no-paired",
    "lpips", "pipe", "shape", "config", "no-ema",
)  # fmt: skip
"""Flags that say nothing of images that were made elsewhere."""
USUAL = {"images": 5000, "steps": 50, "paired": 256, "resamples": 100, "reference": "cats-heldout"}


def add(commands: Any) -> None:
    """Adds the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "evaluate",
        help="sample a model and judge its images; compare records",
        description="Samples images, measures them against a reference set with confidence "
        "intervals, compares them with the float model's from the same noise, and writes all of "
        "it with its circumstances to RUN/record.json. Run again, the command goes on where it "
        "stopped; with more images it keeps those that are there.",
        epilog="KEY=VALUE changes a checkpoint's configuration, or is an argument of a diffusers "
        "pipeline: guidance_scale=5. Examples: tdquant evaluate cats-ddpm --out runs/float; "
        "tdquant evaluate model-w4a4 --pipe cats-ddpm --out runs/w4a4; tdquant evaluate --compare "
        "runs/float runs/w4a4; tdquant evaluate --images DIR --reference cifar10:test --out r.",
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("models", nargs="*", metavar="MODEL", help="an embedded model's name; a folder that "
         "tdq.save wrote, of a training run, or of a diffusers pipeline; or a checkpoint file "
         "with --config. Several go to folders of their own below RUN")  # fmt: skip
    flag("-o", "--out", type=Path, metavar="RUN", help="folder to write")
    flag("--compare", nargs="+", type=Path, metavar="RUN", help="print existing records side by "
         "side, and what must not be compared")  # fmt: skip
    flag("-n", "--images", metavar="N|DIR", help="number of images to sample (default: 5000); or "
         "a folder of images that were made elsewhere, DIR, or DIR:COUNT for the first of "
         "them")  # fmt: skip
    flag(
        "--quick",
        action="store_true",
        help="few images, steps and resamples: to see that it works",
    )
    flag("--quiet", action="store_true", help="no progress bars")

    flag = parser.add_argument_group("sampling").add_argument
    flag("--steps", type=int, help="sampler steps (default: 50)")
    flag("--scheduler", help="ddim, dpm++, euler, euler-a, unipc, ddpm (default: the model's)")
    flag("--eta", type=float, default=0.0, help="share of noise in DDIM (default: 0)")
    flag("--seed", type=int, default=0, help="seed of all noise (default: 0)")
    flag("--batch", type=int, help="images at a time (default: that of the images in RUN, or 64)")
    flag("--backend", default="auto", help="what runs a quantized model: openvino, "
         "onednn, cuda, reference, simulated, or auto (default; cpu on the CPU): the first that "
         "runs here")  # fmt: skip
    flag("--gpus", help="device numbers, such as 0,1: one process each, as torchrun and "
         "accelerate launch start them too")  # fmt: skip
    flag("--threads", type=int, help="threads of torch")
    flag("--prompts", type=Path, help="file of prompts, one a line: one image each, over and over")

    flag = parser.add_argument_group("judging").add_argument
    flag("--reference", help="cats-heldout (default); NAME:SPLIT:COUNT with cats, cifar10 or "
         "fashion-mnist; FOLDER or FOLDER:COUNT of images; .npz or .safetensors statistics; "
         "none")  # fmt: skip
    flag("--metrics", help="names with commas between: frechet, sfid, kid, is, precision, recall "
         "(default: frechet, kid, precision, recall; with inception all)")  # fmt: skip
    flag("--network", help="efficientnet-lite0 (default), or inception: the network of the FID")
    flag("--inception-weights", type=Path, metavar="FILE", help="its weights; implies it")
    flag("--download", action="store_true",
         help="fetch its published weights if they are nowhere; implies it")  # fmt: skip
    flag("--resize", type=int, metavar="SIDE", help="cut the centred square of images, and of "
         "reference images in a folder, and resize it for the network")  # fmt: skip
    flag("--resamples", type=int, help="what an interval is made from: subsets of the images, "
         "or draws of the bootstrap for means over them (default: 100); 0: none")  # fmt: skip
    flag("--clip", type=Path, metavar="DIR", help="CLIP model, to score images with their prompts")
    flag("--against", metavar="MODEL", help="model to compare with image by image (default: the "
         "float one, where a saved model's is known)")  # fmt: skip
    flag("--paired", type=int, help="images to compare so (default: 256)")
    flag("--no-paired", action="store_true", help="compare with no other model")
    flag(
        "--lpips",
        nargs="?",
        const=True,
        default=False,
        metavar="FILE",
        help="compare by LPIPS too, with AlexNet's weights from FILE or from a cache",
    )

    flag = parser.add_argument_group("opening models").add_argument
    flag("--pipe", metavar="MODEL", help="for a folder of tdq.save: the model that it was made "
         "from, whose noise schedule and first stage it takes (default: found where "
         "possible)")  # fmt: skip
    flag("--shape", help="shape of a sample, such as 3,32,32, where nothing tells")
    flag("--config", nargs="+", help="configuration of a checkpoint file")
    flag("--no-ema", action="store_true", help="the parameters themselves, not their averages")
    parser.set_defaults(run=run, overridden=parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    from tdquant.errors import TDQError

    if options.compare:
        _alone(options)
        return _compare(options.compare)
    given = None if options.images is None or options.images.isdigit() else options.images
    if given is not None and options.models:
        raise TDQError("models and a folder of images", fix="one of them")
    if given is not None:
        idle = changed_flags(options, _SAMPLING)
        if idle or options.overrides:
            raise TDQError(
                f"a folder of images with {', '.join([*idle, *options.overrides])}",
                why="they are there already, and no model is at hand",
                fix="leave it out",
            )
    if given is None and not options.models:
        taken = options.lpips if isinstance(options.lpips, str) else None
        raise TDQError(
            "nothing to evaluate",
            why=f"--lpips took {taken} for the file of its weights" if taken else "",
            fix=f"the model first: tdquant evaluate {taken} --lpips ..." if taken
            else "a MODEL, --images DIR, or --compare RUN RUN",
        )  # fmt: skip
    if options.out is None:
        raise TDQError("no folder to write", fix="--out RUN")
    status = spread(options.gpus, options.words)
    if status is not None:
        return status
    import torch

    from tdquant.calls.prompts import read_prompts
    from tdquant.lab.evaluation import comparison_table, evaluate_images, record_table
    from tdquant.lab.evaluation.picture_sets import counted_folder

    if options.threads:
        torch.set_num_threads(options.threads)
    prompts = None if options.prompts is None else read_prompts(options.prompts)
    judging = _judging(options) | {"prompts": prompts}
    if given is not None:
        folder, count = counted_folder(given)
        record = evaluate_images(folder or given, options.out, images=count, **judging)
        return _say(record_table(record), options.out, judging["rank"])
    outs = _folders(options)
    records = []
    for model, out in zip(options.models, outs, strict=True):
        records.append(_evaluate(model, out, options, judging))
        _say(record_table(records[-1]), out, judging["rank"])
    if len(records) > 1 and not judging["rank"]:
        print(comparison_table(records, [out.name for out in outs]))
    return 0


def _say(table: str, out: Path, rank: int) -> int:
    if not rank:
        print(f"{table}\n  {out / 'record.json'}")
    return 0


def _alone(options: argparse.Namespace) -> None:
    from tdquant.errors import TDQError

    if options.models or options.out or options.images:
        raise TDQError("--compare with something to evaluate", fix="--compare RUN RUN alone")


def _compare(runs: list[Path]) -> int:
    from tdquant.lab.evaluation import Record, comparison_table

    names = [str(run) for run in runs]
    print(comparison_table([Record.read(run) for run in runs], names))
    return 0


def _folders(options: argparse.Namespace) -> list[Path]:
    """The folder of each model's run: several lie below ``--out``."""
    from tdquant.errors import TDQError

    if len(options.models) == 1:
        return [options.out]
    names = [Path(model).name for model in options.models]
    if len(set(names)) < len(names):
        raise TDQError(
            f"models of one name: {', '.join(names)}", fix="evaluate them one by one, --out each"
        )
    return [options.out / name for name in names]


def _setting(options: argparse.Namespace, name: str) -> Any:
    """What was asked for, or the usual."""
    given = getattr(options, name)
    return (QUICK if options.quick else USUAL)[name] if given is None else given


def _judging(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments that sampled and given images share."""
    from tdquant.lab.metrics import load_network

    weights = options.inception_weights
    wanted = weights is not None or options.download
    name = options.network or ("inception" if wanted else "efficientnet-lite0")
    reference = _setting(options, "reference")
    return {
        "reference": None if reference == "none" else reference,
        "metrics": _words(options.metrics),
        "network": load_network(name, weights, download=options.download),
        "resamples": _setting(options, "resamples"),
        "resize": options.resize,
        "clip": options.clip,
        "rank": int(os.environ.get("RANK", 0)),
        "world": int(os.environ.get("WORLD_SIZE", 1)),
        "command": shlex.join(["tdquant", *options.words]),
        "progress": not options.quiet,
    }


def _words(text: str | None) -> list[str] | None:
    """The words between commas, or None if there are none."""
    return [word.strip() for word in (text or "").split(",") if word.strip()] or None


def _evaluate(model: str, out: Path, options: argparse.Namespace, judging: dict[str, Any]) -> Any:
    from tdquant.lab.evaluation import evaluate
    from tdquant.lab.evaluation.opening import open_subject
    from tdquant.models import Pipe

    config, changes = overrides_among(options.config or [])
    words = [*changes, *options.overrides]
    shape = shape_of(options.shape)
    opened = {
        "config": config or None,
        "ema": not options.no_ema,
        "scheduler": options.scheduler,
    }
    folder = (Path(model) / "model_index.json").exists()
    pipe, twin = open_subject(
        model,
        parts=options.pipe,
        shape=shape,
        overrides=() if folder else tuple(words),
        **opened,
    )
    against = None
    other = options.against or twin
    if other is not None and not options.no_paired:
        against, _ = open_subject(other, parts=options.pipe, shape=shape, **opened)
    return evaluate(
        pipe,
        out,
        images=int(_setting(options, "images")),
        steps=_setting(options, "steps"),
        seed=options.seed,
        batch=options.batch,
        eta=options.eta,
        against=against,
        paired=_setting(options, "paired"),
        lpips=options.lpips,
        backend=options.backend,
        call=None if isinstance(pipe, Pipe) else dict(argument_of(word) for word in words),
        source=str(Path(model).resolve()) if Path(model).exists() else model,
        **judging,
    )
