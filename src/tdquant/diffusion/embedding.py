r"""The sinusoidal embedding of timesteps that diffusion UNets take.

    emb(t) = [cos(t w_i), sin(t w_i)],    w_i = 10000^(-i / (d // 2)),  i = 0 .. d // 2 - 1

cosines first, float32, with a zero at the end where d is odd.

References:
    Ho et al., Denoising Diffusion Probabilistic Models, 2020 (https://arxiv.org/abs/2006.11239),
    appendix B.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sinusoidal(timesteps: Tensor, dim: int) -> Tensor:
    """The embedding ``(B, dim)`` of timesteps ``(B,)``, integers or not.

    The order of operations is that of published UNets, to the last bit: steps of quantization
    that a network computes from these features depend on it.
    """
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32)
    frequency = torch.exp(-math.log(10000) * index / half).to(timesteps.device)
    angle = timesteps[:, None].float() * frequency[None]
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=-1), (0, dim % 2))
