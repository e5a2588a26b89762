"""``tdquant COMMAND``: parses the arguments and runs one command. Each command is one module with
``add``.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import tdquant
from tdquant.cli import bench, demo, evaluate, export, inspect, quantize, report, sample, train
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
    for command in (demo, quantize, train, sample, evaluate, report, export, bench, inspect):
        command.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None, published: bool = False) -> int:
    """Runs the command line; 0 if all went well, 1 for an error that is explained on stderr.

    Arguments:
        arguments: Words after the program's name; those of the process if None.
        published: The words are those of ``main.py`` or ``sample.py``, which ``published_main``
            completes by the command.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    overridden = getattr(options, "overridden", None)  # the command that takes KEY.PATH=VALUE
    strange = [word for word in rest if overridden is None or not _overrides(word)]
    if strange:
        (overridden or parser).error(f"unrecognized arguments: {' '.join(strange)}")
    options.overrides, options.published = rest, published
    options.words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say_warning  # type: ignore[assignment]
            return options.run(options) or 0
    except TDQError as error:
        print(f"tdquant: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"tdquant: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tdquant: interrupted", file=sys.stderr)
        return 130


def _overrides(word: str) -> bool:
    """Whether a word is ``KEY.PATH=VALUE``, and no misspelt flag with a value."""
    key, equals, _ = word.partition("=")
    return bool(equals) and (not key.startswith("-") or "." in key)


def published_main(command: str) -> int:
    """``main.py`` and ``sample.py`` of the published implementation, over ``tdquant COMMAND``."""
    return main([command, *sys.argv[1:]], published=True)


def _say_warning(message: Warning | str, *rest: Any) -> None:
    """A warning as a line for a user, who has no use for the source line it came from."""
    print(f"tdquant: {message}", file=sys.stderr)
