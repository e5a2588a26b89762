"""``tdquant export``: a saved model, or a whole pipeline, as files of another engine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tdquant.cli.switches import argument_of, changed_flags


def add(commands: Any) -> None:
    """Adds the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "export",
        help="write a saved model or pipeline for OpenVINO or ONNX Runtime",
        description="Writes a frozen model as a graph of another engine, its timestep an input: "
        "one file serves every scheduler and number of steps. Of a pipeline it writes a folder "
        "that optimum-intel and tdq.open_pipeline read.",
        epilog="KEY=VALUE are arguments of the run of the pipeline whose first call is the "
        "example, the value JSON or a word: height=512 width=512.",
    )
    flag = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, help="folder that tdq.save wrote")
    what.add_argument("--pipeline", type=Path, metavar="DIR", help="folder that tdquant quantize "
                      "wrote")  # fmt: skip
    flag("--out", type=Path, required=True, help="file to write: .xml (OpenVINO) or .onnx; of a "
         "pipeline the folder")  # fmt: skip
    flag("--shape", help="shape of a sample, such as 3,32,32, where the model does not tell")
    flag(
        "--portable",
        action="store_true",
        help="right without a session on x86 without VNNI, and slower everywhere",
    )
    flag("--weights-8bit", action="store_true", help="8-bit weights for text encoders and "
         "autoencoder of a pipeline")  # fmt: skip
    flag("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run, overridden=parser)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from tdquant.errors import TDQError

    others = ("shape", "portable") if options.pipeline else ("weights-8bit", "quiet")
    strange = changed_flags(options, others)
    if not options.pipeline:
        strange += options.overrides
    if strange:
        kind = "--pipeline" if options.pipeline else "--model"
        raise TDQError(f"{' '.join(strange)} with {kind}", fix="tdquant export --help")
    file = _pipeline(options) if options.pipeline else _model(options)
    files = file.rglob("*") if options.pipeline else {file, file.with_suffix(".bin")}
    size = sum(f.stat().st_size for f in files if f.is_file())
    print(f"wrote {file}, {size / 1e6:.2f} MB")


def _pipeline(options: argparse.Namespace) -> Path:
    from tdquant.integrations.pipelines import export_pipeline

    return export_pipeline(
        options.pipeline,
        options.out,
        example=dict(argument_of(word) for word in options.overrides) or None,
        weights_8bit=options.weights_8bit,
        progress=not options.quiet,
    )


def _model(options: argparse.Namespace) -> Path:
    import torch

    from tdquant.cli.switches import shape_of
    from tdquant.errors import ModelError
    from tdquant.lab.bench.subject import sample_shape
    from tdquant.lowering import export
    from tdquant.storage import load

    shape = shape_of(options.shape)
    frozen = load(options.model)
    shape = shape or sample_shape(frozen)
    if shape is None:
        raise ModelError(
            "the shape of a sample is not known",
            where=str(options.model),
            fix="--shape, such as 3,32,32",
        )
    return export(frozen, options.out, (torch.zeros(1, *shape), 0), portable=options.portable)
