"""``tdquant bench``: one model on several backends, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Adds the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="time, memory, size and error of a model on several backends",
        description="Measures a quantized model on several backends, each in a process of its "
        "own, taking turns. An embedded model is quantized and calibrated first; a saved one is "
        "taken as it is.",
    )
    flag = parser.add_argument
    flag("--model", default="cats-ddpm", help="an embedded model's name (default: cats-ddpm), or "
         "a folder that tdq.save wrote")  # fmt: skip
    flag("--backends", help="names with commas between: float, frozen (simulated), auto, "
         "cpu, openvino, onednn, reference, ..., or files of tdquant export (default: all that "
         "need no GPU and are no reference)")  # fmt: skip
    flag("--weights", type=int, default=4, help="bits of an embedded model's weights (default: 4)")
    flag("--activations", type=int, default=8, help="and of its activations (default: 8)")
    flag("--batch", type=int, default=1, help="images in a call (default: 1)")
    flag("--threads", type=int, help="threads of every backend (default: torch's own choice)")
    flag("--steps", type=int, default=50, help="denoising steps of an image (default: 50)")
    flag("--runs", type=int, default=20, help="timed calls of each backend (default: 20)")
    flag("--checked", type=int, default=5, help="timesteps at which errors are measured (5)")
    flag("--shape", help="shape of a sample, such as 3,32,32, where the model does not tell")
    flag("--device", default="cpu", help="where the models are first: cpu or cuda (default: cpu)")
    flag("--seed", type=int, default=0, help="seed of all noise (default: 0)")
    flag("--out", type=Path, help="JSON file for the results")
    flag("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    import torch

    from tdquant.cli.switches import shape_of
    from tdquant.errors import TDQError
    from tdquant.lab.bench import run_bench, subject_from_embedded, subject_from_folder
    from tdquant.lab.bench.run import check_backends
    from tdquant.lab.bench.table import text_table
    from tdquant.lowering import BACKENDS
    from tdquant.models import EMBEDDED
    from tdquant.recipe import Recipe

    numbers = ("batch", "threads", "steps", "runs", "checked")
    wrong = [f"--{n} {v}" for n in numbers if (v := getattr(options, n)) is not None and v < 1]
    if wrong:
        raise TDQError(", ".join(wrong), where="bench", fix="at least 1")
    slow = {"reference"} | (set() if torch.cuda.is_available() else {"cuda"})
    usual = ["float", "frozen", *(name for name in sorted(BACKENDS) if name not in slow)]
    backends = options.backends.split(",") if options.backends else usual
    check_backends(backends)
    shape = shape_of(options.shape)
    threads = options.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    if options.model in EMBEDDED and not Path(options.model).exists():
        recipe = Recipe(weights=options.weights, activations=options.activations)
        opened = subject_from_embedded(
            options.model, recipe, options.seed, progress=not options.quiet
        )
    else:
        opened = subject_from_folder(Path(options.model), shape)
    with opened as subject:
        result = run_bench(
            subject,
            backends,
            batch=options.batch,
            threads=threads,
            steps=options.steps,
            runs=options.runs,
            checked=options.checked,
            device=options.device,
            seed=options.seed,
            progress=not options.quiet,
        )
    print(text_table(result))
    if options.out:
        result.write_json(options.out)
        print(f"wrote {options.out}")
