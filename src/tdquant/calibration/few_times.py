"""A word to whoever calibrates on too few times for scales that follow the timestep."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from tdquant.calibration.choose import is_static
from tdquant.calibration.time_histograms import ENOUGH_TIMES, TimeRange


def warn_of_few_times(kinds: Iterable[str], times: TimeRange, stacklevel: int) -> None:
    """Warns if scales are to follow the timestep, and calls were at fewer than ENOUGH_TIMES times:
    through that few, a curve s(t) is flat or a straight line.

    Arguments:
        kinds: Kinds of scales that activations are to get.
        times: The times that were seen.
        stacklevel: As for ``warnings.warn``, from the caller of this function.
    """
    seen = len(times.distinct)
    if seen >= ENOUGH_TIMES or all(map(is_static, kinds)):
        return
    warnings.warn(
        f"calibrated on {seen} distinct time{'s' * (seen > 1)}, while activation scales follow "
        "the timestep: at times between and beyond these the scales are guesses. Calibrate on "
        "calls at as many times as will be sampled, tdq.trajectories(..., steps=...); where "
        'sampling uses these times alone, all is well, and Recipe(scale="static") says so',
        stacklevel=stacklevel + 1,
    )
