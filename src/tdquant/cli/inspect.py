"""``tdquant inspect``: what is in a file or folder, read without building a model or opening a
pickle.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Adds the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "inspect",
        help="what is in a saved model, a run or a file of tensors",
        description="Prints what every layer of a saved model is: bits, zero point, size, and its "
        "scale over time as a line of bars. Tells training runs, checkpoints and files of tensors "
        "too. No pickle is opened.",
    )
    parser.add_argument(
        "model",
        type=Path,
        help="folder that tdq.save, save_pretrained or training wrote, or a file",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from tdquant.storage import inspect_saved

    text = inspect_saved(options.model)
    encoding = sys.stdout.encoding or "ascii"  # a terminal without the bars shows question marks
    print(text.encode(encoding, errors="replace").decode(encoding))
