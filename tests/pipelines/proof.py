"""What is proved of a pipeline: it is quantized, calibrated and frozen as its users do it, and
what is found becomes its row of the table in docs/families.md.
"""

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import diffusers
import torch
from torch import nn

import tdquant as tdq
from tdquant.calls.from_pipeline import denoisers
from tdquant.clock import clock_of
from tdquant.families import family_of
from tdquant.lowering.calls import read_call
from tdquant.lowering.lowered import float32_copy
from tests.pipelines import PIPELINES, put, sample

RECIPE = tdq.Recipe(
    scale="table",
    overrides={"*to_q": {"scale": "temporal"}},
    temporal={"features": 8, "hidden": 8},
)
"""Both laws that follow time: networks take seconds to fit, so only some layers have them."""

_MULTISTEP = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS: dict[str, dict[str, dict[str, Any]]] = {
    "stable_diffusion_1": {
        "DDIMScheduler": {},
        "DPMSolverMultistepScheduler": {},
        "EulerDiscreteScheduler": {},
        "EulerAncestralDiscreteScheduler": {},
        "UniPCMultistepScheduler": {},
        "LCMScheduler": {},
    },
    "stable_diffusion_2": {"DPMSolverMultistepScheduler": {}, "EulerDiscreteScheduler": {}},
    "stable_diffusion_3": {
        "DPMSolverMultistepScheduler": _MULTISTEP,
        "UniPCMultistepScheduler": _MULTISTEP,
    },
    "wan": {"FlowMatchEulerDiscreteScheduler": {"shift": 3.0}},
}
"""Schedulers that a pipeline is sampled with beside its own, with changes to their options."""

NO_GRAPH = {"lumina_2": "ComplexType"}
"""Pipelines whose denoiser OpenVINO cannot trace, and the word of its error that says why. The
slow tests of ``tests/contracts/test_slots.py`` hold it."""

HEAD = (
    "family", "model", "pipeline", "times", "schedulers", "quantized", "float", "OpenVINO",
    "time in a file", "equal when loaded",
)  # fmt: skip
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass
class Proof:
    """A pipeline with frozen denoisers.

    Attributes:
        name: Its function in ``tests.pipelines``.
        pipe: The pipeline.
        call: Arguments of one sampling call.
        calls: Name -> recorded calls of each denoiser.
        floats: Name -> each denoiser before it was quantized.
        frozen: Name -> each denoiser, frozen.
        rows: Layer tables of the denoisers before calibration, which may split layers.
        reports: Name -> what calibration said.
        images: What the float pipeline gave.
    """

    name: str
    pipe: Any
    call: dict[str, Any]
    calls: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    floats: dict[str, nn.Module] = field(default_factory=dict)
    frozen: dict[str, nn.Module] = field(default_factory=dict)
    rows: list[Any] = field(default_factory=list)
    reports: dict[str, Any] = field(default_factory=dict)
    images: Any = None

    @classmethod
    def of(cls, name):
        """Quantizes at 8 bits, calibrates from recorded calls and freezes."""
        pipe, call = PIPELINES[name]()
        proof = cls(name, pipe, call, images=sample(pipe, call))
        proof.floats = {n: copy.deepcopy(model) for n, model in denoisers(pipe).items()}
        recording = tdq.trajectories(pipe, [call], progress=False)
        for n, model in denoisers(pipe).items():
            proof.rows += tdq.summary(tdq.quantize(model, RECIPE))
            proof.calls[n] = list(recording[n])
            proof.reports[n] = tdq.calibrate(
                model, proof.calls[n], estimator="minmax", progress=False
            ).tdq.calibration
            proof.frozen[n] = tdq.freeze(model)
        put(pipe, proof.frozen)
        return proof

    @cached_property
    def frozen_images(self):
        return sample(put(self.pipe, self.frozen), self.call)

    def loaded_images(self, folder):
        """Images of the pipeline whose denoisers were saved to the folder and loaded."""
        again = {n: tdq.load(tdq.save(m, folder / n)) for n, m in self.frozen.items()}
        images = sample(put(self.pipe, again), self.call)
        put(self.pipe, self.frozen)
        return images

    def with_scheduler(self, name):
        """The scheduler of that class, from the configuration of the pipeline's own."""
        options = SCHEDULERS[self.name][name]
        return getattr(diffusers, name).from_config(self.pipe.scheduler.config, **options)

    def row(self, folder):
        """The row of the table, by HEAD."""
        model = next(iter(self.frozen.values()))
        schedulers = [type(self.pipe.scheduler).__name__, *SCHEDULERS.get(self.name, {})]
        quantized = sum(min(row.weight_bits, row.input_bits) < 32 for row in self.rows)
        layers = [m for f in self.floats.values() for m in f.modules() if isinstance(m, _LAYERS)]
        return (
            family_of(model).name,
            type(model).__name__ + (" twice" if len(self.frozen) > 1 else ""),
            type(self.pipe).__name__,
            self.times(),
            ", ".join(s.removesuffix("Scheduler") for s in schedulers),
            str(quantized),
            str(len(layers) - quantized),
            "no" if self.name in NO_GRAPH else "yes",
            "-" if self.name in NO_GRAPH else self.exported_time(),
            "yes" if torch.equal(self.loaded_images(folder), self.frozen_images) else "no",
        )

    def exported_time(self):
        """The dtype of the timestep in an exported file."""
        name, model = next(iter(self.frozen.items()))
        call = read_call(float32_copy(model), self.calls[name][0])
        return str(call.tensors[call.timestep].dtype).removeprefix("torch.")

    def given(self, name, call):
        """The timestep of a call, as it was given."""
        return torch.as_tensor(call[clock_of(self.frozen[name]).argument])

    def time(self, name, call):
        """The timestep of a call as a number."""
        return float(self.given(name, call).max())

    def times(self):
        """The kind of timesteps that the denoisers get."""
        times = [self.given(name, call) for name in self.frozen for call in self.calls[name]]
        values = torch.cat([t.flatten().double() for t in times])
        kind = "continuous"
        if (values == values.round()).all() and values.max() > 1:
            kind = "indices"
        elif values.min() >= 0 and values.max() <= 1:
            kind = "0 to 1"
        return kind + (", one a token" if any(t.ndim > 1 for t in times) else "")


def table(rows):
    """Markdown of the rows."""
    lines = [HEAD, ("---",) * len(HEAD), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
