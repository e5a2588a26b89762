"""Calls of the denoisers of a diffusers pipeline while it samples.

The pipeline runs as its user runs it, with guidance and conditioning, and a hook on each denoiser
records the calls. Only one run of the pipeline is held in memory at a time.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls.call import map_tensors
from tdquant.calls.observing import in_float
from tdquant.calls.prompts import COUNT, FIRST, make_runs
from tdquant.calls.shards import Shards, write_shards
from tdquant.clock import find_timestep
from tdquant.diffusion.sampling import stream_of
from tdquant.errors import ConversionError, ModelError
from tdquant.support.hooks import hooked
from tdquant.support.progress import track
from tdquant.support.restoring import keeping_random_state
from tdquant.support.thread_modes import BFloat16AsFloat32

KeywordCall = dict[str, Any]
Prompts = int | str | Sequence[str | KeywordCall] | None
_NOT_DENOISERS = ("controlnet", "vae", "encoder", "adapter", "movq", "vqgan", "connector")

_OLD_ARGUMENTS = ("callback", "callback_steps")
"""What pipelines of diffusers look for in their ``**kwargs``; anything else there they ignore."""


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The components of a diffusers pipeline that are called with a timestep at every step.

    Raises:
        ModelError: There is none, or ``pipe`` is not a pipeline.
    """
    components = getattr(pipe, "components", None)
    if not isinstance(components, Mapping):
        fix = "a diffusers DiffusionPipeline"
        raise ModelError(f"a {type(pipe).__name__} is no pipeline", fix=fix)
    modules = {name: m for name, m in components.items() if isinstance(m, nn.Module)}
    found = {}
    for name, module in modules.items():
        if not any(word in name for word in _NOT_DENOISERS):
            with contextlib.suppress(ConversionError):
                find_timestep(module)
                found[name] = module
    if not found:
        raise ModelError(
            "the pipeline has no denoiser",
            where=type(pipe).__name__,
            why=f"none of its modules ({', '.join(modules) or 'none'}) takes a timestep",
            fix="record the calls of your model yourself: calibrate takes any iterable of them",
        )
    return found


@dataclass(frozen=True)
class Recording:
    """Calls of one denoiser, dictionaries of keyword arguments. Every iteration samples again,
    with equal results. With several denoisers index it by name: ``recording["transformer_2"]``.

    Made by ``record_pipeline``, which documents the fields.
    """

    pipe: Any
    runs: tuple[KeywordCall, ...]
    names: tuple[str, ...]
    seed: int = 0
    progress: bool = True
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Recording:
        if name not in self.names:
            fix = f"one of {', '.join(self.names)}"
            raise ModelError(f"no denoiser {name!r}", where="recording", fix=fix)
        return replace(self, names=(name,))

    def __iter__(self) -> Iterator[KeywordCall]:
        if len(self.names) > 1:
            raise ModelError(
                f"the recording is of {len(self.names)} denoisers",
                where="recording",
                why="each of them is calibrated with its own calls",
                fix=" or ".join(f'recording["{name}"]' for name in self.names),
            )
        for calls in self.by_run():
            yield from calls[self.names[0]]

    def by_run(self) -> Iterator[dict[str, list[KeywordCall]]]:
        """The calls of every denoiser, run by run of the pipeline."""
        runs = zip(self.arguments(), self.runs, strict=True)
        for given, run in track(runs, "recording", len(self.runs), self.progress):
            yield self._run(given, run[FIRST])

    def save(self, directory: str | Path) -> Shards:
        """Runs the pipeline once and saves all calls to a folder of safetensors shards, which is
        written as a whole or not at all.

        Returns:
            The same calls, read from the folder, as ``read_shards`` does.

        Raises:
            StorageError: The folder holds something else, or an argument is neither a tensor nor
                JSON.
        """
        return write_shards(directory, self.by_run(), self.names, self.made_by)

    def arguments(self) -> Iterator[KeywordCall]:
        """The arguments of every run of the pipeline, random number generators included."""
        seeded = "generator" in inspect.signature(self.pipe.__call__).parameters
        for run in self.runs:
            given = dict(run)
            first, count = given.pop(FIRST), given.pop(COUNT)
            if seeded and "generator" not in given:
                streams = [stream_of(self.seed, first + i) for i in range(count)]
                given["generator"] = streams if count > 1 else streams[0]
            yield given

    def draw(self, given: KeywordCall, first: int) -> Any:
        """Runs the pipeline once. What it draws without a generator depends on the seed and on
        the index of the run's first sample; the caller's random state stays as it is.

        Raises:
            ModelError: The pipeline takes prompts, got none, and refuses to run without.
        """
        pixels = "vae" not in self.pipe.components  # which pipelines hand over as NumPy's
        with keeping_random_state(), BFloat16AsFloat32() if pixels else contextlib.nullcontext():
            torch.manual_seed(stream_of(self.seed, first).initial_seed())
            try:
                return self.pipe(**given)
            except (TypeError, ValueError) as error:
                taken = inspect.signature(self.pipe.__call__).parameters
                if "prompt" not in taken or any(name.startswith("prompt") for name in given):
                    raise
                raise ModelError(
                    "no prompts for a pipeline that takes them",
                    where=type(self.pipe).__name__,
                    why=str(error),
                    fix='trajectories(pipe, ["a cat", ...]), --prompts FILE on the command line',
                ) from error

    def _run(self, given: KeywordCall, first: int) -> dict[str, list[KeywordCall]]:
        modules = {name: self.pipe.components[name] for name in self.names}
        keepers = {name: _Keeper(module) for name, module in modules.items()}
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(quietly(self.pipe))
            for module in modules.values():
                stack.enter_context(in_float(module))
            hooks = [
                module.register_forward_pre_hook(keepers[name], with_kwargs=True, prepend=True)
                for name, module in modules.items()
            ]
            stack.enter_context(hooked(hooks))
            self.draw(given, first)
        return {name: keeper.calls for name, keeper in keepers.items()}


class _Keeper:
    """A forward pre-hook that keeps each call as keyword arguments."""

    def __init__(self, module: nn.Module) -> None:
        self.calls: list[KeywordCall] = []
        self._signature = inspect.signature(module.forward)
        # Most arguments are the same tensors at every step, and are copied once.
        self._copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: KeywordCall) -> None:
        bound = self._signature.bind(*args, **kwargs)
        call: KeywordCall = {}
        for name, value in bound.arguments.items():
            kind = self._signature.parameters[name].kind
            call |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        self.calls.append(map_tensors(self._copy, call))

    def _copy(self, tensor: Tensor) -> Tensor:
        # Tensors of inference mode do not count their changes.
        key = (id(tensor), -1 if tensor.is_inference() else tensor._version)
        known = self._copies.get(key)
        if known is None or (tensor.is_inference() and not torch.equal(tensor, known[1])):
            with torch.inference_mode(False), torch.no_grad():
                copy = tensor.detach().clone()
            # The original is held too, so that its id stays its own.
            known = self._copies[key] = tensor, copy
        return known[1]


@contextlib.contextmanager
def quietly(pipe: Any) -> Iterator[None]:
    """Switches off the pipeline's own progress bars."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    configure = getattr(pipe, "set_progress_bar_config", lambda **options: None)
    configure(**{**before, "disable": True})
    try:
        yield
    finally:
        configure(**before)


def record_pipeline(
    pipe: Any,
    prompts: Prompts = None,
    *,
    count: int | None = None,
    steps: int = 50,
    batch: int = 1,
    seed: int = 0,
    progress: bool = True,
    **call: Any,
) -> Recording:
    """Prepares to record the calls of a pipeline's denoisers, lazily and reproducibly.

    Arguments:
        pipe: A diffusers pipeline. A denoiser that is quantized, but not frozen, runs in float.
        prompts: One sample each; or dictionaries of arguments of the pipeline, one run each; or a
            number of samples, for a pipeline that takes no prompts.
        count: The number of samples, by name.
        steps: Sampler steps.
        batch: Samples a run, of prompts or of a number.
        seed: Seed of the noise; each sample has its own noise, whatever the batch.
        progress: Draw a bar.
        **call: Further arguments of every run: ``guidance_scale``, ``height``, ...

    Returns:
        An iterable of calls with a method ``save``, to be indexed by name if there are several
        denoisers.

    Raises:
        ModelError: No denoiser, no samples, or arguments that the pipeline does not take.
    """
    found = denoisers(pipe)
    taken = inspect.signature(pipe.__call__).parameters
    where = type(pipe).__name__
    if batch < 1 or steps < 1:
        raise ModelError(f"{batch=}, {steps=}", where="trajectories", fix="both at least 1")
    fixed = dict(call)
    if "num_inference_steps" in taken:
        fixed.setdefault("num_inference_steps", steps)
    if "output_type" in taken:  # images are not needed
        fixed.setdefault("output_type", "latent" if "vae" in pipe.components else "np")
    unknown = sorted(set(fixed) - set(taken))
    if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        own = type(pipe).__module__.startswith("diffusers.")
        unknown = [name for name in unknown if own and name not in _OLD_ARGUMENTS]
    if unknown:
        what = f"the pipeline takes no {', '.join(unknown)}"
        raise ModelError(what, where=where, fix=f"one of {list(taken)}")
    runs = make_runs(count if prompts is None else prompts, batch, taken, where)
    made_by = {
        "pipeline": where,
        "scheduler": type(getattr(pipe, "scheduler", None)).__name__,
        "steps": steps,
        "seed": seed,
        "runs": len(runs),
    }
    merged = tuple({**fixed, **run} for run in runs)
    return Recording(pipe, merged, tuple(found), seed, progress, made_by)
