"""What every case goes through: calls saved and read back, quantize, calibrate, freeze, save,
load, the reference backend, an engine, files, bfloat16. ``prove`` gives a JSON record of it.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tdquant as tdq
from tdquant.calls import read_shards
from tdquant.calls.call import map_tensors
from tdquant.calls.shards import write_shards
from tdquant.clock import clock_of
from tdquant.families import family_of
from tdquant.layers import QUANTIZED, quantized_layers
from tdquant.quantizers import activation_quantizers
from tests.zoo.case import Case

RECIPE = tdq.Recipe(weights=8, activations=8, scale="table")
MEAN, WORST = 0.05, 0.25
"""Bounds on the error of an 8-bit model relative to the float one, on average and in the 99th
percentile of samples."""

PER_LAYER = 0.015
"""Noise on the input of every layer, over its root mean square, that 8 bits may amount to. A model
with random weights that amplifies such noise may be further off than MEAN by as much."""


class CheckError(Exception):
    """A check that does not hold."""


def holds(condition: bool, what: str) -> None:
    if not condition:
        raise CheckError(what)


def tensors(tree: Any) -> list[Tensor]:
    """The floating tensors of a nest, in order."""
    found: list[Tensor] = []
    if hasattr(tree, "to_tuple"):
        tree = tree.to_tuple()
    map_tensors(lambda t: found.append(t) if t.is_floating_point() else None, tree)
    return found


@torch.no_grad()
def outputs(model: nn.Module, calls: list[dict[str, Any]]) -> list[list[Tensor]]:
    return [tensors(model(**call)) for call in calls]


def errors(found: list[list[Tensor]], wanted: list[list[Tensor]]) -> Tensor:
    """Squared error of each sample over the mean square of the output at that call."""
    rows = []
    for ys, zs in zip(found, wanted, strict=True):
        for y, z in zip(ys, zs, strict=True):
            y, z = y.float(), z.float()
            rows.append((y - z).flatten(1).square().mean(1) / z.square().mean().clamp(min=1e-12))
    return torch.cat(rows).sqrt()


def relative(found: list[list[Tensor]], wanted: list[list[Tensor]]) -> dict[str, float]:
    each = errors(found, wanted)
    return {"mean": float(each.mean()), "worst": float(each.quantile(0.99))}


def equal(a: Any, b: Any) -> bool:
    """Whether two nests agree in every type, key and number."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def same_layers(frozen: nn.Module, lowered: nn.Module, call: dict[str, Any]) -> float:
    """The largest error of a layer of ``lowered`` on the inputs that it has in ``frozen``."""
    seen: list[tuple[str, Tensor, Tensor]] = []

    def keep(path: str) -> Callable[..., None]:
        return lambda layer, args, kwargs, y: seen.append(
            (path, next(iter((*args, *kwargs.values()))).clone(), y.clone())
        )

    handles = [
        layer.register_forward_hook(keep(path), with_kwargs=True)
        for path, layer in quantized_layers(frozen)
    ]
    with torch.no_grad():
        frozen(**call)
        for handle in handles:
            handle.remove()
        worst = 0.0
        with clock_of(lowered).at(clock_of(frozen).last):
            for path, x, y in seen:
                found = lowered.get_submodule(path)(x)
                scale = max(float(y.abs().max()), 1e-12) if y.numel() else 1.0
                error = (found - y).abs().max() if y.numel() else torch.zeros(())
                worst = max(worst, float(error) / scale)
    return worst


def half(model: nn.Module, calls: list[dict[str, Any]]) -> list[list[Tensor]]:
    """Outputs in bfloat16."""
    lower = lambda t: t.bfloat16() if t.is_floating_point() else t  # noqa: E731
    return outputs(copy.deepcopy(model).bfloat16(), map_tensors(lower, calls))


@torch.no_grad()
def amplification(model: nn.Module, call: dict[str, Any], noise: float = 1e-3) -> float:
    """Error of a float model's output over that of the inputs of all its layers."""
    rng = torch.Generator().manual_seed(0)

    def disturb(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        size = noise * args[0].square().mean().sqrt()
        return (args[0] + size * torch.randn(args[0].shape, generator=rng), *args[1:])

    wanted = outputs(model, [call])
    layers = [layer for layer in model.modules() if type(layer) in QUANTIZED]
    handles = [layer.register_forward_pre_hook(disturb) for layer in layers]
    found = outputs(model, [call])
    for handle in handles:
        handle.remove()
    return relative(found, wanted)["mean"] / noise


def prove(case: Case, folder: Path, files: bool = True) -> dict[str, Any]:
    """The record of a case: ``stages`` name -> ``"ok"`` or what went wrong, and numbers."""
    record: dict[str, Any] = {"case": case.name, "class": case.cls, "variant": case.variant}
    record["times"], stages = case.times, {}
    record["stages"] = stages
    started = time.perf_counter()
    made: dict[str, Any] = {}

    def stage(name: str, does: Callable[[], None]) -> bool:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                does()
            stages[name] = "ok"
        except Exception as error:
            stages[name] = f"{type(error).__name__}: {str(error).strip()}".replace("\n", " ")[:600]
        return stages[name] == "ok"

    def construct() -> None:
        made["float"], made["calls"] = case.model(), case.calls()
        made["wanted"] = outputs(made["float"], made["calls"])
        record["parameters"] = sum(p.numel() for p in made["float"].parameters())

    def record_calls() -> None:
        write_shards(folder / "calls", [{"denoiser": made["calls"]}], ["denoiser"], {})
        again = list(read_shards(folder / "calls"))
        holds(equal(again, made["calls"]), "calls that are read back differ")

    def quantize() -> None:
        made["live"] = tdq.quantize(copy.deepcopy(made["float"]), RECIPE)
        record["family"] = family_of(made["live"]).name

    def calibrate() -> None:
        tdq.calibrate(made["live"], made["calls"], progress=False)
        rows = tdq.summary(made["live"])
        record["layers"] = {
            "quantized": sum(max(row.weight_bits, row.input_bits) < 32 for row in rows),
            "weights": sum(row.weight_bits < 32 <= row.input_bits for row in rows),
            "float": sum(min(row.weight_bits, row.input_bits) >= 32 for row in rows),
        }
        record["inputs"] = sum(1 for _ in activation_quantizers(made["live"]))

    def freeze() -> None:
        made["frozen"] = tdq.freeze(made["live"])
        made["found"] = outputs(made["frozen"], made["calls"])
        record["error"] = relative(made["found"], made["wanted"])
        mean, worst = record["error"]["mean"], record["error"]["worst"]
        bound = MEAN
        if mean > MEAN:
            record["amplification"] = amplification(made["float"], made["calls"][2])
            bound = max(MEAN, PER_LAYER * record["amplification"])
        fits = mean <= bound and worst <= WORST / MEAN * bound
        holds(fits, f"error {mean:.3f}, at worst {worst:.3f}")

    def save() -> None:
        tdq.save(made["frozen"], folder / "model")
        for compact in (False, True):
            loaded = tdq.load(folder / "model", compact=compact)
            again = outputs(loaded, made["calls"])
            holds(equal(again, made["found"]), f"loaded ({compact=}) differs from frozen")

    def reference() -> None:
        lowered = tdq.compile(made["frozen"], "reference")
        worst = same_layers(made["frozen"], lowered, made["calls"][2])
        holds(worst <= 1e-6, f"a layer is {worst:.1e} off")
        near(outputs(lowered, made["calls"]))

    def near(found: list[list[Tensor]]) -> None:
        error, own = relative(found, made["wanted"]), record["error"]
        holds(error["mean"] <= 1.5 * own["mean"] + 0.005, f"error {error['mean']:.3f}")

    def engine(name: str) -> Callable[[], None]:
        return lambda: near(outputs(tdq.compile(made["frozen"], name), made["calls"]))

    def file(suffix: str) -> Callable[[], None]:
        def written() -> None:
            path = tdq.export(made["frozen"], folder / f"model{suffix}", made["calls"][0])
            near(outputs(tdq.open_session(path), made["calls"]))

        return written

    def bfloat16() -> None:
        record["bfloat16"] = relative(half(made["frozen"], made["calls"]), made["wanted"])
        own = relative(half(made["float"], made["calls"]), made["wanted"])
        bound = 2 * own["mean"] + 2 * record["error"]["mean"] + 0.02
        error = record["bfloat16"]["mean"]
        holds(error <= bound, f"error {error:.3f}; in float {own['mean']:.3f}")

    for name, does in (
        ("construct", construct), ("record", record_calls), ("quantize", quantize),
        ("calibrate", calibrate), ("freeze", freeze),
    ):  # fmt: skip
        measured = name == "freeze" and "error" in record
        if not stage(name, does) and name != "record" and not measured:
            return record
    stage("save", save)
    stage("reference", reference)
    if not stage("openvino", engine("openvino")):
        stage("onednn", engine("onednn"))
    stage("bfloat16", bfloat16)
    if files:
        stage(".xml", file(".xml"))
        stage(".onnx", file(".onnx"))
    record["seconds"] = round(time.perf_counter() - started, 1)
    return record


def works(record: dict[str, Any]) -> bool:
    """Whether everything held but for engines that refuse the model; none may compute another."""
    stages = dict(record["stages"])
    if stages.get("openvino", "").startswith("CheckError"):
        return False
    engine = stages.pop("openvino", None) == "ok" or stages.pop("onednn", None) == "ok"
    stages.pop("onednn", None)
    own = [found for name, found in stages.items() if name[0] != "."]
    return engine and len(own) >= 8 and all(found == "ok" for found in own)
