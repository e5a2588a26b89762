"""OpenVINO and ONNX Runtime: time of a call, size of the files, and error against NNCF's int8.

    python benchmarks/engines.py            # --rounds, --threads, --only time|error

Times are of the 35.7M-parameter CIFAR UNet with random weights at batch 1, medians of interleaved
calls. Errors are of the trained cats-ddpm, on trajectories that calibration never saw: squared
error over squared output, averaged over timesteps. What was exported stays in --files: a second
run measures alone.
"""

import argparse
import copy
import functools
import json
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch

import tdquant as tdq
from cost import cifar_unet, interleaved
from record import table, write
from tdquant.export.openvino_graph import EXACT

TIMES = (0, 250, 500, 750, 999)
SETTINGS = {"W8A8": (8, 8), "W7A8": (7, 8), "W4A8": (4, 8)}


class Plain(torch.nn.Module):
    """A diffusers model as a function of tensors to a tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, t):
        y = self.model(x, t)
        return getattr(y, "sample", y)


def openvino_float(model, shape):
    import openvino as ov

    example = (torch.randn(1, *shape), torch.tensor([3]))
    graph = ov.convert_model(Plain(model).eval(), example_input=example)
    graph.reshape({graph.inputs[0]: [1, *shape], graph.inputs[1]: [1]})
    return graph


def nncf_int8(graph, calls, halved=False):
    """NNCF's int8; ``halved`` leaves a bit of the weights unused, which keeps sums of products in
    int16 from saturating on machines without VNNI.
    """
    import nncf

    data = nncf.Dataset([[x.numpy(), t.reshape(1).numpy()] for x, t in calls])
    fix = nncf.OverflowFix.ENABLE if halved else nncf.OverflowFix.FIRST_LAYER
    options = nncf.AdvancedQuantizationParameters(overflow_fix=fix)
    return nncf.quantize(graph.clone(), data, subset_size=len(calls), advanced_parameters=options)


def compiled(graph, threads):
    """An OpenVINO graph as a function, with the options that a session uses."""
    import openvino as ov

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        **EXACT,
    }
    request = ov.Core().compile_model(graph, "CPU", options).create_infer_request()

    def call(x, t):
        found = request.infer([x.numpy(), t.reshape(1).numpy()], share_outputs=True)
        return torch.from_numpy(np.array(found[0]))

    return call


def onnx_float(model, shape, file, threads):
    import onnxruntime

    if not file.exists():
        auto = torch.export.Dim.AUTO
        example = (torch.randn(2, *shape), torch.tensor([3, 5]))
        torch.onnx.export(
            Plain(model).eval(), example, file, dynamo=True, external_data=False, optimize=False,
            dynamic_shapes={"x": {0: auto}, "t": {0: auto}}, verbose=False,
        )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options)
    names = [port.name for port in session.get_inputs()]
    return lambda x, t: session.run(None, {names[0]: x.numpy(), names[1]: t.reshape(1).numpy()})


def quantized(model, calls, bits, scale):
    q = tdq.quantize(copy.deepcopy(model), tdq.Recipe(*bits, scale=scale), verbose=False)
    tdq.calibrate(q, calls, progress=False)
    return tdq.freeze(q)


def exported(make, file, example, **options):
    """Exports what ``make`` makes unless the file is there; seconds and bytes."""
    record = file.with_suffix(".json")
    if not record.exists():
        frozen = make()
        started = time.perf_counter()
        tdq.export(frozen, file, example, **options)
        seconds = time.perf_counter() - started
        parts = [p for p in file.parent.glob(f"{file.stem}.*") if p.suffix != ".json"]
        size = sum(part.stat().st_size for part in parts)
        record.write_text(json.dumps({"seconds": seconds, "bytes": size}))
    return json.loads(record.read_text())


def kept(make, file):
    """An OpenVINO graph, made unless the file is there."""
    import openvino as ov

    if not file.exists():
        ov.save_model(make(), file, compress_to_fp16=False)
    return ov.Core().read_model(file)


def kernels(session):
    """How many products of each type and precision the compiled graph has."""
    (one,) = session.engine._compiled.values()
    infos = [node.get_rt_info() for node in one.model.get_runtime_model().get_ops()]
    names = [(i["layerType"].astype(str), i["primitiveType"].astype(str)) for i in infos]
    return Counter(
        f"{layer} {primitive}"
        for layer, primitive in names
        if layer in ("Convolution", "FullyConnected", "MatMul")
    )


def times(args, folder):
    big, shape = cifar_unet(), (3, 32, 32)
    calls = [(torch.randn(1, *shape), torch.tensor(t)) for t in TIMES]
    x, t = calls[0][0], torch.tensor(431)
    frozen = {
        scale: functools.cache(partial(quantized, big, calls, (4, 8), scale))
        for scale in ("temporal", "static")
    }
    variants = {
        "temporal": (frozen["temporal"], {}),
        "static": (frozen["static"], {}),
        "int4": (frozen["temporal"], {"compress": True}),
    }
    sessions, files = {}, {}
    for scale, (make, options) in variants.items():
        for suffix in (".xml", ".onnx"):
            file = folder / f"{scale}-{suffix[1:]}{suffix}"
            files[file.name] = exported(make, file, (x, t), **options)
            sessions[suffix, scale] = tdq.open_session(file, args.threads)
    graph = kept(lambda: openvino_float(big, shape), folder / "float.xml")
    static = kept(lambda: nncf_int8(graph, calls), folder / "nncf.xml")
    if args.export:
        onnx_float(big, shape, folder / "float.onnx", args.threads)
        return {}
    groups = {
        "OpenVINO": {
            "torch float32": big,
            "OpenVINO float32": compiled(graph, args.threads),
            "NNCF static int8": compiled(static, args.threads),
            **{f"W4A8 {s}": sessions[".xml", s] for s in ("temporal", "static", "int4")},
        },
        "ONNX Runtime": {
            "ONNX Runtime float32": onnx_float(big, shape, folder / "float.onnx", args.threads),
            **{f"W4A8 {s}": sessions[".onnx", s] for s in ("temporal", "static", "int4")},
        },
    }
    seconds = {
        engine: interleaved({n: partial(f, x, t) for n, f in group.items()}, args.rounds)
        for engine, group in groups.items()
    }
    for engine, found in seconds.items():
        print(engine)
        table(
            ["", "ms", "/ temporal"],
            [[n, s * 1e3, s / found["W4A8 temporal"]] for n, s in found.items()],
        )
    return {"seconds": seconds, "files": files, "kernels": kernels(sessions[".xml", "temporal"])}


def relative(model, reference, calls):
    """Squared error over squared output, averaged over timesteps."""
    error, signal = {}, {}
    with torch.no_grad():
        for x, t in calls:
            exact = reference(x, t)
            key = int(t)
            error[key] = error.get(key, 0.0) + float((model(x, t) - exact).square().sum())
            signal[key] = signal.get(key, 0.0) + float(exact.square().sum())
    return sum(error[k] / signal[k] for k in error) / len(error)


def errors(args, folder):
    pipe = tdq.models.load_embedded("cats-ddpm")
    recorded = partial(
        tdq.trajectories, pipe.unet, pipe.scheduler, shape=pipe.shape, steps=50, batch=1
    )
    calls = list(recorded(count=4, seed=0))
    unseen = list(recorded(count=2, seed=1))
    graph = kept(lambda: openvino_float(pipe.unet, pipe.shape), folder / "cats-float.xml")
    static = kept(lambda: nncf_int8(graph, calls), folder / "cats-nncf.xml")
    halved = kept(lambda: nncf_int8(graph, calls, halved=True), folder / "cats-nncf-halved.xml")
    models = {
        "OpenVINO float32": compiled(graph, args.threads),
        "NNCF static int8": compiled(static, args.threads),
        "NNCF without saturation": compiled(halved, args.threads),
    }
    for name, bits in SETTINGS.items():
        file = folder / f"cats-{name}.xml"
        exported(partial(quantized, pipe.unet, calls, bits, "auto"), file, calls[0])
        models[name] = tdq.open_session(file, args.threads)
    if args.export:
        return {}
    found = {name: relative(model, pipe.unet, unseen) for name, model in models.items()}
    table(
        ["", "error", "/ NNCF"], [[n, e, e / found["NNCF static int8"]] for n, e in found.items()]
    )
    x, t = unseen[0]
    seconds = interleaved({n: partial(m, x, t) for n, m in models.items()}, args.rounds)
    return {"error": found, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=["time", "error"], choices=["time", "error"])
    parser.add_argument("--files", type=Path, default=Path("runs/engines"))
    parser.add_argument("--export", action="store_true", help="make the files, measure nothing")
    parser.add_argument("--name", default="engines", help="of the file in benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.files.mkdir(parents=True, exist_ok=True)
    parts = {"time": times, "error": errors}
    found = {part: parts[part](args, args.files) for part in args.only}
    if not args.export:
        write(args.name, **found)


if __name__ == "__main__":
    main()
