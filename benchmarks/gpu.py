"""Integers and float8 on a GPU against bfloat16 under torch.compile, and whether they are exact.

    python benchmarks/gpu.py                # on a GPU, at most 8 minutes
    python benchmarks/gpu.py --emulate      # tiny models on the CPU: the arithmetic, not the speed

The 35.7M-parameter CIFAR UNet and a DiT of 33M parameters, random weights. All compute in bfloat16
around their quantized layers and run under torch.compile; times are medians of interleaved calls.
W8A8 has int8 kernels and products of codes, W4A4 float8 ones as well; every layer takes the
fastest, measured in eager mode. Exactness is that of every kernel of every layer, in float32, on
the input that the layer has in a call: the largest error against the reference in units of the
largest output.
"""

import argparse
import copy
import statistics
import time

import torch

import tdquant as tdq
from cost import cifar_unet
from integers import frozen_model
from record import table, write
from tdquant.layers import quantized_layers
from tdquant.lowering.cuda.backend import FP8_CAPABILITY, CudaLayer, lower_on
from tdquant.lowering.operation import Operation
from tdquant.lowering.products import ProductLayer
from tdquant.lowering.reference import ExactProduct
from tdquant.support.hooks import hooked

BITS = {"W8A8": (8, 8), "W4A4": (4, 4)}
BUDGET = 8 * 60
RESERVE = 100
"""Seconds of the whole, and those that the next row may take."""


def dit(layers=12, heads=6, width=64, size=32):
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        sample_size=size,
        num_embeds_ada_norm=1000,
    ).eval()


def tiny_unet():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


FULL = {"CIFAR UNet 35.7M": (cifar_unet, (3, 32, 32), False), "DiT 33M": (dit, (4, 32, 32), True)}
TINY = {
    "tiny UNet": (tiny_unet, (3, 8, 8), False),
    "tiny DiT": (lambda: dit(2, 2, 16, 8), (4, 8, 8), True),
}


def call_of(shape, labelled, batch, device, dtype=torch.float32):
    """Arguments of a call, one timestep for each sample."""
    rng = torch.Generator().manual_seed(0)
    x, t = torch.randn(batch, *shape, generator=rng), torch.full((batch,), 500)
    labels = (torch.arange(batch, device=device),) if labelled else ()
    return (x.to(device, dtype), t.to(device), *labels)


@torch.no_grad()
def exactness(frozen, call, fp8):
    """Kernel -> how many layers it ran and its largest relative error, in float32."""
    found, layers = {}, dict(quantized_layers(frozen))

    def compare(layer, args):
        path = next(p for p, one in layers.items() if one is layer)
        operation = Operation.of(layer, path)
        reference = ProductLayer(layer, path, operation)
        reference.use(ExactProduct(operation), "exact")
        exact = reference.to(args[0].device)(*args)
        lowered = CudaLayer(layer, path, operation, fp8).to(args[0].device)
        for option in lowered.options:
            lowered.take(option)
            error = (lowered(*args) - exact).abs().max() / exact.abs().max().clamp(min=1e-30)
            row = found.setdefault(lowered.sums.kernel.name, {"layers": 0, "error": 0.0})
            row["layers"] += 1
            row["error"] = max(row["error"], float(error))

    fit = [layer for path, layer in layers.items() if not Operation.of(layer, path).float_reason]
    with hooked([layer.register_forward_pre_hook(compare) for layer in fit]):
        frozen(*call)
    return found


def clocked(function, device):
    """Seconds of a call, to the end of what it started on the device."""
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.no_grad()
def measure(name, models, batches, device, fp8, rounds, until):
    make, shape, labelled = models[name]
    model = make()
    labels = call_of(shape, labelled, 1, "cpu")[2:]
    frozen = {
        bits: frozen_model(model, shape, *widths, "temporal", labels).to(device)
        for bits, widths in BITS.items()
    }
    call = call_of(shape, labelled, 2, device)
    exact = {bits: exactness(one, call, fp8) for bits, one in frozen.items()}
    for bits, kernels in exact.items():
        print(name, bits, kernels, flush=True)

    def ready(module):
        return torch.compile(module) if device.type == "cuda" else module

    rows = []
    for batch in batches:
        if time.perf_counter() + RESERVE > until:
            print(f"{name}, batch {batch}: left out, the time is used up")
            continue
        call = call_of(shape, labelled, batch, device, torch.bfloat16)
        half = copy.deepcopy(model).to(device, torch.bfloat16)
        run = {"bf16": ready(half.to(memory_format=torch.channels_last))}
        kernels = {}
        for bits, one in frozen.items():
            # Not by the model's own `to`: diffusers casts no quantized model.
            cast = torch.nn.Module.to(copy.deepcopy(one), torch.bfloat16)
            fast = lower_on(cast, device, call, fp8)
            names = [row.kernel for row in tdq.summary(fast) if row.kernel]
            kernels[bits] = {kernel: names.count(kernel) for kernel in dict.fromkeys(names)}
            run[bits] = ready(fast)
        times = {key: [] for key in run}
        for turn in range(rounds + 3):
            for key, module in run.items():
                seconds = clocked(lambda module=module, call=call: module(*call), device)
                if turn >= 3:  # the first calls compile
                    times[key].append(seconds)
        for key, seconds in times.items():
            rows.append(
                {
                    "model": name,
                    "batch": batch,
                    "run": key,
                    "ms": 1e3 * statistics.median(seconds),
                    "kernels": kernels.get(key, {}),
                }
            )
            rows[-1]["speedup"] = statistics.median(times["bf16"]) * 1e3 / rows[-1]["ms"]
        torch.compiler.reset()
    return rows, exact


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emulate", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--rounds", type=int, default=50, help="timed calls of each (default: 50)")
    options = parser.parse_args()
    if not options.emulate and not torch.cuda.is_available():
        parser.error("no CUDA device; --emulate runs the arithmetic on the CPU")
    until = time.perf_counter() + BUDGET
    device = torch.device("cpu" if options.emulate else "cuda")
    fp8 = options.emulate or torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    torch.backends.cuda.matmul.allow_tf32 = False
    models, batches = (TINY, (1,)) if options.emulate else (FULL, (1, 8))
    rows, exact = [], {}
    for name in models:
        found, exact[name] = measure(name, models, batches, device, fp8, options.rounds, until)
        rows += found
    table(
        ["model", "batch", "run", "ms", "x bf16", "kernels"],
        [[*(r[k] for k in ("model", "batch", "run", "ms", "speedup", "kernels"))] for r in rows],
    )
    if not options.emulate:
        write("gpu", device="cuda", calls=rows, exactness=exact)


if __name__ == "__main__":
    main()
