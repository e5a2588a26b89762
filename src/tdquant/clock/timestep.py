"""The timestep argument of a model: where it is, and whether its values are known."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import ClockError, ConversionError

TIMESTEP_NAMES = (
    "timestep",
    "timesteps",
    "t",
    "time",
    "time_step",
    "timestep_ratio",
    "sigma",
    "noise_level",
)


def find_timestep(model: nn.Module, name: str | None = None) -> tuple[str, int]:
    """The name and position of the timestep among the arguments of ``model.forward``.

    Raises:
        ConversionError: ``name`` is not an argument, or no argument has a usual name.
    """
    taken = inspect.signature(model.forward).parameters
    parameters = list(taken)
    where = f"{type(model).__name__}.forward({', '.join(parameters)})"
    named = [n for n, p in taken.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    fix = 'name it: tdq.quantize(model, recipe, timestep="...")'
    if len(named) < len(parameters):
        fix += "; it cannot be in *args or **kwargs: def forward(self, x, t, ...)"
    if name is not None and name not in named:
        raise ConversionError(f"no argument {name!r}", where=where, fix=fix)
    found = [p for p in named if p in TIMESTEP_NAMES] if name is None else [name]
    if not found:
        raise ConversionError(
            "the timestep argument cannot be found",
            where=where,
            why=f"none of the usual names {TIMESTEP_NAMES} is there",
            fix=fix,
        )
    return found[0], parameters.index(found[0])


def time_tensor(timestep: Any) -> Tensor:
    """A timestep as a tensor. Floats of Python become float32: in torch's default type, which may
    be bfloat16, 999.0 would be 1000.
    """
    if isinstance(timestep, Tensor):
        return timestep
    time = torch.as_tensor(timestep)
    return torch.as_tensor(timestep, dtype=torch.float32) if time.is_floating_point() else time


def check_tokens(timestep: Tensor, argument: str, where: str) -> None:
    """Checks that a timestep ``(B, *)``, one for each token, has one time a sample. Video models
    take such ones: tokens to be denoised share their time; those of a given frame are at 0 and do
    not change a sample's time.

    Raises:
        ClockError: There are several times within a sample.
    """
    tokens = timestep.flatten(1)
    if not ((tokens == tokens.amax(1, keepdim=True)) | (tokens == 0)).all():
        raise ClockError(
            f"{argument!r} has several times within a sample",
            where=where,
            why=f"of shape {tuple(timestep.shape)} it gives tokens that are denoised different "
            "times, and a scale follows one for each sample",
            fix="pass shape () or (B,), or (B, N) with one time a sample beside zeros",
        )


def outside_message(
    timestep: Tensor, coverage: Sequence[float] | None, seen: Sequence[float] | None = None
) -> str:
    """A warning of times outside the range of the tables, or far from all that calibration saw;
    empty where there are none. In half precision 999 arrives as 1000: what rounding to the dtype
    can have moved is not outside. A third of the range that was seen is not far: four steps of a
    sampler leave as much at its end.

    Arguments:
        timestep: The time of a call, or the times.
        coverage: Lowest and highest time of the tables, if there are some over time.
        seen: Lowest and highest time that calibration saw, if known.
    """
    known = coverage or seen
    if known is None or not timestep.numel():
        return ""
    first, last = known
    room = 1e-6 * (last - first)  # of a continuous time in another precision
    if timestep.is_floating_point():
        room += torch.finfo(timestep.dtype).eps / 2 * max(abs(first), abs(last))
    low, high = float(timestep.min()), float(timestep.max())
    if coverage is not None and (low < first - room or high > last + room):
        return (
            f"timestep {low if low < first - room else high:g} lies outside the scale tables' "
            f"range [{first:g}, {last:g}] and is clamped to it (said once)"
        )
    least, most = seen or known
    far = (most - least) / 3
    if not far or (low >= least - far and high <= most + far):
        return ""
    return (
        f"timestep {low if low < least - far else high:g} is far from all that calibration saw, "
        f"{least:g} to {most:g}: scales there are a guess (said once). Calibrate on calls at all "
        "times that sampling uses"
    )
