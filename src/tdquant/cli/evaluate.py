"""``tdquant evaluate``: samples models, judges their images, and compares records."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from tdquant.cli.launch import own_share, spread
from tdquant.cli.options import add_command, call_arguments, changed_flags, picked, shared
from tdquant.files.looking import exists

USUAL = {
    "images": 5000,
    "steps": 50,
    "paired": 256,
    "resamples": 100,
    "reference": "cats-heldout",
}
QUICK = {
    "images": 200,
    "steps": 20,
    "paired": 32,
    "resamples": 20,
    "reference": "cats:heldout:500",
}
_SAMPLING = (
    "steps", "scheduler", "eta", "seed", "batch", "backend", "against", "paired", "no_paired",
    "lpips", "pipe", "shape", "config", "ema", "dtype",
)  # fmt: skip
"""Options that mean nothing for images that were made elsewhere."""
_REFUSED = {"exported": "the model that it was exported from, with --backend openvino"}


def add(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        run,
        overrides=True,
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
        parents=[
            shared(
                "out", "quiet", "steps", "batch", "scheduler", "eta", "device", "dtype", "gpus",
                "threads", "config", "ema", "shape", seed=0,
            )
        ],
    )  # fmt: skip
    flag = parser.add_argument
    flag("models", nargs="*", metavar="MODEL", help="an embedded model's name; the folder of "
         "tdq.save, of a training run, or of a diffusers pipeline, or its name on the hub; or a "
         "checkpoint file with --config. Several go to folders of their own below "
         "--out")  # fmt: skip
    flag("--compare", nargs="+", type=Path, metavar="RUN", help="print existing records side by "
         "side, and what must not be compared")  # fmt: skip
    flag("-n", "--images", metavar="N|DIR", help="number of images to sample (default: 5000); or "
         "a folder of images that were made elsewhere, DIR, or DIR:COUNT for the first of "
         "them")  # fmt: skip
    flag("--quick", action="store_true", help="few images, steps and resamples: to see that it "
         "works")  # fmt: skip
    flag("--backend", default="auto", help="what runs a quantized model: openvino, onednn, cuda, "
         "reference, simulated, or auto (default; cpu on the CPU): the first that runs "
         "here")  # fmt: skip
    flag("--prompts", type=Path, help="file of prompts, one a line: one image each, over and over")
    flag("--pipe", metavar="MODEL", help="for a folder of tdq.save: the model that it was made "
         "from, whose noise schedule and first stage it takes (default: found where "
         "possible)")  # fmt: skip
    flag = parser.add_argument_group("judging").add_argument
    flag("--reference", help="cats-heldout (default); NAME:SPLIT:COUNT with cats, cifar10 or "
         "fashion-mnist; FOLDER or FOLDER:COUNT of images; .npz or .safetensors statistics; "
         "none")  # fmt: skip
    flag("--metrics", help="names with commas between: frechet, sfid, kid, is, precision, recall "
         "(default: frechet, kid, precision, recall; with inception all)")  # fmt: skip
    flag("--network", help="efficientnet-lite0 (default); inception: the network of the FID; "
         "vgg16 or alexnet: a second opinion")  # fmt: skip
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
    flag("--lpips", nargs="?", const=True, default=False, metavar="FILE", help="compare by LPIPS "
         "too, with AlexNet's weights from FILE or from a cache")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    if options.compare:
        return _compare(options)
    given = None if options.images is None or options.images.isdigit() else options.images
    _check(options, given)
    status = spread(options.gpus, options.words)
    if status is not None:
        return status
    from tdquant.calls.prompts import read_prompts
    from tdquant.lab.evaluation import comparison_table, evaluate_images, record_table
    from tdquant.lab.evaluation.folder import check_out
    from tdquant.lab.evaluation.picture_sets import counted_folder

    prompts = None if options.prompts is None else read_prompts(options.prompts)
    judging = _judging(options) | {"prompts": prompts}
    records, outs = [], [options.out]
    if given is not None:
        folder, count = counted_folder(given)
        records = [evaluate_images(folder or given, options.out, images=count, **judging)]
    else:
        outs = _folders(options)
        for out in outs:
            check_out(out)
    for i, out in enumerate(outs):
        if given is None:
            records.append(_evaluate(options.models[i], out, options, judging))
        if not judging["rank"]:
            print(f"{record_table(records[i])}\n  {out / 'record.json'}")
    if len(records) > 1 and not judging["rank"]:
        print(comparison_table(records, [out.name for out in outs]))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from tdquant.errors import TDQError
    from tdquant.lab.evaluation import Record, comparison_table

    if options.models or options.out or options.images:
        raise TDQError("--compare with something to evaluate", fix="--compare RUN RUN alone")
    runs = options.compare
    print(comparison_table([Record.read(run) for run in runs], [str(run) for run in runs]))
    return 0


def _check(options: argparse.Namespace, given: str | None) -> None:
    """Refuses options that contradict each other.

    Arguments:
        options: The options.
        given: The folder of images that were made elsewhere, or None.

    Raises:
        TDQError: They do.
    """
    from tdquant.errors import TDQError

    if given is not None and options.models:
        raise TDQError("models and a folder of images", fix="one of them")
    useless = [] if given is None else [*changed_flags(options, _SAMPLING), *options.overrides]
    if useless:
        raise TDQError(
            f"a folder of images with {', '.join(useless)}",
            why="the images exist, and no model samples",
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
    """An option, or its default under ``--quick`` or without."""
    given = getattr(options, name)
    return (QUICK if options.quick else USUAL)[name] if given is None else given


def _judging(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments that sampled and given images share."""
    from tdquant.lab.metrics import load_network

    weights = options.inception_weights
    inception = weights is not None or options.download
    name = options.network or ("inception" if inception else "efficientnet-lite0")
    reference = _setting(options, "reference")
    metrics = [word.strip() for word in (options.metrics or "").split(",") if word.strip()]
    rank, world = own_share()
    return {
        "reference": None if reference == "none" else reference,
        "metrics": metrics or None,
        "network": load_network(name, weights, download=options.download),
        "resamples": _setting(options, "resamples"),
        "rank": rank,
        "world": world,
        "command": shlex.join(["tdquant", *options.words]),
        **picked(options, "resize", "clip", "progress"),
    }


def _evaluate(model: str, out: Path, options: argparse.Namespace, judging: dict[str, Any]) -> Any:
    from tdquant.lab.evaluation import evaluate
    from tdquant.lab.opening import kind_of, open_model

    pipeline = kind_of(model, _REFUSED) == "pipeline"
    how = picked(options, "config", "ema", "shape", "scheduler", "dtype")
    how |= {"parts": options.pipe, "refused": _REFUSED}
    opened = open_model(model, overrides=[] if pipeline else options.overrides, **how)
    other = None if options.no_paired else options.against or opened.twin
    return evaluate(
        opened.model,
        out,
        images=int(_setting(options, "images")),
        steps=_setting(options, "steps"),
        against=None if other is None else open_model(other, **how).model,
        paired=_setting(options, "paired"),
        call=call_arguments(options.overrides) if pipeline else None,
        source=str(Path(model).resolve()) if exists(model) else model,
        **picked(options, "seed", "batch", "eta", "lpips", "backend", "device"),
        **judging,
    )
