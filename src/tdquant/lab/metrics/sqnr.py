r"""Signal-to-quantization-noise ratio of the denoiser's output at each timestep.

    SQNR(t) = 10 log10( sum |y_t|^2 / sum |y_t - y'_t|^2 )   dB

over all calls at time t, with y the output of the float model and y' that of the quantized one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from tdquant.errors import DataError


@torch.no_grad()
def sqnr_over_time(
    model: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    calls: Iterable[tuple[Tensor, Tensor]],
) -> dict[float, float]:
    """SQNR of ``model`` against ``reference`` by timestep.

    Arguments:
        model: The quantized denoiser, ``(x, t)``.
        reference: The float denoiser.
        calls: Pairs ``(x (B, *), t ())``, such as trajectories of the float model.

    Returns:
        Time -> dB; infinite where the outputs are equal.

    Raises:
        DataError: There are no calls.
    """
    signal: dict[float, float] = {}
    noise: dict[float, float] = {}
    for x, t in calls:
        time, exact = float(t), reference(x, t).double()
        signal[time] = signal.get(time, 0.0) + float(exact.square().sum())
        noise[time] = noise.get(time, 0.0) + float((model(x, t).double() - exact).square().sum())
    if not signal:
        raise DataError(
            "no calls", where="sqnr_over_time", fix="pairs (x, t), such as trajectories(...)"
        )
    return {
        t: 10 * math.log10(signal[t] / noise[t]) if noise[t] else math.inf for t in sorted(signal)
    }


def mean_sqnr(by_time: dict[float, float]) -> float:
    """Mean over timesteps in dB."""
    return sum(by_time.values()) / len(by_time)
