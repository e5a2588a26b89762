"""A small reconstruction for processes that work together:
``python -m tests.refine.reconstruction.runs OUT METHOD``.
"""

import os
import sys

import torch
from safetensors.torch import save_file

from tdquant.refine.reconstruction import reconstruct
from tests.conftest import quantized
from tests.denoisers import calls


def run(method="adaround", batch=8):
    torch.set_num_threads(1)
    model = quantized(weights=3, activations=8, scale="static", edges=4)
    # Calls of unequal sizes: processes have unequal shares of a batch.
    batches = [(x[: 2 + i % 3], t) for i, (x, t) in enumerate(calls())]
    done = reconstruct(
        model, batches, method=method, iterations=4, batch=batch, progress=False
    ).tdq.reconstruction
    return model, done


if __name__ == "__main__":
    model, _ = run(sys.argv[2])
    if os.environ.get("RANK", "0") == "0":
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, sys.argv[1])
