"""``tdquant COMMAND``: parses the arguments and runs one command.

Each command is a module with ``add(commands)``. Modules import torch when they run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import tdquant
from tdquant.cli import bench, demo, evaluate, export, inspect, quantize, report, sample, train
from tdquant.cli.options import split_overrides
from tdquant.errors import TDQError


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = argparse.ArgumentParser(
        prog="tdquant",
        description="Temporal Dynamic Quantization for diffusion models.",
        epilog="'tdquant COMMAND --help' shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"tdquant {tdquant.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (demo, quantize, train, sample, evaluate, report, export, bench, inspect):
        command.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 0 if all went well, 1 for an error that is explained on stderr.

    Arguments:
        arguments: Words after the program's name; those of the process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return _run(build_parser(), words, words)


def published_main(command: str, arguments: Sequence[str] | None = None) -> int:
    """Runs ``main.py`` or ``sample.py`` of the published implementation.

    Arguments:
        command: The command that does it, ``"train"`` or ``"sample"``.
        arguments: As for ``main``.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = {"train": train, "sample": sample}[command].published_parser()
    return _run(parser, words, [command, *words])


def _run(parser: argparse.ArgumentParser, words: list[str], as_command: list[str]) -> int:
    options, rest = parser.parse_known_args(words)
    options.words = as_command
    _sort_words(options, rest)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning  # type: ignore[assignment]
            with _set_up(options):
                return options.run(options) or 0
    except TDQError as error:
        print(f"tdquant: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"tdquant: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tdquant: interrupted", file=sys.stderr)
        return 130


def _sort_words(options: argparse.Namespace, rest: list[str]) -> None:
    """Collects ``KEY=VALUE`` words, wherever they stand, in ``options.overrides``; ends the
    program for words that the command does not take.
    """
    options.overrides = []
    strange = rest
    if options.takes_overrides:
        for name in ("models", "base", "config"):
            kept, changes = split_overrides(getattr(options, name, None) or [])
            options.overrides += changes
            if changes:
                setattr(options, name, kept)
        options.overrides += [word for word in rest if _is_override(word)]
        strange = [word for word in rest if not _is_override(word)]
        if hasattr(options, "models"):
            options.models += [word for word in strange if not word.startswith("-")]
            strange = [word for word in strange if word.startswith("-")]
    if strange:
        options.parser.error(f"unrecognized arguments: {' '.join(strange)}")


def _is_override(word: str) -> bool:
    """Whether a word is ``KEY.PATH=VALUE``, and no misspelt flag with a value."""
    key, equals, _ = word.partition("=")
    return bool(equals) and (not key.startswith("-") or "." in key)


@contextlib.contextmanager
def _set_up(options: argparse.Namespace) -> Iterator[None]:
    """Applies ``--threads``, checks ``--device`` and turns ``--dtype`` into a type. The number of
    threads and the environment, in which commands choose devices, are restored in the end: a
    notebook calls ``main`` in a process of its own.

    Raises:
        TDQError: There is no such device, or ``--gpus`` chooses it.
    """
    environment, threads = dict(os.environ), getattr(options, "threads", None)
    _check(options)
    before = None
    if threads is not None:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if before is not None:
            torch.set_num_threads(before)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def _check(options: argparse.Namespace) -> None:
    device, dtype = (getattr(options, name, None) for name in ("device", "dtype"))
    if device is dtype is None:
        return
    import torch

    if dtype is not None:
        options.dtype = getattr(torch, dtype)
    if device is not None:
        if getattr(options, "gpus", None):  # which must choose before CUDA starts
            raise TDQError("--gpus with --device", fix="one of them")
        try:
            torch.empty(0, device=device, dtype=torch.float32)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            why = str(error).splitlines()[0]
            raise TDQError(f"no device {device}", where="--device", why=why, fix="cpu") from error


def _print_warning(message: Warning | str, *rest: Any) -> None:
    """A warning as one line, without the source line it came from."""
    print(f"tdquant: {message}", file=sys.stderr)
