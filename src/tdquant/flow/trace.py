"""``trace``: what the layers of a model take from the sample, the timestep and each other, and
where the samples lie in what they take, from a few calls of two samples.

Values tell what depends on what, whatever a model does to its tensors: one argument is changed,
and what a layer takes changes or does not. Where a change of one sample reaches, the other is not.
Sources (``tdquant.flow.edges``) tell which layers lie between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls.call import Call, tensors_in
from tdquant.errors import CalibrationError
from tdquant.flow.batch_axes import any_changed, find_batch_axis
from tdquant.flow.edges import CONDITION, LAYERS, ROUTED, SAMPLE, FlowMode
from tdquant.flow.probes import Probe
from tdquant.flow.sketches import Sketch, changed
from tdquant.layers import QUANTIZED, QuantLayer
from tdquant.numerics.batch_axis import TOGETHER, BatchAxis
from tdquant.support.hooks import hooked
from tdquant.support.thread_modes import DrawingFrom


@dataclass
class Visit:
    """One use of a layer: a sketch of its input, and the sources of it."""

    sketch: Sketch
    sources: int = 0


@dataclass(frozen=True)
class LayerFlow:
    """What a layer takes.

    Attributes:
        sample: Whether it depends on the sample.
        time: Whether it depends on the timestep.
        constant: Whether nothing that a call brings changes it, and it is not zero.
        vector: Whether it is one vector for each sample or time, not tokens or an image.
        batch: Where samples lie in it.
        feeds: Layers that take what it gives, with no other layer between.
        first: Whether it takes the sample itself.
        last: Whether it gives the output itself.
    """

    sample: bool
    time: bool
    constant: bool
    vector: bool
    batch: BatchAxis
    feeds: frozenset[str] = frozenset()
    first: bool = False
    last: bool = False


@dataclass
class _Recorder:
    """Hooks that note every use of a layer in one call."""

    layers: dict[str, nn.Module]
    watched: dict[str, nn.Module]
    mode: FlowMode | None = None
    visits: dict[str, list[Visit]] = field(default_factory=dict)
    output: int = 0

    def run(self, model: nn.Module, probe: Probe) -> Any:
        bits = {path: 1 << (LAYERS + i) for i, path in enumerate(self.layers)}

        def enter(path: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                x = next(tensors_in((args, kwargs)), None)
                if x is not None and x.ndim and x.numel():
                    sources = self.mode.sources(x) if self.mode else 0
                    image = isinstance(module, nn.modules.conv._ConvNd) and x.ndim > 2
                    sketch = Sketch.of(x, 1 if image else -1)
                    self.visits.setdefault(path, []).append(Visit(sketch, sources))

            return hook

        def leave(path: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                for y in tensors_in(output):
                    if self.mode is not None:
                        self.mode.put(y, bits[path] | (self.mode.sources(y) & ROUTED))

            return hook

        pre = [
            m.register_forward_pre_hook(enter(path), with_kwargs=True)
            for path, m in {**self.layers, **self.watched}.items()
        ]
        post = [m.register_forward_hook(leave(path)) for path, m in self.layers.items()]
        # Equal draws in every run, and other threads draw as they do.
        with hooked([*pre, *post]), DrawingFrom(torch.Generator().manual_seed(0)):
            if self.mode is None:
                return probe.run(model)
            for sample, source in ((True, SAMPLE), (False, CONDITION)):
                for tensor in probe.tensors(sample):
                    self.mode.add(tensor, source)
            with self.mode:
                output = probe.run(model)
            for tensor in tensors_in(output):
                self.output |= self.mode.sources(tensor)
            return output


@torch.no_grad()
def trace(
    model: nn.Module, call: Call, timestep: tuple[str, int], watched: Iterable[str] = ()
) -> dict[str, LayerFlow]:
    """The data flow between the layers of a model in one call; modes, hooks and random state are
    left as they were.

    Arguments:
        model: A model that runs in float, in evaluation mode.
        call: A recorded call.
        timestep: Name and position of the timestep argument.
        watched: Paths of further modules whose inputs are looked at, such as the quantizers of
            attention.

    Returns:
        Path -> what the layer takes, of every module that the call reached.

    Raises:
        CalibrationError: A layer takes NaN or infinite numbers, in which no change shows.
        Exception: Whatever the model raises for such calls.
    """
    layers = {path: m for path, m in model.named_modules() if _is_layer(m)}
    others = {path: model.get_submodule(path) for path in watched}

    def probe(vector: bool) -> Probe:
        return Probe(model, call, timestep, vector)

    def first_run(probe: Probe) -> tuple[_Recorder, Any]:
        recorder = _Recorder(layers, others, FlowMode())
        return recorder, recorder.run(model, probe)

    vector = True
    try:
        base, output = first_run(probe(vector))
    except Exception:  # perhaps a model of one time for all samples
        vector = False
        base, output = first_run(probe(vector))
    if (several := probe(vector)).add_samples(output):
        base, _ = first_run(several)
    _check_finite(base)

    def changed_run(change: Callable[[Probe], None]) -> _Recorder:
        recorder, other = _Recorder(layers, others), probe(vector)
        other.add_samples(output)
        change(other)
        recorder.run(model, other)
        return recorder

    runs = [changed_run(c) for c in (Probe.other_sample, Probe.other_arguments, Probe.other_time)]
    return _Graph(base, runs, list(layers), several.times).flows()


def _check_finite(recorder: _Recorder) -> None:
    """Raises CalibrationError, which names the first layer that takes what is not finite."""
    for path, visits in recorder.visits.items():
        if not all(math.isfinite(visit.sketch.level) for visit in visits):
            raise CalibrationError(
                "NaN or infinite activations",
                where=path,
                fix="run the float model on the first call and look where they start",
            )


def _is_layer(module: nn.Module) -> bool:
    """Whether a module multiplies by a weight: what data flows between."""
    if isinstance(module, QuantLayer) or type(module) in QUANTIZED:
        return True
    own = [p for p in module._parameters.values() if p is not None and p.ndim > 1]
    return bool(own) and not isinstance(module, nn.Embedding) and not any(module.children())


class _Graph:
    """The layers of a call and what they take from each other."""

    def __init__(
        self, base: _Recorder, runs: list[_Recorder], layers: list[str], times: int
    ) -> None:
        self._base, self._runs, self._layers, self._times = base, runs, layers, times
        self._changes = {path: self._changed(path) for path in base.visits}

    def _changed(self, path: str) -> list[list[list[Tensor] | None]]:
        """By run and use: what changed along each dimension, None where shapes differ."""
        before = self._base.visits[path]
        found = []
        for run in self._runs:
            after = run.visits.get(path, [])
            if len(after) == len(before):
                found.append(
                    [changed(b.sketch, a.sketch) for b, a in zip(before, after, strict=True)]
                )
            else:
                found.append([None] * len(before))
        return found

    def _depends(self, path: str, run: int) -> bool:
        return any(axes is None or any_changed(axes) for axes in self._changes[path][run])

    def _names(self, sources: int) -> frozenset[str]:
        return frozenset(n for i, n in enumerate(self._layers) if sources >> (LAYERS + i) & 1)

    def flows(self) -> dict[str, LayerFlow]:
        """The flow of every layer."""
        visits = self._base.visits
        sources = {path: self._sources(path) for path in visits}
        by_sample = {path for path in visits if self._depends(path, 0)}
        feeds: dict[str, set[str]] = {path: set() for path in self._layers}
        for path in self._layers:
            for source in self._names(sources.get(path, 0)) - {path}:
                feeds[source].add(path)
        ends = self._names(self._base.output)
        flows = {}
        for path in visits:
            fed_by = self._names(sources[path])
            time, conditions = self._depends(path, 2), self._depends(path, 1)
            sample = path in by_sample
            flows[path] = LayerFlow(
                sample=sample,
                time=time,
                constant=not (sample or time or conditions)
                and any(v.sketch.rows for v in visits[path]),
                vector=all(
                    v.sketch.rows <= self._times
                    for run in (self._base, *self._runs)
                    for v in run.visits.get(path, [])
                ),
                batch=self._batch(path),
                feeds=frozenset(feeds.get(path, ())),
                first=sample and bool(sources[path] & SAMPLE) and not fed_by & by_sample,
                last=sample and path in ends and not feeds.get(path),
            )
        return flows

    def _sources(self, path: str) -> int:
        found = 0
        for visit in self._base.visits[path]:
            found |= visit.sources
        return found

    def _batch(self, path: str) -> BatchAxis:
        """Where samples lie in every input of a layer."""
        found = set()
        for use, visit in enumerate(self._base.visits[path]):
            first, second, time = (run[use] for run in self._changes[path])
            found.add(find_batch_axis(first, second, time, bool(visit.sources & ROUTED)))
        return found.pop() if len(found) == 1 else TOGETHER
