"""Options that several commands share, each defined once.

    parents=[shared("quiet", "config", seed=0, steps=50)]

A name takes the option as it is defined here, a keyword gives it the command's own default.
Nothing here imports torch: ``--help`` has to be quick.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tdquant.errors import TDQError
from tdquant.files.looking import exists


def truth(text: str | bool) -> bool:
    """``True``, ``yes``, ``1`` and their opposites, as the published commands write them."""
    word = str(text).lower()
    if word in ("true", "t", "yes", "y", "1"):
        return True
    if word in ("false", "f", "no", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r}: True or False")


def positive(text: str) -> int:
    """An integer of at least 1."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: a whole number, 1 or more")


def unicode_text(text: str) -> str:
    """Text for a model; a shell passes bytes that are not UTF-8 on as they are."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r}: not UTF-8") from None
    return text


def shape(text: str) -> tuple[int, ...]:
    """The shape of a sample, ``3,32,32``."""
    try:
        return tuple(positive(side.strip()) for side in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers, such as 3,32,32") from None


_OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "out": (("-o", "--out"), {"type": Path, "help": "where to write"}),
    "seed": (("-s", "--seed"), {"type": int, "help": "seed of everything that is drawn"}),
    "steps": (("--steps",), {"type": positive, "help": "sampler steps"}),
    "batch": (("--batch",), {"type": positive, "help": "samples computed together"}),
    "device": (
        ("--device",),
        {"help": "where to run, such as cpu or cuda (default: the GPU if there is one)"},
    ),
    "dtype": (
        ("--dtype",),
        {"choices": ("float32", "bfloat16", "float16"),
         "help": "type to load a pipeline in (default: its own)"},
    ),
    "gpus": (("-g", "--gpus"), {"help": "device numbers, such as 0,1: a process on each"}),
    "threads": (("--threads",), {"type": positive, "help": "threads (default: torch's choice)"}),
    "config": (
        ("--config",),
        {"nargs": "+", "metavar": "FILE", "help": "YAML configuration of a checkpoint file"},
    ),
    "text_encoder": (
        ("--text-encoder",),
        {"type": Path, "metavar": "DIR",
         "help": "CLIP text encoder and tokenizer of a text-to-image checkpoint file"},
    ),
    "ema": (
        ("--no-ema",),
        {"dest": "ema", "action": "store_false",
         "help": "take the weights of a run or checkpoint, not their averages"},
    ),
    "scheduler": (
        ("--scheduler",),
        {"help": "ddim, dpm++, euler, euler-a, unipc, ddpm (default: the model's)"},
    ),
    "eta": (("-e", "--eta"), {"type": float, "default": 0.0, "help": "noise of DDIM, 0 to 1"}),
    "shape": (
        ("--shape",),
        {"type": shape, "help": "shape of a sample, such as 3,32,32, if the model has none"},
    ),
    "weights": (("--weights",), {"type": int, "help": "bits of weights"}),
    "activations": (("--activations",), {"type": int, "help": "bits of activations"}),
    "quiet": (
        ("--quiet",),
        {"dest": "progress", "action": "store_false", "help": "draw no progress bars"},
    ),
}  # fmt: skip


def shared(*names: str, required: Sequence[str] = (), **defaults: Any) -> argparse.ArgumentParser:
    """A parent parser with some of the shared options.

    Arguments:
        names: Options as they are defined here.
        required: Options that have to be given.
        defaults: Options with a default of the command.
    """
    parent = argparse.ArgumentParser(add_help=False)
    for name in (*required, *defaults, *names):
        flags, settings = _OPTIONS[name]
        own: dict[str, Any] = {"required": True} if name in required else {}
        if name in defaults:
            words = settings["help"].partition(" (default")[0]
            own = {"default": defaults[name], "help": f"{words} (default: {defaults[name]})"}
        parent.add_argument(*flags, **(settings | own))
    return parent


def add_command(
    commands: Any,
    run: Callable[[argparse.Namespace], int | None],
    overrides: bool = False,
    **settings: Any,
) -> argparse.ArgumentParser:
    """Adds a command that is named like the module of its ``run``.

    Arguments:
        commands: Where to.
        run: Runs it; returns the exit status, None for 0.
        overrides: Whether it takes ``KEY=VALUE`` words.
        settings: Further arguments of its parser.
    """
    parser = commands.add_parser(run.__module__.rpartition(".")[2], **settings)
    parser.set_defaults(run=run, parser=parser, takes_overrides=overrides)
    return parser


def picked(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Some options as keyword arguments: commands and functions share their names."""
    return {name: getattr(options, name) for name in names}


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits words into files or names, and ``KEY=VALUE`` overrides."""
    changes = [w for w in words if "=" in w and not exists(w)]
    return [w for w in words if w not in changes], changes


def call_arguments(words: Iterable[str]) -> dict[str, Any]:
    """``KEY=VALUE`` words as arguments of a pipeline, each value JSON or text.

    Raises:
        TDQError: A word is not UTF-8.
    """
    found = {}
    for word in words:
        try:
            key, _, value = unicode_text(word).partition("=")
        except argparse.ArgumentTypeError as error:
            raise TDQError(f"an argument is not UTF-8: {error}") from None
        try:
            found[key.lstrip("-")] = json.loads(value)
        except ValueError:
            found[key.lstrip("-")] = value
    return found


def changed_flags(options: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """The flags of some options whose values are not the defaults, as they were written.

    Arguments:
        options: What ``main`` parsed.
        names: Attributes of it.
    """
    written = {word.partition("=")[0] for word in options.words}
    found = []
    for name in names:
        actions = [a for a in options.parser._actions if a.dest == name]
        if getattr(options, name) != actions[0].default:
            flags = [flag for action in actions for flag in action.option_strings]
            found.append(next((flag for flag in flags if flag in written), flags[-1]))
    return found
