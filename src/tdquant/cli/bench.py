"""``tdquant bench``: one model on several backends, side by side."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import Any

from tdquant.cli.options import add_command, changed_flags, picked, positive, shared

_REFUSED = {
    "pipeline": "the folder of its quantized denoiser, such as PIPELINE/unet",
    "exported": "the saved model that it was made from, and the file in --backends",
}


def add(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        run,
        overrides=True,
        help="time, memory, size and error of a model on several backends",
        description="Measures a quantized model on several backends, each in a process of its "
        "own, taking turns. An embedded model is quantized and calibrated first.",
        parents=[
            shared(
                "config", "ema", "threads", "shape", "out", "quiet",
                weights=4, activations=8, batch=1, steps=50, device="cpu", seed=0,
            )
        ],
    )  # fmt: skip
    flag = parser.add_argument
    flag("--model", default="cats-ddpm", help="an embedded model's name, a folder of tdq.save or "
         "of a run, or a quantized checkpoint file (default: cats-ddpm)")  # fmt: skip
    flag("--backends", help="names with commas between: float, frozen (simulated), auto, cpu, "
         "openvino, onednn, reference, ..., or files of tdquant export (default: all that need "
         "no GPU and are no reference)")  # fmt: skip
    flag("--runs", type=positive, default=20, help="timed calls of each backend (default: 20)")
    flag("--checked", type=positive, default=5, help="timesteps at which errors are measured (5)")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    import torch

    from tdquant.files.places import check_writable_file
    from tdquant.lab.bench.run import check_backends, run_bench
    from tdquant.lab.bench.table import text_table
    from tdquant.lowering import BACKENDS

    slow = {"reference"} | (set() if torch.cuda.is_available() else {"cuda"})
    usual = ["float", "frozen", *(name for name in sorted(BACKENDS) if name not in slow)]
    backends = options.backends.split(",") if options.backends else usual
    check_backends(backends)
    if options.out:
        check_writable_file(options.out)
    with contextlib.ExitStack() as stack:
        result = run_bench(
            _subject(options, stack),
            backends,
            threads=torch.get_num_threads(),
            **picked(options, "batch", "steps", "runs", "checked", "device", "seed", "progress"),
        )
    print(text_table(result))
    if options.out:
        result.write_json(options.out)
        print(f"wrote {options.out}")
    result.check()


def _subject(options: argparse.Namespace, stack: contextlib.ExitStack) -> Any:
    """The model to measure, which lasts as long as the stack."""
    from tdquant.errors import TDQError
    from tdquant.lab.bench import subject_from_embedded, subject_from_folder
    from tdquant.lab.opening import kind_of, open_model
    from tdquant.recipe import Recipe
    from tdquant.storage import save

    embedded = kind_of(options.model) == "embedded"
    unused = ("config", "ema", "shape") if embedded else ("weights", "activations")
    useless = changed_flags(options, unused) + (list(options.overrides) if embedded else [])
    if useless:
        what = "an embedded model" if embedded else "a model that is quantized already"
        raise TDQError(f"{' '.join(useless)} with {what}", fix="tdquant bench --help")
    if embedded:
        recipe = Recipe(weights=options.weights, activations=options.activations)
        made = subject_from_embedded(options.model, recipe, options.seed, options.progress)
        return stack.enter_context(made)
    opened = open_model(
        options.model,
        alone=True,
        refused=_REFUSED,
        **picked(options, "config", "ema", "overrides", "shape"),
    )
    folder = Path(options.model)
    if opened.kind != "saved":
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        folder = save(opened.frozen(), Path(scratch) / opened.model.name)
    found = subject_from_folder(folder, opened.model.shape, opened.model.scheduler, options.model)
    return stack.enter_context(found)
