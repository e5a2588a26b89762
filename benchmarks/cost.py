"""Cost on the 35.7M-parameter CIFAR UNet: memory of calibration, size on disk, time of a forward.

    python benchmarks/cost.py

Times are medians of interleaved runs in one process, so that a noisy machine disturbs all alike.
"""

import argparse
import copy
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import torch

import tdquant as tdq
from interleaved import interleaved
from record import table, write


def cifar_unet():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=256,
    ).eval()


class Peak:
    """Peak resident memory of this process in a with block, by a thread that looks on."""

    def __enter__(self):
        self._process, self._stop = psutil.Process(), threading.Event()
        self.before = self.peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    @property
    def grown(self):
        return self.peak - self.before


def activation_bytes(model, call):
    """Bytes of all outputs of leaf modules in one call: one batch of activations."""
    total = 0

    def count(module, args, output):
        nonlocal total
        if isinstance(output, torch.Tensor) and not list(module.children()):
            total += output.numel() * output.element_size()

    hooks = [m.register_forward_hook(count) for m in model.modules()]
    with torch.no_grad():
        model(*call)
    for hook in hooks:
        hook.remove()
    return total


def forwards(model, shape, batches, rounds, recipe):
    """Median times of the float, the quantized and the frozen forward."""
    quantized = tdq.quantize(copy.deepcopy(model), recipe)
    calls = [(torch.randn(2, *shape), torch.tensor(t)) for t in (0, 250, 500, 750, 999)]
    tdq.calibrate(quantized, calls, progress=False)
    frozen = tdq.freeze(quantized)
    found = []
    for batch in batches:
        x, t = torch.randn(batch, *shape), torch.tensor(500)
        functions = {
            "float": partial(model, x, t),
            "quantized": partial(quantized, x, t),
            "frozen": partial(frozen, x, t),
        }
        found.append({"batch": batch, **interleaved(functions, rounds)})
    return found, frozen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    big = cifar_unet()
    parameters = sum(p.numel() for p in big.parameters())
    print(f"CIFAR UNet: {parameters / 1e6:.1f}M parameters, {parameters * 4 / 1e6:.0f} MB float32")

    batch = 16
    example = (torch.randn(batch, 3, 32, 32), torch.tensor(500))
    activations = activation_bytes(big, example)
    recipe = tdq.Recipe(weights=4, activations=8, remedies=())
    memory = {}
    for batches in (8, 32):
        model = tdq.quantize(copy.deepcopy(big), recipe)
        calls = (
            (torch.randn(batch, 3, 32, 32), torch.tensor(int(t)))
            for t in torch.linspace(0, 999, batches)
        )
        with torch.no_grad():
            big(*example)
        with Peak() as peak:
            observed = tdq.observe(model, calls, progress=False, calls=16, samples=2)
        judged = 0
        if batches == 8:
            with Peak() as second:
                started = time.perf_counter()
                tdq.calibrate(model, observed, progress=False)
                seconds = time.perf_counter() - started
            judged = second.grown
        memory[batches] = {"observe": peak.grown, "judge_and_fit": judged}
        print(f"{batches} batches: {memory[batches]}", flush=True)
        del model, observed
    weights = parameters * 4
    total = weights + memory[8]["observe"] + memory[8]["judge_and_fit"]
    print(
        f"weights {weights / 1e6:.0f} MB, one batch of activations {activations / 1e6:.0f} MB, "
        f"peak of calibration {total / 1e6:.0f} MB, "
        f"target {(3 * weights + activations) / 1e6:.0f} MB"
    )

    times, frozen = forwards(big, (3, 32, 32), (1, 16), args.rounds, recipe)
    with tempfile.TemporaryDirectory() as folder:
        path = tdq.save(frozen, Path(folder) / "m")
        size = sum(f.stat().st_size for f in path.iterdir())
    print(f"W4 checkpoint {size / 1e6:.2f} MB, {size / weights:.3f} of float32")
    cats = tdq.models.load_embedded("cats-ddpm")
    small, _ = forwards(cats.unet, cats.shape, (1, 64), args.rounds * 3, recipe)
    rows = [("CIFAR UNet", t) for t in times] + [("cats-ddpm", t) for t in small]
    head = ["model", "batch", "float ms", "quantized / float", "frozen / float"]
    table(
        head,
        [
            [
                n,
                t["batch"],
                t["float"] * 1e3,
                t["quantized"] / t["float"],
                t["frozen"] / t["float"],
            ]
            for n, t in rows
        ],
    )
    write(
        "cost",
        parameters=parameters,
        memory={str(k): v for k, v in memory.items()},
        activation_bytes=activations,
        calibration_seconds=seconds,
        peak_of_calibration=total,
        checkpoint_bytes=size,
        checkpoint_share=size / weights,
        forward=[{"model": n, **t} for n, t in rows],
    )


if __name__ == "__main__":
    main()
