"""``tdquant export``: a quantized model, or a whole pipeline, as files of another engine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tdquant.cli.options import add_command, call_arguments, changed_flags, picked, shared
from tdquant.files.looking import files_below, is_file

_REFUSED = {"exported": "the model that it was exported from"}


def add(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        run,
        overrides=True,
        help="write a quantized model or pipeline for OpenVINO or ONNX Runtime",
        description="Writes a frozen model as a graph of another engine, its timestep an input: "
        "one file, .xml (OpenVINO) or .onnx, serves every scheduler and number of steps. Of a "
        "pipeline it writes a folder that optimum-intel and tdq.open_pipeline read.",
        epilog="KEY=VALUE are arguments of the run of the pipeline whose first call is the "
        "example, the value JSON or a word: height=512 width=512; of other models they change "
        "the configuration.",
        parents=[shared("config", "ema", "shape", "dtype", "quiet", required=["out"])],
    )
    flag = parser.add_argument
    flag("--model", "--pipeline", required=True, help="a folder of tdq.save, a run, a quantized "
         "checkpoint file; or the folder of a pipeline, as tdquant quantize writes it, or its "
         "name on the hub")  # fmt: skip
    flag(
        "--portable",
        action="store_true",
        help="right without a session on x86 without VNNI, and slower everywhere",
    )
    flag("--weights-8bit", action="store_true", help="8-bit weights for text encoders and "
         "autoencoder of a pipeline")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from tdquant.errors import TDQError
    from tdquant.files.places import check_new_folder, check_writable, check_writable_file
    from tdquant.lab.opening import KINDS, kind_of
    from tdquant.lowering.exporters import check_suffix

    kind = kind_of(options.model, _REFUSED)
    whole = kind == "pipeline"
    useless = changed_flags(
        options,
        ("shape", "portable", "config", "ema") if whole else ("weights_8bit", "dtype"),
    )
    if useless:
        raise TDQError(f"{' '.join(useless)} with {KINDS[kind]}", fix="tdquant export --help")
    if whole:
        check_new_folder(options.out)
        check_writable(options.out)
    else:
        check_suffix(options.out)
        check_writable_file(options.out)
    file = _export_pipeline(options) if whole else _export_model(options)
    files = files_below(file) if whole else {file, file.with_suffix(".bin")}
    size = sum(f.stat().st_size for f in files if is_file(f))
    print(f"wrote {file}, {size / 1e6:.2f} MB")


def _export_pipeline(options: argparse.Namespace) -> Path:
    from tdquant.integrations.pipelines import export_pipeline
    from tdquant.lab.opening import open_model

    return export_pipeline(
        open_model(options.model, dtype=options.dtype).model,
        options.out,
        example=call_arguments(options.overrides) or None,
        **picked(options, "weights_8bit", "progress"),
    )


def _export_model(options: argparse.Namespace) -> Path:
    import torch

    from tdquant.lab.calling import check_call
    from tdquant.lab.opening import open_model
    from tdquant.lowering import export

    opened = open_model(
        options.model, alone=True, **picked(options, "config", "ema", "overrides", "shape")
    )
    frozen, shape = opened.frozen(), opened.model.shape
    fix = (
        "--pipeline FOLDER with its pipeline, whose calls have all that it takes; tdq.export("
        "model, path, example=) from Python; --shape if its samples have another"
    )
    check_call(frozen, shape, torch.zeros(1, dtype=torch.long), options.model, fix)
    example = (torch.zeros(1, *shape, dtype=torch.float32), 0)
    return export(frozen, options.out, example, portable=options.portable)
