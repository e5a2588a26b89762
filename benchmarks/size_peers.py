"""A call of a large UNet beside NNCF and SDNQ, on processors.

    python benchmarks/size_peers.py [--threads 1] [--rounds 9] [--files DIR] [--channels 64 ...]

The UNet of benchmarks/size.py, 860M random float32 parameters: ours in W8A8 and W4A8, NNCF's
static int8, SDNQ's int8 weights and activations, convolutions included, on its OpenVINO kernels,
and the float model in PyTorch, channels last. Times are medians of interleaved calls in one
process, which is bound to as many cores as it has threads. Packages: nncf, sdnq. What was exported
stays in --files, a few GB: a second run measures alone.
"""

import argparse
import gc
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

import graphs
import size
import tdquant as tdq
from engines import NNCF, nncf_int8
from interleaved import interleaved
from record import table, write
from tdquant.support.memory import trim_heap

OURS = {"W8A8": 8, "W4A8": 4}
SDNQ, FLOAT = "SDNQ int8", "float in PyTorch"


def unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(**size.UNET).eval().requires_grad_(False)


class Plain(torch.nn.Module):
    """The UNet as a function of tensors to a tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, t, context):
        return self.model(x, t, context).sample


def write_nncf(file):
    """NNCF's int8 of the UNet as a file of OpenVINO."""
    import openvino as ov

    x, t, context = size.call_of()
    call = (x, t.reshape(1), context)
    whole = file.with_name("float.xml")
    graph = ov.convert_model(Plain(unet()), example_input=call)
    graph.reshape({i: list(value.shape) for i, value in enumerate(call)})
    ov.save_model(graph, whole, compress_to_fp16=False)
    del graph
    gc.collect()
    trim_heap()
    # From the file, whose weights the system can let go of. One call sets ranges; random weights
    # have no pictures that more would improve.
    ov.save_model(nncf_int8(ov.Core().read_model(whole), [call]), file, compress_to_fp16=False)
    for path in (whole, whole.with_suffix(".bin")):
        path.unlink()


def nncf_call(file, threads):
    """NNCF's file as a function, with the options of our sessions."""
    import openvino as ov

    compiled = ov.Core().compile_model(file, "CPU", graphs.options(threads))
    request = compiled.create_infer_request()

    def call(x, t, context):
        values = [x.numpy(), t.reshape(1).numpy(), context.numpy()]
        found = request.infer(values, share_inputs=True, share_outputs=True)
        return torch.from_numpy(np.array(found[0]))

    return call


def sdnq_int8(model):
    """SDNQ's model, its products on integers. It does not calibrate."""
    from sdnq import sdnq_post_load_quant

    return sdnq_post_load_quant(
        model,
        weights_dtype="int8",
        quant_conv=True,
        use_quantized_matmul=True,
        use_quantized_matmul_conv=True,
        quantization_device="cpu",
        return_device="cpu",
    )


def export_all(options):
    """Exports what is not in the folder yet, each in a process of its own."""
    for name, bits in OURS.items():
        if not (options.files / f"w{bits}.xml").exists():
            print(f"exporting {name}", flush=True)
            for stage in ("convert", "export"):
                size.apart(stage, bits, options.files, options)
    if not (options.files / "nncf.xml").exists():
        print("quantizing with NNCF", flush=True)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", "nncf"], check=True)


def measure(options):
    """Median seconds of a call, by engine."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    call = size.call_of()
    functions = {SDNQ: partial(sdnq_int8(unet()), *call)}
    functions[FLOAT] = partial(unet().to(memory_format=torch.channels_last), *call)
    for name, bits in OURS.items():
        session = tdq.open_session(options.files / f"w{bits}.xml", options.threads)
        functions[name] = partial(session, *call)
    functions[NNCF] = partial(nncf_call(options.files / "nncf.xml", options.threads), *call)
    return interleaved(functions, options.rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--files", type=Path, default=Path(tempfile.gettempdir()) / "tdquant-size-peers"
    )
    parser.add_argument(
        "--channels", type=int, nargs=4, default=size.CHANNELS, help="for a quick trial"
    )
    parser.add_argument("--one", choices=["nncf"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size.UNET["block_out_channels"] = options.channels
    options.files = options.files / "-".join(map(str, options.channels))
    options.files.mkdir(parents=True, exist_ok=True)
    if options.one:
        write_nncf(options.files / "nncf.xml")
        return
    export_all(options)
    seconds = measure(options)
    rows = [{"what": name, "seconds": value} for name, value in seconds.items()]
    table(["", "seconds", "of float"], [[n, s, s / seconds[FLOAT]] for n, s in seconds.items()])
    if options.channels == size.CHANNELS:
        write("size_peers", unet=size.UNET, threads=options.threads, rows=rows)


if __name__ == "__main__":
    main()
