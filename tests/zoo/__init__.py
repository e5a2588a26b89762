"""Every denoiser class of diffusers that can be constructed on a CPU, tiny and with random
weights.

from tests.zoo import CASES
model, calls = CASES["FluxTransformer2DModel"].model(), CASES["FluxTransformer2DModel"].calls()
"""

from tests.zoo import images, others, videos  # noqa: F401
from tests.zoo.case import CASES, Case

__all__ = ["CASES", "Case"]
