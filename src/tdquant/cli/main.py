"""``tdquant COMMAND``: parses the arguments and runs one command. Each command is one module with
``add``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import tdquant
from tdquant.cli import demo, inspect
from tdquant.errors import TDQError


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = argparse.ArgumentParser(
        prog="tdquant",
        description="Temporal Dynamic Quantization for diffusion models.",
        epilog="'tdquant COMMAND --help' tells what a command takes.",
    )
    parser.add_argument("--version", action="version", version=f"tdquant {tdquant.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (demo, inspect):
        command.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 0 if all went well, 1 for an error that is explained on stderr."""
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except TDQError as error:
        print(f"tdquant: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tdquant: interrupted", file=sys.stderr)
        return 130
    return 0
