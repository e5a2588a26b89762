"""``tdquant export``: a saved model as a file of another engine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Adds the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "export",
        help="write a saved model for OpenVINO or ONNX Runtime",
        description="Writes a frozen model as a graph of another engine, its timestep an input: "
        "one file serves every scheduler and number of steps.",
    )
    flag = parser.add_argument
    flag("--model", type=Path, required=True, help="folder that tdq.save wrote")
    flag("--out", type=Path, required=True, help="file to write: .xml (OpenVINO) or .onnx")
    flag("--shape", help="shape of a sample, such as 3,32,32, where the model does not tell")
    flag(
        "--portable",
        action="store_true",
        help="right without a session on x86 without VNNI, and slower everywhere",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    import torch

    from tdquant.bench.subject import sample_shape
    from tdquant.cli.switches import shape_of
    from tdquant.errors import ModelError
    from tdquant.export import export
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
    file = export(frozen, options.out, (torch.zeros(1, *shape), 0), portable=options.portable)
    size = sum(f.stat().st_size for f in {file, file.with_suffix(".bin")} if f.exists())
    print(f"wrote {file}, {size / 1e6:.2f} MB")
