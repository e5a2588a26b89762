"""torchao: linear layers, inputs by the token at each call (https://github.com/pytorch/ao)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from benchmarks.peers.peer import Peer
from torch import nn

GROUPS = (128, 64, 32, 16)


class TorchAO(Peer):
    name = "torchao, dynamic"
    package = "torchao"
    settings: ClassVar = {"W8A8": 8, "W5A8": 5, "W4A8": 4}
    note = "linear layers alone"
    few_inputs = True

    def quantize(self, model, calls):
        from torchao import quantization as ao

        if self.options == 8:
            ao.quantize_(model, ao.Int8DynamicActivationInt8WeightConfig())
            return model
        bits = getattr(torch, f"int{self.options}")
        # Its groups must divide the inputs: its default of 32, or the whole row.
        for grouped, size in ((True, ao.PerGroup(32)), (False, ao.PerAxis(0))):
            config = ao.Int8DynamicActivationIntxWeightConfig(
                weight_dtype=bits, weight_granularity=size
            )
            ao.quantize_(model, config, lambda m, path, g=grouped: fits(m, 32) is g)
        return model

    def timed(self, model, call):
        return torch.compile(model, dynamic=False)

    def write(self, model, folder):
        from safetensors.torch import save_file
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

        tensors, about = flatten_tensor_state_dict(model.state_dict())
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors",
                  about)  # fmt: skip

    def layers(self, model):
        from torchao.utils import TorchAOBaseTensor

        return {
            path: (True, self.few_inputs)
            for path, module in model.named_modules()
            if isinstance(getattr(module, "weight", None), TorchAOBaseTensor)
        }


class TorchAOInt4(TorchAO):
    name = "torchao, int4 weights"
    settings: ClassVar = {"W4A8": 4}
    note = "linear layers alone, inputs in float"
    few_inputs = False

    def quantize(self, model, calls):
        from torchao import quantization as ao

        for size in GROUPS[:-1]:
            ao.quantize_(
                model,
                ao.Int4WeightOnlyConfig(group_size=size),
                lambda m, path, n=size: fits(m, n) and not quantized(m),
            )
        return model


def quantized(module: Any) -> bool:
    return type(module.weight.data) is not torch.Tensor


def fits(module: nn.Module, size: int) -> bool | None:
    """Whether a linear layer's inputs are made of whole groups; None of other modules."""
    return module.in_features % size == 0 if isinstance(module, nn.Linear) else None
