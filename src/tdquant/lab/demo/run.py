"""The demonstration itself: quantize the embedded model twelve ways, compile, sample, judge."""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calibration import Observations, observe
from tdquant.calls import record_denoiser
from tdquant.choice import calibrate
from tdquant.diffusion import sample
from tdquant.diffusion.sampling import stream_of
from tdquant.files.documents import write_json
from tdquant.files.looking import entries
from tdquant.freezing import freeze
from tdquant.lab.metrics import FrechetDistance, mse, sqnr_over_time
from tdquant.lab.metrics.sqnr import mean_sqnr
from tdquant.lowering import compile
from tdquant.lowering.backends import time_calls
from tdquant.lowering.layout import channels_last
from tdquant.models import Pipe, load_embedded
from tdquant.quantization import quantize
from tdquant.quantizers import activation_quantizers
from tdquant.recipe import Recipe
from tdquant.scales import TableScale
from tdquant.storage import save
from tdquant.support.machine import machine
from tdquant.support.memory import resident_bytes

WIDTHS = ((8, 8), (8, 5), (4, 4))
TIMED = 16
ARMS: dict[str, dict[str, Any]] = {
    "static": {"scale": "static"},
    "input-dynamic": {"scale": "dynamic"},
    "temporal": {"scale": "auto", "remedies": ()},
    "default": {},
}
"""What is compared at every width: fields of recipes."""


@dataclass(frozen=True)
class Settings:
    """How much the demonstration does.

    Attributes:
        images: Images sampled by each model.
        steps: DDIM steps.
        calibration: Trajectories to calibrate on.
        judged: Calls kept for judging scales.
        trial: Images and steps by which choices for the whole model are compared.
        checked: Timesteps at which the SQNR is measured.
        seed: Seed of everything.
    """

    images: int = 192
    steps: int = 25
    calibration: int = 16
    judged: int = 50
    trial: tuple[int, int] = (16, 15)
    checked: int = 10
    seed: int = 0

    @classmethod
    def quick(cls, seed: int = 0) -> Settings:
        """A smaller run, to see that everything works."""
        return cls(
            images=48, steps=12, calibration=8, judged=12, trial=(8, 8), checked=5, seed=seed
        )


@dataclass(frozen=True)
class DemoRow:
    """One model: its bits and scales, the quality of its samples, and its cost.

    Attributes:
        bits: Such as ``"W4A4"``.
        scale: One of ARMS.
        frechet: Frechet EfficientNet-Lite0 distance to held-out cats.
        mse: Mean squared error of the samples against the float model's from the same noise.
        median: Median over samples of their mean squared error: a few that tip over into other
            images have most of the mean.
        sqnr: Mean over timesteps of the SQNR of the denoiser's output, dB.
        megabytes: Size on disk.
        milliseconds: Median time of a call of the denoiser on ``TIMED`` images.
        resident: Memory that its weights and tables take while it runs, MB.
    """

    bits: str
    scale: str
    frechet: float
    mse: float
    median: float
    sqnr: float
    megabytes: float
    milliseconds: float = 0.0
    resident: float = 0.0


@dataclass(frozen=True)
class DemoResult:
    """The results of the demonstration.

    Attributes:
        rows: One for each model, the float one first.
        images: ``(bits, scale)`` -> samples ``(N, 3, 32, 32)``.
        curves: Layer -> times and steps of its temporal scale, for the layers that move most.
        seconds: How long it took.
    """

    rows: list[DemoRow]
    images: dict[tuple[str, str], Tensor]
    curves: dict[str, tuple[Tensor, Tensor]]
    seconds: float

    def write_json(self, path: Path, settings: Settings) -> None:
        """Writes the rows with the settings and the machine."""
        record = {
            "settings": asdict(settings),
            "machine": machine(),
            "seconds": round(self.seconds, 1),
            "rows": [asdict(row) for row in self.rows],
        }
        write_json(path, record)


def run_demo(settings: Settings, progress: bool = True) -> DemoResult:
    """Runs the demonstration on ``cats-ddpm``.

    Arguments:
        settings: How much to do.
        progress: Draw bars.
    """
    started = time.perf_counter()
    pipe = load_embedded("cats-ddpm")
    distance = FrechetDistance()
    calls = record_denoiser(
        pipe.unet,
        pipe.scheduler,
        settings.calibration,
        pipe.shape,
        batch=16,
        seed=settings.seed + 1,
    )
    probe = quantize(copy.deepcopy(pipe.unet), Recipe(remedies=()))
    observations = observe(
        probe, calls, calls=settings.judged, seed=settings.seed, progress=progress
    )
    exact = _sample(pipe.unet, pipe, settings, "float", progress)
    size = sum(p.numel() * 4 for p in pipe.unet.state_dict().values()) / 1e6
    rows = [DemoRow("float", "", distance(exact), 0.0, 0.0, float("inf"), size)]
    images = {("float", ""): exact}
    curves: dict[str, tuple[Tensor, Tensor]] = {}
    running: list[nn.Module] = [channels_last(pipe.unet)]
    noise = torch.randn(TIMED, *pipe.shape, generator=stream_of(0, 0), dtype=torch.float32)
    timed = noise, torch.tensor(500)
    for (weights, activations), label in itertools.product(WIDTHS, ARMS):
        bits, recipe = f"W{weights}A{activations}", Recipe(weights, activations, **ARMS[label])
        frozen = _quantized(pipe, recipe, observations, settings, progress)
        model = compile(frozen, "onednn", example=timed)
        running.append(model)
        found = images[bits, label] = _sample(model, pipe, settings, f"{bits} {label}", progress)
        checks = record_denoiser(
            pipe.unet,
            pipe.scheduler,
            8,
            pipe.shape,
            steps=settings.checked,
            batch=8,
            seed=settings.seed + 2,
        )
        sqnr = mean_sqnr(sqnr_over_time(model, pipe.unet, checks))
        errors = mse(found, exact)
        paired = float(errors.mean()), float(errors.median())
        rows.append(DemoRow(bits, label, distance(found), *paired, sqnr, _megabytes(frozen)))
        if label == "temporal":
            curves = moving_curves(frozen)
    # Models are timed in turns, so that disturbances affect all alike.
    seconds = time_calls({str(i): m for i, m in enumerate(running)}, timed, runs=9)
    rows = [
        replace(row, milliseconds=1e3 * seconds[str(i)], resident=resident_bytes(model) / 1e6)
        for i, (row, model) in enumerate(zip(rows, running, strict=True))
    ]
    return DemoResult(rows, images, curves, time.perf_counter() - started)


def _quantized(
    pipe: Pipe, recipe: Recipe, observations: Observations, settings: Settings, progress: bool
) -> nn.Module:
    """The model, quantized by a recipe, calibrated and frozen."""
    model = quantize(copy.deepcopy(pipe.unet), recipe)
    count, steps = settings.trial

    def generate(net: nn.Module) -> Tensor:
        return sample(
            net,
            pipe.scheduler,
            count,
            pipe.shape,
            steps=steps,
            batch=count,
            seed=settings.seed + 3,
            progress=False,
        )

    calibrate(model, observations, generate=generate, seed=settings.seed, progress=progress)
    return freeze(model)


def _sample(
    model: nn.Module, pipe: Pipe, settings: Settings, label: str, progress: bool
) -> Tensor:
    return sample(
        model,
        pipe.scheduler,
        settings.images,
        pipe.shape,
        steps=settings.steps,
        batch=48,
        seed=settings.seed,
        progress=progress,
        label=label,
    )


def _megabytes(model: nn.Module) -> float:
    """Size of the saved model."""
    with tempfile.TemporaryDirectory() as folder:
        path = save(model, Path(folder) / "model")
        return sum(file.stat().st_size for file in entries(path)) / 1e6


def moving_curves(model: nn.Module, count: int = 6) -> dict[str, tuple[Tensor, Tensor]]:
    """Times and steps of the frozen scales that move most, the widest spread first."""
    tables = {
        name.removesuffix(".input_quantizer").removeprefix("unet."): q.scale
        for name, q in activation_quantizers(model)
        if isinstance(q.scale, TableScale) and not q.scale.static
    }
    spread = {name: float(scale.table.max() / scale.table.min()) for name, scale in tables.items()}
    chosen = sorted(spread, key=spread.__getitem__, reverse=True)[:count]
    return {name: (tables[name].knots, tables[name].table.detach()) for name in chosen}
