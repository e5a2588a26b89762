"""``tdquant inspect``: what is in a saved model, read from its index and its tensors' headers
alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Adds the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "inspect",
        help="the layer table of a saved model",
        description="Prints what every layer of a saved model is.",
    )
    parser.add_argument("model", type=Path, help="folder that tdq.save or save_pretrained wrote")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from tdquant.storage import inspect_saved

    print(inspect_saved(options.model))
