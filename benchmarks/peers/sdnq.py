"""SDNQ: no calibration; inputs by the row at each call, weights of few bits in groups of its own
choice (https://github.com/Disty0/sdnq).
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from benchmarks.peers.peer import Peer


class SDNQ(Peer):
    name = "SDNQ"
    package = "sdnq"
    settings: ClassVar = {"W8A8": "int8", "W5A8": "uint5", "W4A8": "uint4"}
    extra: ClassVar = {"matmul": True}

    def quantize(self, model, calls):
        from sdnq import sdnq_post_load_quant

        given = dict(self.extra)
        integer = given.pop("matmul")
        model = sdnq_post_load_quant(
            model,
            weights_dtype=self.options,
            quant_conv=True,
            use_quantized_matmul=integer,
            use_quantized_matmul_conv=integer,
            quantization_device="cpu",
            return_device="cpu",
            **given,
        )
        for module in model.modules():
            about = getattr(module, "sdnq_dequantizer", None)
            if about is not None and about.result_shape is None:
                # SDNQ 0.2.8 leaves it out where a weight of few bits is one group, and its own
                # convolution then cannot be called.
                about.result_shape = about.original_shape
        return model

    def sampled(self, model, call):
        # The same arithmetic without minutes of compiling for every shape.
        return partial(eagerly, model)

    def timed(self, model, call):
        return model

    def write(self, model, folder):
        from safetensors.torch import save_file

        tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")

    def layers(self, model):
        found = {}
        for path, module in model.named_modules():
            about = getattr(module, "sdnq_dequantizer", None)
            if about is not None:
                found[path] = (True, bool(about.use_quantized_matmul))
        return found


class SDNQRotated(SDNQ):
    name = "SDNQ, Hadamard"
    settings: ClassVar = {"W5A8": "uint5", "W4A8": "uint4"}
    extra: ClassVar = {"matmul": True, "use_hadamard": True}


class SDNQWeights(SDNQ):
    name = "SDNQ, weights alone"
    settings: ClassVar = {"W5A8": "uint5", "W4A8": "uint4"}
    extra: ClassVar = {"matmul": False}
    note = "inputs in float"


def eagerly(model, x, t):
    with torch.compiler.set_stance("force_eager"):
        return model(x, t)
