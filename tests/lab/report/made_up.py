"""Made-up inputs of a report, of the right form and of no meaning.

``python -m tests.lab.report.made_up DIR`` writes runs and studies to look at a page with.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tdquant.lab.evaluation.record import Record

MACHINE = {
    "processor": "AMD EPYC",
    "cores": 2,
    "threads": 2,
    "instructions": "AVX2",
    "torch": "2.13.0+cpu",
    "python": "3.11.7",
    "system": "Linux",
}
NETWORK = {"name": "efficientnet-lite0", "digest": "aa01", "title": "EfficientNet-Lite0"}
# bits, scale, Frechet distance, megabytes, images a second, noise in the pictures
MODELS = (
    ("float", "", 11.2, 9.58, 1.31, 0.0),
    ("W8A8", "static", 14.9, 2.53, 1.62, 0.10),
    ("W8A8", "temporal", 11.4, 2.53, 1.60, 0.02),
    ("W4A4", "static", 118.3, 1.36, 2.04, 0.55),
    ("W4A4", "temporal", 24.6, 1.37, 2.01, 0.16),
)


def face(seed, noise, size=32):
    """A cat of sorts, ``(size, size, 3)``, uint8."""
    draw = np.random.default_rng(seed)
    fur, eye = draw.uniform(0.25, 0.95, 3), draw.uniform(0, 0.5, 3)
    y, x = np.mgrid[0:size, 0:size] / (size - 1) * 2 - 1
    picture = np.ones((size, size, 3))
    head = x**2 + (y - 0.15) ** 2 < 0.5
    ears = (np.abs(np.abs(x) - 0.45) < (y + 0.95) * 0.4) & (y < -0.15) & (y > -0.95)
    picture[head | ears] = fur
    picture[(np.abs(x) - 0.28) ** 2 + (y - 0.05) ** 2 < 0.02] = eye
    picture[(np.abs(x) < 0.08) & (np.abs(y - 0.32) < 0.05)] = (0.9, 0.45, 0.5)
    shade = 1 - 0.18 * (y[..., None] + 1) / 2
    grain = np.random.default_rng(seed + 999).normal(size=picture.shape)
    return (np.clip(picture * shade + noise * grain, 0, 1) * 255).astype(np.uint8)


def layers(count=24, times=40, temporal=True, seed=0):
    """Content of ``layers.json``."""
    draw = np.random.default_rng(seed)
    ts = np.linspace(0, 999, times).round().astype(int)
    found = []
    for i in range(count):
        block, inside = divmod(i, 4)
        name = (
            "resnets.0.conv1",
            "resnets.0.conv2",
            "attentions.0.to_q",
            "resnets.1.conv_shortcut",
        )
        growth = draw.normal(0.35, 0.75) if temporal else 0.0
        steps = 0.05 * np.exp(growth * (ts / 999) ** 2 + 0.03 * draw.normal(size=times) * temporal)
        static = float(draw.uniform(0.008, 0.03))
        saved = float(np.clip(abs(growth) / 2.5, 0, 0.9))
        found.append(
            {
                "path": f"down_blocks.{block}.{name[inside]}",
                "type": "Linear" if "to_q" in name[inside] else "Conv2d",
                "weight_bits": 8 if i in (0, count - 1) else 4,
                "input_bits": 8 if i in (0, count - 1) else 4,
                "scale": "table" if temporal else "static",
                "zero_point": None,
                "steps": steps.tolist(),
                "error": static * (1 - saved),
                "error_static": static,
                "saved": saved,
                "weight_error": float(draw.uniform(0.004, 0.02)),
                "range": float(steps.max() / steps.min()),
                "correlation": float(np.clip(growth, -0.98, 0.98)),
                "parameters": int(draw.integers(2_000, 150_000)),
            }
        )
    return {"format": "tdquant-layers", "version": 1, "times": ts.tolist(), "layers": found}


def metric(title, value, spread, better, unit=""):
    return {
        "title": title,
        "value": value,
        "low": value * (1 - spread),
        "high": value * (1 + spread),
        "images": 5000,
        "better": better,
        "unit": unit,
    }


def remedies():
    """What a record says of what calibration tried."""
    trials = (
        ("bits", True, 0.034, 0.0298, "bits of 37 weights, 4.53 on average"),
        ("factors", False, 0.0298, 0.0415, "factors for the channels of 9 inputs"),
        ("rounding", True, 0.0298, 0.0121, "codes of 54 weights by their layers' outputs"),
        ("correction", True, 1.0, 0.83, "bias of the output over time, by calls"),
    )
    keys = ("name", "kept", "before", "after", "what")
    places = (("up_blocks.2.resnets.1.conv_shortcut", 8, 0.52), ("conv_in", 32, 0.2))
    return {
        "basis": "recorded trajectories",
        "trials": [dict(zip(keys, trial, strict=True)) for trial in trials],
        "protected": [{"path": p, "bits": b, "saved": s, "cost": 0.01} for p, b, s in places],
        "size": 0.167,
        "time": 0.352,
    }


def record(bits, scale, frechet, megabytes, speed, noise, **changed):
    model = {"name": "cats-ddpm", "source": f"models/{bits}", "digest": f"{bits}{scale}",
             "recipe": None, "bits": bits, "scale": scale, "history": [],
             "remedies": remedies() if scale == "temporal" else None}  # fmt: skip
    times = np.linspace(0, 999, 25).round().astype(int).tolist()
    bent = [28 - 60 * noise + 6 * np.sin(t / 330) for t in times]
    paired = {
        "against": {**model, "digest": "floaty", "bits": "float", "scale": ""},
        "images": 256,
        "metrics": {
            "mse": {**metric("MSE", 0.02 * noise + 1e-4, 0.1, "lower"), "median": 0.01},
            "lpips": metric("LPIPS", 0.6 * noise + 0.01, 0.06, "lower"),
        },
    }
    parts = {
        "tdquant": "0.1.0",
        "created": "2026-11-20T12:00:00+00:00",
        "model": model,
        "sampling": {"images": 5000, "seed": 0, "batch": 64, "steps": 50, "eta": 0.0,
                     "scheduler": {"name": "DDIM", "digest": "d1"}, "backend": "cpu",
                     "shape": [3, 32, 32], "prompts": None},
        "reference": {"name": "cats-heldout", "images": 5000, "preprocessing": "none",
                      "digest": "r1"},
        "network": NETWORK,
        "metrics": {
            "frechet": metric("Frechet EfficientNet-Lite0 distance", frechet, 0.03, "lower"),
            "precision": metric("Precision", 0.8 - noise, 0.02, "higher"),
        },
        "paired": None if bits == "float" else paired,
        "sqnr": None if bits == "float" else {"times": times, "decibels": bent},
        "cost": {"sampling_seconds": 5000 / speed, "images_per_second": speed,
                 "milliseconds_a_call": 20.0 / speed, "megabytes": megabytes},
        "machine": MACHINE,
        "command": f"tdquant evaluate models/{bits}-{scale or 'x'} --images 5000 --steps 50",
    }  # fmt: skip
    return Record(**{**parts, **changed})


def write_run(folder, kind=MODELS[4], pictures=24, with_layers=True, size=32, **changed):
    """One run folder."""
    (folder / "images").mkdir(parents=True)
    for i in range(pictures):
        Image.fromarray(face(i, kind[5], size)).save(folder / "images" / f"{i:06d}.png")
    if with_layers and kind[0] != "float":
        content = layers(temporal=kind[1] == "temporal")
        (folder / "layers.json").write_text(json.dumps(content))
    record(*kind, **changed).write(folder / "record.json")
    return folder


def write_progress(folder, stage="sampling", done=1280, of=5000):
    folder.mkdir(parents=True)
    state = {"stage": stage, "done": done, "of": of, "updated": "2026-11-22T20:10:00+00:00"}
    (folder / "progress.json").write_text(json.dumps(state))
    return folder


def study(name="qat", verdict="holds", **changed):
    """Content of a study file without pictures."""
    draw = np.random.default_rng(len(name))
    rows = []
    for bits, base in (("W8A8", 12), ("W4A8", 16), ("W4A4", 60)):
        for method, factor in (("float", 0), ("LSQ", 1.6), ("PACT", 1.9), ("TDQ", 1.0)):
            if method == "float" and bits != "W8A8":
                continue
            value = float(base * factor + draw.uniform(0, 1)) if factor else 11.2
            command = f"python studies/{name}.py --only {bits}-{method.lower()}"
            rows.append({"model": "cats-ddpm", "bits": bits, "method": method, "seeds": 3,
                         "frechet": value, "frechet_low": value * 0.96,
                         "frechet_high": value * 1.05, "kid": value / 900,
                         "command": command})  # fmt: skip
    steps = [5, 10, 20, 50, 100]
    curve = [80.0, 44.0, 29.0, 25.0, 24.0]
    lines = [
        {"name": label, "x": steps, "y": [v * f for v in curve],
         "low": [v * f * 0.93 for v in curve], "high": [v * f * 1.07 for v in curve],
         "dashed": label == "float"}
        for label, f in (("float", 0.5), ("TDQ", 1.0), ("LSQ", 1.7))
    ]  # fmt: skip
    return {
        "format": "tdquant-study",
        "version": 1,
        "study": name,
        "title": "Training temporal scales against static ones",
        "question": "Does a step that follows the timestep train to better samples at 4 bits?",
        "claim": "On every data set of the paper TDQ has the lowest FID, and the gap grows as "
        "bits get fewer.",
        "measured": "At W4A4 the distance is 60.4 with temporal scales and 96.7 with learned "
        "static ones; at W8A8 both are within the interval of the float model.",
        "verdict": verdict,
        "machine": MACHINE,
        "settings": {"steps": 50},
        "seconds": 8120.0,
        "command": f"python studies/{name}.py",
        "tables": [
            {
                "title": "Distance by bits and method",
                "note": "5,000 images of each model; mean of three seeds and its interval.",
                "group": ["model", "bits"],
                "columns": [
                    {"key": "method", "label": "Method"},
                    {"key": "seeds", "label": "Seeds"},
                    {"key": "frechet", "label": "Frechet", "better": "lower", "digits": 1},
                    {"key": "kid", "label": "KID", "better": "lower", "digits": 4},
                ],
                "rows": rows,
            }
        ],
        "plots": [
            {"title": "Fewer sampler steps", "x": {"label": "sampler steps", "log": True},
             "y": {"label": "Frechet distance", "log": True}, "lines": lines, "points": True},
            {"title": "While it trains", "x": {"label": "update", "log": False},
             "y": {"label": "loss", "log": False},
             "lines": [{"name": n, "x": list(range(0, 2000, 100)),
                        "y": [0.02 + s * 2.0 ** (-i / 4) for i in range(20)],
                        "low": [0.018 + s * 1.9 ** (-i / 4) / 1.3 for i in range(20)],
                        "high": [0.022 + s * 2.0 ** (-i / 4) * 1.3 for i in range(20)]}
                       for n, s in (("TDQ", 0.05), ("LSQ", 0.09))], "points": False},
        ],
        "figures": [],
        "samples": [],
        "layers": [],
        **changed,
    }  # fmt: skip


def matrix():
    """Parts of claims of every verdict; one without a run, one that says nothing of a model."""
    keys = ("verdict", "value", "low", "high", "what", "count")

    def cell(*values):
        return {key: value for key, value in zip(keys, values, strict=True) if value is not None}

    holds = cell("holds", 0.42, 0.3151, 0.55, "W4A4, against LSQ", 2)
    fails = cell("does not hold", 1.3, 1.1, 1.5, "W8A8, against PACT", 1)
    wide = cell("not decided", 0.9, None, None, "one training", 1)
    return {
        "title": "Parts by model", "note": "The whole interval decides.",
        "columns": ["pixel", "latent", "small"],
        "rows": [
            {"group": "1. It trains", "name": "distance, W4A4", "rule": "at most 0.95x",
             "cells": {"pixel": holds, "latent": fails}},
            {"group": "1. It trains", "name": "fewer steps", "rule": "at most 1.15x",
             "cells": {"pixel": wide, "latent": None, "small": holds}},
            {"group": "2. It is free", "name": "calls", "rule": "at most 1.01x", "cells": {}},
        ],
    }  # fmt: skip


def write_study(folder, name="qat", pictures=True, tile=32, **changed):
    """One study file, with its pictures."""
    content = study(name, **changed)
    if pictures:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "figures").mkdir(exist_ok=True)
        values, rows = ["100", "50", "10", "5"], []
        for method, noise in (("float", 0.0), ("TDQ, W4A4", 0.1), ("static, W4A4", 0.3)):
            files = {}
            for k, value in enumerate(values):
                strip = np.concatenate([face(i, noise + 0.05 * k, tile) for i in range(10)], 1)
                files[value] = f"samples/{name}-{len(rows)}-{value}.png"
                Image.fromarray(strip).save(folder / files[value])
            rows.append({"name": method, "files": files})
        del rows[2]["files"]["5"]
        content["samples"] = [
            {"title": "Samples as steps get fewer", "axis": "sampler steps", "values": values,
             "rows": rows, "tile": tile, "note": "The same noise in every column.",
             "credit": "Drawn by tests/report/made_up.py."}
        ]  # fmt: skip
        Image.new("RGB", (640, 240), (214, 226, 240)).save(folder / "figures" / f"{name}.png")
        content["figures"] = [
            {"file": f"figures/{name}.png", "title": "An overview", "alt": "A pale rectangle."}
        ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json"


def write_everything(folder):
    """Runs, one of which is of other images, an unfinished one, and studies of every verdict."""
    for model in MODELS:
        write_run(folder / "runs" / f"{model[0]}-{model[1] or 'x'}", model)
    write_progress(folder / "runs" / "w4a3")
    results = folder / "studies"
    write_study(results, "a-qat")
    write_study(results, "b-ptq", pictures=False, verdict="holds in part",
                title="Calibrating without training", matrix=matrix(),
                layers=[{"title": "Layers of the calibrated model", **layers(40)}],
                measured="Temporal scales halve the distance at W8A5; at W8A8 nothing is left to "
                "gain.")  # fmt: skip
    write_study(
        results,
        "c-dynamic",
        pictures=False,
        verdict="does not hold",
        plots=[],
        title="Temporal scales against input-dynamic ones",
        measured="Input-dynamic scales are better by 0.8, at a cost of 20 % in time.",
    )
    write_study(results, "d-large", pictures=False, verdict="not finished", tables=[], plots=[],
                title="Latent diffusion at 256 pixels",
                measured="Nothing yet: the churches checkpoint is not here.")  # fmt: skip
    return folder


if __name__ == "__main__":
    print(write_everything(Path(sys.argv[1])))
