"""optimum-quanto: static int8 inputs by momentum over calls, at linear layers; of convolutions
the weights (https://github.com/huggingface/optimum-quanto).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from benchmarks.peers.peer import Peer


class Quanto(Peer):
    name = "optimum-quanto, static"
    package = "optimum.quanto"
    distribution = "optimum-quanto"
    settings: ClassVar = {"W8A8": "qint8", "W4A8": "qint4"}
    note = "inputs of linear layers alone"

    def quantize(self, model, calls):
        from optimum import quanto

        quanto.quantize(model, weights=self.options, activations="qint8")
        with torch.no_grad(), quanto.Calibration():
            for call in calls:
                model(*call)
        quanto.freeze(model)
        return model

    def write(self, model, folder):
        from safetensors.torch import save_file

        tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")

    def layers(self, model):
        from optimum.quanto.nn import QModuleMixin

        # A convolution has no step of its own for its input.
        return {
            path: (True, "input" in module._quantize_hooks)
            for path, module in model.named_modules()
            if isinstance(module, QModuleMixin)
        }
