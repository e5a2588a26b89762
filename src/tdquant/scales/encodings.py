r"""How a temporal scale sees time: encodings of the normalised time t' in [0, 999].

    fourier    [cos(t' w_i), sin(t' w_i)],  w_i = 10000^(-i / (d/2)),  i = 0 .. d/2 - 1
    time       2 t' / 999 - 1
    log-snr    -log tan(pi u / 2) / 4,  u = ((t' + 1) / 1000 + 0.008) / 1.008

The last is an eighth of the log of the signal-to-noise ratio of the cosine schedule, which puts it
in [-2, 2]; other schedules are monotone functions of it. The published encoding is
the first. The others are one number, and are there to measure what the first is worth.

References:
    Vaswani et al., Attention Is All You Need, 2017, section 3.5
    (https://arxiv.org/abs/1706.03762).
    Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021
    (https://arxiv.org/abs/2102.09672), equation 17.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

NOMINAL = 999.0
"""Length of the range that time is normalised to: that of a model with 1000 training timesteps."""


def fourier_features(t: Tensor, dim: int) -> Tensor:
    """Geometric Fourier features of normalised times ``(*)``: ``(*, dim)``, cosines first."""
    half = dim // 2
    frequency = torch.exp(
        torch.arange(half, device=t.device, dtype=torch.float32)
        * (-torch.log(torch.tensor(1e4, dtype=torch.float32)) / half)
    )
    angle = t.float().unsqueeze(-1) * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def linear_time(t: Tensor, dim: int) -> Tensor:
    """Normalised times ``(*)`` on [-1, 1], ``(*, 1)``."""
    return (2 / NOMINAL * t.float() - 1).unsqueeze(-1)


def log_snr(t: Tensor, dim: int) -> Tensor:
    """Scaled log-SNR of the cosine schedule at normalised times ``(*)``, ``(*, 1)``."""
    u = (((t.float() + 1) / (NOMINAL + 1) + 0.008) / 1.008).clamp(max=1 - 3e-4)
    return (-(math.pi / 2 * u).tan().log() / 4).unsqueeze(-1)


ENCODINGS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "fourier": fourier_features,
    "time": linear_time,
    "log-snr": log_snr,
}
"""Every encoding by name: ``(times (*), d) -> (*, width)``."""


def encoded_width(encoding: str, dim: int) -> int:
    """Numbers that an encoding gives for one time."""
    return ENCODINGS[encoding](torch.zeros((), dtype=torch.float32), dim).shape[-1]
