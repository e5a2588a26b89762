"""Temporal Dynamic Quantization for diffusion models: activation scales that follow the timestep.

    model = tdq.quantize(model, tdq.Recipe(weights=4, activations=8))
    tdq.calibrate(model, batches)
    frozen = tdq.freeze(model)

The public names stand in ``__init__.pyi``; each is imported when it is first used.

References:
    So et al., Temporal Dynamic Quantization for Diffusion Models, NeurIPS 2023
    (https://arxiv.org/abs/2306.02316).
"""

import lazy_loader

from tdquant.integrations import register

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"

register()
