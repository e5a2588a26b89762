"""tdquant as a quantization backend of diffusers.

    unet = UNet2DModel.from_pretrained(folder, quantization_config=TDQConfig(weights=4))
    tdq.calibrate(unet, batches)
    pipe.unet = tdq.freeze(unet)
    pipe.save_pretrained(out)                      # an ordinary diffusers folder
    pipe = DiffusionPipeline.from_pretrained(out)  # after ``import tdquant``, nothing else

A quantized model saves and loads like any other: ``config.json`` describes recipe and layers, the
safetensors file holds packed codes and scale tables.
"""

# First: importing it calls back into this package, of which nothing may be half imported.
import diffusers.quantizers.auto  # noqa: F401

from tdquant.integrations.diffusers.config import TDQConfig
from tdquant.integrations.diffusers.quantizer import TDQQuantizer
from tdquant.integrations.diffusers.registering import mark, register

__all__ = ["TDQConfig", "TDQQuantizer", "mark", "register"]
