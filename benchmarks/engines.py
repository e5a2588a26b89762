"""Engines on the CPU side by side: time of a call, error against NNCF's int8, size of the files.

    python benchmarks/engines.py            # --rounds, --threads, --only unet|embedded|error

Times are medians of interleaved calls at batch 1 and 8, each library by itself: threads that wait
for work take the cores from the next. *unet* is the CIFAR UNet, 35.7M random parameters,
*embedded* the trained models that come with the package. *error* is of the trained cats-ddpm, on
trajectories that calibration never saw: squared error over squared output, averaged over
timesteps. What was exported stays in --files: a second run measures alone.
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
from cost import cifar_unet
from graphs import Plain, float_graph, options
from interleaved import interleaved
from record import table, write

TIMES = (0, 250, 500, 750, 999)
BATCHES = (1, 8)
NNCF = "NNCF static int8"

SETTINGS = {
    "W8A8": {"weights": 8, "activations": 8},
    "W8A8 static": {"weights": 8, "activations": 8, "scale": "static"},
    "W8A8, attention": {"weights": 8, "activations": 8, "attention": 8},
    "W4A8": {"weights": 4, "activations": 8},
}


def nncf_int8(graph, calls, halved=False):
    """NNCF's int8; ``halved`` leaves a bit of the weights unused, which keeps sums of products in
    int16 from saturating on machines without VNNI.
    """
    import nncf

    data = nncf.Dataset([[np.atleast_1d(value.numpy()) for value in call] for call in calls])
    fix = nncf.OverflowFix.ENABLE if halved else nncf.OverflowFix.FIRST_LAYER
    options = nncf.AdvancedQuantizationParameters(overflow_fix=fix)
    return nncf.quantize(graph.clone(), data, subset_size=len(calls), advanced_parameters=options)


def compiled(graph, threads, batch=None):
    """An OpenVINO graph as a function, with the options that docs/deploy.md names; with a batch
    size, for this size alone, as a session compiles it.
    """
    import openvino as ov

    graph = graph.clone()
    times = [i for i, port in enumerate(graph.inputs) if port.get_partial_shape().rank == 1]
    if batch is not None:
        sizes = {i: [batch] if i in times else [batch, 3, 32, 32] for i in (0, 1)}
        graph.reshape(sizes)
    request = ov.Core().compile_model(graph, "CPU", options(threads)).create_infer_request()
    whole = graph.inputs[times[0]].get_element_type().is_integral()

    def call(x, t):
        time = t.reshape(1).expand(len(x)).to(torch.int64 if whole else torch.float32)
        values = {times[0]: time.contiguous().numpy(), 1 - times[0]: x.numpy()}
        found = request.infer(values, share_inputs=True, share_outputs=True)
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


def quantized(model, calls, **recipe):
    q = tdq.quantize(copy.deepcopy(model), tdq.Recipe(**recipe, remedies=()))
    tdq.calibrate(q, calls, progress=False)
    return tdq.freeze(q)


def exported(make, file, example, **options):
    """Exports what ``make`` makes unless the file is there; seconds and bytes."""
    record = file.with_name(f"{file.name}.json")
    if not record.exists():
        frozen = make()
        started = time.perf_counter()
        tdq.export(frozen, file, example, **options)
        seconds = time.perf_counter() - started
        beside = (file, file.with_suffix(".bin"), file.with_name(f"{file.name}.data"))
        size = sum(part.stat().st_size for part in beside if part.exists())
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
    one = next(iter(session.engine._compiled.values()))
    infos = [node.get_rt_info() for node in one.rest.model.get_runtime_model().get_ops()]
    names = [(i["layerType"].astype(str), i["primitiveType"].astype(str)) for i in infos]
    return Counter(
        f"{layer} {primitive}"
        for layer, primitive in names
        if layer in ("Convolution", "FullyConnected", "MatMul")
    )


def timed(groups, inputs, rounds):
    """Median seconds of a call of each model, interleaved within its group."""
    found = {}
    for models in groups:
        found |= interleaved({n: partial(f, *inputs) for n, f in models.items()}, rounds)
    return found


def shown(title, found, base=NNCF):
    print(title)
    table(["", "ms", f"/ {base}"], [[n, s * 1e3, s / found[base]] for n, s in found.items()])


def unet(args, folder):
    import openvino as ov

    from tdquant.lowering.layout import channels_last

    big, shape = cifar_unet(), (3, 32, 32)
    torch.manual_seed(1)
    calls = [(torch.randn(1, *shape), torch.tensor(t)) for t in TIMES]
    sessions, files, models = {}, {}, {}
    for name, recipe in SETTINGS.items():
        models[name] = functools.cache(
            partial(quantized, big, calls, **{"scale": "temporal"} | recipe)
        )
        for suffix in (".xml", ".onnx") if name == "W8A8" else (".xml",):
            file = folder / f"{name.replace(', ', '-').replace(' ', '-')}{suffix}"
            files[file.name] = exported(models[name], file, calls[0])
            sessions[name, suffix] = tdq.open_session(file, args.threads)
    one = (torch.randn(1, *shape), torch.tensor([3]))
    graph = kept(lambda: float_graph(big, one), folder / "float.xml")
    static = kept(lambda: nncf_int8(graph, calls), folder / "nncf.xml")
    fast = models["W8A8"]()
    ours = {name: session for (name, suffix), session in sessions.items() if suffix == ".xml"}
    raw = ov.Core().read_model(folder / "W8A8.xml")
    found = {}
    for batch in BATCHES:
        x, t = torch.randn(batch, *shape), torch.tensor(431)
        eager = {
            "torch": channels_last(big),
            "torch.compile": torch.compile(channels_last(big), fullgraph=True, dynamic=False),
            "onednn W8A8": tdq.compile(fast, "onednn"),
        }
        openvino = {
            "OpenVINO float32": compiled(graph, args.threads, batch),
            NNCF: compiled(static, args.threads, batch),
            **ours,
            "W8A8, plain OpenVINO": compiled(raw, args.threads, batch),
            "W8A8, plain OpenVINO, any size": compiled(raw, args.threads),
        }
        groups = [eager, openvino]
        if batch == 1:
            file = folder / "float.onnx"
            groups.append({"ONNX Runtime float32": onnx_float(big, shape, file, args.threads)})
            groups[-1]["W8A8, ONNX Runtime"] = sessions["W8A8", ".onnx"]
        found[batch] = timed(groups, (x, t), args.rounds)
        shown(f"35.7M-parameter UNet, batch {batch}", found[batch])
    return {"seconds": found, "files": files, "kernels": kernels(ours["W8A8"])}


def embedded(args, folder):
    found = {}
    for name in ("cats-ddpm", "cats-ldm"):
        pipe = tdq.models.load_embedded(name)
        calls = list(
            tdq.trajectories(pipe.unet, pipe.scheduler, count=4, shape=pipe.shape, steps=20)
        )
        inputs = (torch.randn(1, *pipe.shape), torch.tensor(431))
        eager = {
            "torch": pipe.unet,
            "torch.compile": torch.compile(pipe.unet, fullgraph=True, dynamic=False),
        }
        ours = {}
        for setting in ("W8A8", "W4A8"):
            file = folder / f"{name}-{setting}.xml"
            exported(partial(quantized, pipe.unet, calls, **SETTINGS[setting]), file, inputs)
            ours[setting] = tdq.open_session(file, args.threads)
        found[name] = timed([eager, ours], inputs, 3 * args.rounds)
        shown(f"{name}, batch 1", found[name], "torch")
    return {"seconds": found}


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


def error(args, folder):
    pipe = tdq.models.load_embedded("cats-ddpm")
    recorded = partial(
        tdq.trajectories, pipe.unet, pipe.scheduler, shape=pipe.shape, steps=50, batch=1
    )
    calls = list(recorded(count=4, seed=0))
    unseen = list(recorded(count=2, seed=1))
    one = (torch.randn(1, *pipe.shape), torch.tensor([3]))
    graph = kept(lambda: float_graph(pipe.unet, one), folder / "cats-float.xml")
    static = kept(lambda: nncf_int8(graph, calls), folder / "cats-nncf.xml")
    halved = kept(lambda: nncf_int8(graph, calls, halved=True), folder / "cats-nncf-halved.xml")
    models = {
        "OpenVINO float32": compiled(graph, args.threads),
        NNCF: compiled(static, args.threads),
        "NNCF without saturation": compiled(halved, args.threads),
    }
    for name, recipe in SETTINGS.items():
        file = folder / f"cats-error-{name.replace(', ', '-').replace(' ', '-')}.xml"
        exported(partial(quantized, pipe.unet, calls, **recipe), file, calls[0])
        models[name] = tdq.open_session(file, args.threads)
    found = {name: relative(model, pipe.unet, unseen) for name, model in models.items()}
    table(["", "error", "/ NNCF"], [[n, e, e / found[NNCF]] for n, e in found.items()])
    return {"error": found}


PARTS = {"unet": unet, "embedded": embedded, "error": error}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--files", type=Path, default=Path("runs/engines"))
    parser.add_argument("--name", default="engines", help="of the file in benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.files.mkdir(parents=True, exist_ok=True)
    found = {part: PARTS[part](args, args.files) for part in args.only}
    write(args.name, threads=args.threads, **found)


if __name__ == "__main__":
    main()
