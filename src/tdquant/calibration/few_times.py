"""Warns of calibration on too few times for scales that depend on the timestep."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from tdquant.calibration.choose import is_static
from tdquant.calibration.time_histograms import ENOUGH_TIMES, TimeRange


def warn_of_few_times(kinds: Iterable[str], times: TimeRange, stacklevel: int) -> None:
    """Warns if scales depend on the timestep and calls were at fewer than ENOUGH_TIMES of them: a
    curve s(t) through so few points is flat or a straight line.

    Arguments:
        kinds: Kinds of scales that activations are to get.
        times: The times that were seen.
        stacklevel: As for ``warnings.warn``, from the caller of this function.
    """
    seen = len(times.distinct)
    if seen >= ENOUGH_TIMES or all(map(is_static, kinds)):
        return
    warnings.warn(
        f"calibrated on {seen} distinct time{'s' * (seen > 1)}, but activation scales depend on "
        "the timestep: at other times they are extrapolated. Calibrate on calls at the times that "
        'sampling uses, tdq.trajectories(..., steps=...), or use Recipe(scale="static")',
        stacklevel=stacklevel + 1,
    )
