"""Time and memory of large models: quantize, freeze, save, load, export, run.

    python benchmarks/size.py [--bits 4 8] [--threads 1] [--work DIR]

The UNet of Stable Diffusion 1.5 by its configuration, 860M random float32 parameters, W4A8 and
W8A8; calls are on latents of 32 x 32. Each measurement is a process of its own. Its peak is the
largest resident memory that the system saw, all of Python's and torch's libraries included; what a
process prepares before it measures does not count, except for what it still holds.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch

import tdquant as tdq
from record import table, write

CHANNELS = [320, 640, 1280, 1280]
UNET = {
    "sample_size": 64,
    "block_out_channels": CHANNELS,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
MB = 2**20


def resident(which):
    """``VmRSS`` or ``VmHWM`` of this process, in MB."""
    return int(re.search(rf"{which}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


@contextmanager
def measured(rows, title):
    """Adds a row: seconds, and the peak of resident memory meanwhile."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    row = {"what": title, "before_mb": resident("VmRSS")}
    begun, busy = time.perf_counter(), time.process_time()
    yield row
    row["seconds"] = time.perf_counter() - begun
    row["cpu_seconds"] = time.process_time() - busy
    row["peak_mb"], row["after_mb"] = resident("VmHWM"), resident("VmRSS")
    rows.append(row)


def convert(work, bits):
    """From the float model to a saved folder, stage by stage."""
    from diffusers import UNet2DConditionModel

    from tdquant.quantizers import activation_quantizers
    from tdquant.scales import TableScale

    torch.manual_seed(0)
    model = UNet2DConditionModel(**UNET).eval().requires_grad_(False)
    rows = []
    with measured(rows, "quantize"):
        tdq.quantize(model, tdq.Recipe(weights=bits, activations=8, remedies=()))
    for _, quantizer in activation_quantizers(model):  # calibration is another benchmark's
        quantizer.scale = TableScale(torch.arange(1000.0), torch.full((1000,), 0.05))
    with measured(rows, "freeze"):
        frozen = tdq.freeze(model)
    del model
    with measured(rows, "save") as row:
        tdq.save(frozen, work / f"w{bits}")
    row["file_mb"] = sum(f.stat().st_size for f in (work / f"w{bits}").iterdir()) / MB
    return rows


def load(work, bits):
    """The saved folder as numbers."""
    import diffusers

    diffusers.UNet2DConditionModel  # noqa: B018  an import, not the load
    rows = []
    with measured(rows, "load"):
        tdq.load(work / f"w{bits}")
    return rows


def load_compact(work, bits):
    """The saved folder as codes."""
    import diffusers

    diffusers.UNet2DConditionModel  # noqa: B018
    rows = []
    with measured(rows, "load, compact"):
        tdq.load(work / f"w{bits}", compact=True)
    return rows


def call_of():
    """Arguments of one call, on latents of 32 x 32."""
    rng = torch.Generator().manual_seed(0)
    context = torch.randn(1, 77, UNET["cross_attention_dim"], generator=rng)
    return torch.randn(1, 4, 32, 32, generator=rng), torch.tensor(431.0), context


def median_call(model, rows, title):
    """Adds the median seconds of a few calls."""
    times = []
    with torch.no_grad():
        for _ in range(6):
            begun = time.perf_counter()
            model(*call_of())
            times.append(time.perf_counter() - begun)
    rows.append({"what": title, "seconds": statistics.median(times[1:])})


def export(work, bits, compact=False):
    """The saved model, held as numbers, as a file of OpenVINO."""
    frozen = tdq.load(work / f"w{bits}", compact=compact)
    rows = []
    with measured(rows, "export, compact" if compact else "export") as row:
        tdq.export(frozen, work / f"w{bits}.xml", call_of())
    row["file_mb"] = sum(f.stat().st_size for f in work.glob(f"w{bits}.*")) / MB
    return rows


def export_compact(work, bits):
    """The saved model, held as codes, as the same file."""
    return export(work, bits, compact=True)


def session(work, bits):
    """The file, opened and called."""
    rows = []
    with measured(rows, "open and call") as row:
        opened = tdq.open_session(work / f"w{bits}.xml")
        opened(*call_of())
    row["file_mb"] = sum(f.stat().st_size for f in work.glob(f"w{bits}.*")) / MB
    median_call(opened, rows, "a call, OpenVINO")
    return rows


def eager(work, bits):
    """The float model in PyTorch, channels last."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    model = UNet2DConditionModel(**UNET).eval().requires_grad_(False)
    rows = []
    median_call(model.to(memory_format=torch.channels_last), rows, "a call, float in PyTorch")
    return rows


MEASUREMENTS = (convert, load, load_compact, export, export_compact, session, eager)
"""Run in this order, each in a process of its own: ``measurement(work, bits)`` gives rows, and
finds in the folder ``work`` what those before it left."""


def apart(name, bits, work, options):
    """Rows of one measurement, in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--bits", str(bits), "--work", str(work)]
    command += ["--threads", str(options.threads), "--channels", *map(str, options.channels)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 8], help="of the weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, help="folder for files of a few GB (default: temp)")
    parser.add_argument(
        "--channels", type=int, nargs=4, default=CHANNELS, help="of the blocks, for a quick trial"
    )
    parser.add_argument(
        "--one", choices=[m.__name__ for m in MEASUREMENTS], help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    UNET["block_out_channels"] = options.channels
    if options.one:
        print(json.dumps(globals()[options.one](options.work, *options.bits)))
        return
    work = Path(tempfile.mkdtemp(dir=options.work))
    rows = []
    try:
        for bits in options.bits:
            for measurement in MEASUREMENTS:
                found = apart(measurement.__name__, bits, work, options)
                rows += [{"model": f"W{bits}A8", **row} for row in found]
                print(*rows[-len(found) :], sep="\n", flush=True)
    finally:
        shutil.rmtree(work)
    head = ["model", "what", "seconds", "cpu_seconds", "before_mb", "peak_mb", "file_mb"]
    table(head, [[row.get(key, "-") for key in head] for row in rows])
    if options.bits == [4, 8] and options.channels == CHANNELS:
        write("size", unet=UNET, threads=options.threads, rows=rows)


if __name__ == "__main__":
    main()
