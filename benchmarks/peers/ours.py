"""The float model and tdquant's ways to quantize it."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.peer import Peer
from benchmarks.peers.sdnq import SDNQ
from torch import nn

import tdquant as tdq
from tdquant.choice.size import float_bytes
from tdquant.support.machine import version

BITS = {"W8A8": (8, 8), "W5A8": (5, 8), "W4A8": (4, 8), "W8A5": (8, 5)}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class InPyTorch(Peer):
    """The model as it is."""

    name = "float, PyTorch"
    package = "torch"
    settings: ClassVar = {"float": None}

    def quantize(self, model, calls):
        return model

    def write(self, model, folder):
        from safetensors.torch import save_file

        save_file(model.state_dict(), folder / "model.safetensors")

    def layers(self, model):
        return {}


class Default(Peer):
    name = "tdquant, default"
    package = "tdquant"
    settings = BITS

    @classmethod
    def version(cls):
        said = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        return f"tdquant {version()} {said.stdout.strip()}".strip()

    def recipe(self, model):
        return tdq.Recipe(*self.options)

    def calibrate(self, model, calls):
        tdq.calibrate(model, calls, progress=False)

    def quantize(self, model, calls):
        model = tdq.quantize(model, self.recipe(model))
        self.calibrate(model, calls)
        return tdq.freeze(model)

    def sampled(self, model, call):
        return tdq.compile(model, "openvino", call)

    def write(self, model, folder):
        tdq.save(model, folder)

    def layers(self, model):
        found: dict[str, tuple[bool, bool]] = {}
        for row in tdq.summary(model):
            few, path = (row.weight_codes is not None, row.input_codes is not None), row.path
            while path:  # the parts of a layer that became several speak for it
                old = found.get(path, (False, False))
                found[path] = (old[0] or few[0], old[1] or few[1])
                path = path.rpartition(".")[0]
        return found

    def products(self, model, run, call):
        rows = [row for row in tdq.summary(run) if row.kernel]
        return sum("int8" in row.kernel for row in rows), len(rows)


class Tried(Default):
    name = "tdquant, tried on samples"
    note = "`calibrate(generate=...)`"

    def calibrate(self, model, calls):
        tdq.calibrate(model, calls, generate=self.generate, progress=False)


class Static(Default):
    name = "tdquant, static"

    def recipe(self, model):
        return tdq.Recipe(*self.options, scale="static")


class Reconstructed(Default):
    name = "tdquant, static, rounding learned"
    settings: ClassVar = {"W4A8": (4, 8)}
    note = "Q-Diffusion's ideas on our code: layers split along concatenations, 40 updates"

    def quantize(self, model, calls):
        model = tdq.quantize(model, tdq.Recipe(*self.options, scale="static", remedies=()))
        tdq.calibrate(model, calls, estimator="mse", progress=False)
        tdq.reconstruct(model, calls, scope="model", iterations=40, progress=False)
        return tdq.freeze(model)


class Edges(Default):
    name = "tdquant, edges of 8 bits"
    note = "`Recipe(edges=8, time_weights=...)`: nothing stays in float, no weights have more bits"

    def recipe(self, model):
        return tdq.Recipe(*self.options, edges=8, time_weights=self.options[0])


class BySize(Default):
    name = "tdquant, in SDNQ's bytes"
    settings: ClassVar = {"W5A8": (5, 8), "W4A8": (4, 8)}
    note = "`Budget(size=...)` of SDNQ's file, with `edges=8, time_weights=4`: bits layer by layer"

    def quantize(self, model, calls):
        other = SDNQ(self.setting)
        size = other.bytes(other.quantize(copy.deepcopy(model), calls)) / float_bytes(model)
        model = tdq.quantize(model, tdq.Recipe(*self.options, edges=8, time_weights=4))
        tdq.calibrate(model, calls, budget=tdq.Budget(size=size), progress=False)
        return tdq.freeze(model)


class Linear(Default):
    name = "tdquant, linear layers alone"
    settings: ClassVar = {"W8A8": (8, 8)}
    note = "the layers that torchao quantizes"

    @classmethod
    def applies(cls, model):
        return any(isinstance(module, CONVOLUTIONS) for module in model.modules())

    def recipe(self, model):
        named = model.named_modules()
        excluded = [path for path, module in named if isinstance(module, CONVOLUTIONS)]
        return tdq.Recipe(*self.options, exclude=tuple(excluded))
