"""The flags of the published ``main.py`` and ``sample.py``, as far as ``tdquant train`` and
``tdquant sample`` spell them otherwise. Those commands understand them too, without showing them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdquant.cli.options import truth


def add_train_flags(parser: argparse.ArgumentParser, hidden: bool = False) -> None:
    """Adds those of ``main.py``.

    Arguments:
        parser: Where to.
        hidden: Leave them out of ``--help``.
    """
    flag = _adder(parser, hidden)
    flag("--scale_lr", type=truth, nargs="?", const=True, dest="scale_lr", metavar="BOOL",
         help="the same as --scale-lr")  # fmt: skip
    flag("--n_bit_w", type=int, dest="weights", metavar="N", help="bits of weights; 0: float (8)")
    flag("--n_bit_a", type=int, dest="activations", metavar="N",
         help="bits of activations; 0: float (8)")  # fmt: skip
    flag("--use_dynamic", action="store_const", const="temporal", dest="scale",
         help="scales follow the timestep (TDQ)")  # fmt: skip
    flag("-f", "--postfix", default="", help="appended to the name")
    flag("--resume_from_checkpoint", dest="resume", metavar="RUN", help="the same as --resume")
    flag("--max_steps", type=int, dest="steps", help="the same as --steps")
    flag("--accelerator", help=argparse.SUPPRESS)
    flag("--no-test", nargs="?", const=True, type=truth, help=argparse.SUPPRESS)


def add_sample_flags(parser: argparse.ArgumentParser, hidden: bool = False) -> None:
    """Adds those of ``sample.py``.

    Arguments:
        parser: Where to.
        hidden: Leave them out of ``--help``.
    """
    flag = _adder(parser, hidden)
    flag("-l", "--logdir", type=Path, default=Path("samples"), help="folder of samples (samples)")
    flag("--name", default="_", help="folder below LOGDIR")
    flag("--n_samples", type=int, dest="images", help="number of images (5)")
    flag("-v", "--vanilla", action="store_true", default=False,
         help="DDPM with all timesteps instead of DDIM")  # fmt: skip
    flag("-c", "--custom_steps", type=int, dest="steps", help="sampler steps (200)")
    flag("-b", "--batch_size", type=int, dest="batch", help="images at a time (32)")
    flag("--n_start", type=int, dest="start", help="index of the first image (0)")
    for name in ("--n_bit_w", "--n_bit_a"):
        flag(name, type=int, default=None, help="checked against the checkpoint, which knows it")
    flag("--use_dynamic", action="store_true", help=argparse.SUPPRESS)
    flag("-d", "--dataset", help=argparse.SUPPRESS)


def _adder(parser: argparse.ArgumentParser, hidden: bool) -> Callable[..., Any]:
    group = parser.add_argument_group("flags of the published code")

    def flag(*names: str, **settings: Any) -> None:
        # A flag that writes into another option leaves the default to that one.
        shared = "dest" in settings
        settings = {**({"default": argparse.SUPPRESS} if shared else {}), **settings}
        group.add_argument(*names, **settings | ({"help": argparse.SUPPRESS} if hidden else {}))

    return flag
