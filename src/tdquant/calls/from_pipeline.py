"""Recording: the calls that the denoisers of a pipeline get while it samples.

The pipeline runs as its user runs it, guidance, conditioning and all; a hook on each denoiser
keeps what it is called with. One run of the pipeline is held at a time, so memory does not grow
with the number of runs.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls import from_denoiser
from tdquant.calls.call import map_tensors
from tdquant.calls.from_denoiser import Trajectories
from tdquant.calls.observing import in_float
from tdquant.calls.prompts import COUNT, FIRST, make_runs
from tdquant.calls.shards import Shards, read_shards, write_shards
from tdquant.clock import find_timestep
from tdquant.diffusion.sampling import stream_of
from tdquant.errors import ConversionError, ModelError
from tdquant.models.pipe import Pipe
from tdquant.support.progress import track

KeywordCall = dict[str, Any]
_NOT_DENOISERS = ("controlnet", "vae", "encoder", "adapter", "movq", "vqgan", "connector")


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The components of a diffusers pipeline that are called with a timestep at every step.

    Raises:
        ModelError: There is none, or this is no pipeline.
    """
    components = getattr(pipe, "components", None)
    if not isinstance(components, Mapping):
        raise ModelError(
            f"a {type(pipe).__name__} is no pipeline", fix="a diffusers DiffusionPipeline"
        )
    found = {}
    for name, module in components.items():
        if not isinstance(module, nn.Module) or any(word in name for word in _NOT_DENOISERS):
            continue
        with contextlib.suppress(ConversionError):
            find_timestep(module)
            found[name] = module
    if not found:
        modules = [name for name, m in components.items() if isinstance(m, nn.Module)]
        raise ModelError(
            "the pipeline has no denoiser",
            where=type(pipe).__name__,
            why=f"no module of it ({', '.join(modules) or 'it has none'}) takes a timestep",
            fix="record the calls of your model yourself: any iterable of them calibrates it",
        )
    return found


@dataclass(frozen=True)
class Recording:
    """Calls of one denoiser, dictionaries of keyword arguments; each iteration samples anew, with
    equal results. With several denoisers index it by name: ``recording["transformer_2"]``.

    Made by ``trajectories``, which says what the fields are.
    """

    pipe: Any
    runs: tuple[KeywordCall, ...]
    names: tuple[str, ...]
    seed: int = 0
    progress: bool = True
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Recording:
        if name not in self.names:
            raise ModelError(
                f"no denoiser {name!r}", where="recording", fix=f"one of {', '.join(self.names)}"
            )
        return Recording(self.pipe, self.runs, (name,), self.seed, self.progress, self.made_by)

    def __iter__(self) -> Iterator[KeywordCall]:
        if len(self.names) > 1:
            raise ModelError(
                f"calls of {len(self.names)} denoisers were asked for at once",
                where="recording",
                why="each is calibrated with its own",
                fix=" or ".join(f'recording["{name}"]' for name in self.names),
            )
        for calls in self.by_run():
            yield from calls[self.names[0]]

    def by_run(self) -> Iterator[dict[str, list[KeywordCall]]]:
        """The calls of every denoiser, run by run of the pipeline."""
        for given in track(self.arguments(), "recording", len(self.runs), self.progress):
            yield self._run(given)

    def save(self, directory: str | Path) -> Shards:
        """Runs the pipeline once and keeps all calls in a folder of safetensors shards, which is
        written whole or not at all.

        Returns:
            What ``trajectories(directory)`` returns: the same calls, read from the folder.

        Raises:
            StorageError: The folder holds something else, or an argument can be neither tensor
                nor JSON.
        """
        return write_shards(directory, self.by_run(), self.names, dict(self.made_by))

    def arguments(self) -> Iterator[KeywordCall]:
        """The arguments of every run of the pipeline, with the random numbers that it gets."""
        seeded = "generator" in inspect.signature(self.pipe.__call__).parameters
        for run in self.runs:
            given = dict(run)
            first, count = given.pop(FIRST), given.pop(COUNT)
            if seeded and "generator" not in given:
                streams = [stream_of(self.seed, first + i) for i in range(count)]
                given["generator"] = streams if count > 1 else streams[0]
            yield given

    def _run(self, given: KeywordCall) -> dict[str, list[KeywordCall]]:
        kept: dict[str, list[KeywordCall]] = {name: [] for name in self.names}
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(quietly(self.pipe))
            for name in self.names:
                module = self.pipe.components[name]
                stack.enter_context(in_float(module))
                keep = _Keeper(module, kept[name])
                handle = module.register_forward_pre_hook(keep, with_kwargs=True, prepend=True)
                stack.callback(handle.remove)
            self.pipe(**given)
        return kept


class _Keeper:
    """A forward pre-hook that appends each call to a list, as keyword arguments."""

    def __init__(self, module: nn.Module, calls: list[KeywordCall]) -> None:
        self._signature = inspect.signature(module.forward)
        self._calls = calls
        # Most arguments are the same tensors at every step, and are kept once.
        self._copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: KeywordCall) -> None:
        bound = self._signature.bind(*args, **kwargs)
        call: KeywordCall = {}
        for name, value in bound.arguments.items():
            kind = self._signature.parameters[name].kind
            call |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        self._calls.append(map_tensors(self._copy, call))

    def _copy(self, tensor: Tensor) -> Tensor:
        key = (id(tensor), tensor._version)
        if key not in self._copies:  # the original is held too, so that its id stays its own
            self._copies[key] = (tensor, tensor.detach().clone())
        return self._copies[key][1]


@contextlib.contextmanager
def quietly(pipe: Any) -> Iterator[None]:
    """The pipeline without bars of its own."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        if hasattr(pipe, "set_progress_bar_config"):
            pipe.set_progress_bar_config(**before)


def trajectories(
    source: Any, prompts: Any = None, *args: Any, **options: Any
) -> Recording | Shards | Trajectories:
    """The calls that denoisers get while they sample, for calibrating, lazily and reproducibly.

    Arguments:
        source: A diffusers pipeline, recorded as it runs; a pipe of ``tdquant.models``; a folder
            of recorded calls; or a denoiser, sampled by a scheduler, with the arguments of
            ``tdquant.calls.from_denoiser``: ``(model, scheduler, count, shape, ...)``.
        prompts: Of a pipeline: prompts, one sample each; a number of samples, which may be named
            ``count``; or dictionaries of arguments of the pipeline, one run each.
        *args: For a denoiser.
        **options: For a denoiser; for a pipeline those of ``record``: ``steps``, ``batch``,
            ``seed``, ``progress``, and whatever the pipeline's call takes.

    Returns:
        An iterable of calls. That of a pipeline has ``save(folder)``, and is indexed by name if
        there are several denoisers: ``calls["transformer_2"]``.

    Raises:
        ModelError: No denoiser, or arguments that the pipeline does not take.
        StorageError: The folder holds no calls.
    """
    if isinstance(source, (str, Path)):
        return read_shards(source)
    embedded = isinstance(source, Pipe)
    if isinstance(source, nn.Module) or not (embedded or hasattr(source, "components")):
        return from_denoiser.trajectories(source, prompts, *args, **options)
    if prompts is None:
        prompts = options.pop("count", None)
    if embedded:
        if not isinstance(prompts, int):
            raise ModelError(
                f"a number of samples is wanted, not {prompts!r}",
                where="trajectories",
                fix="tdq.trajectories(pipe, count=16)",
            )
        denoiser, scheduler, shape = source.unet, source.scheduler, source.shape
        return from_denoiser.trajectories(denoiser, scheduler, prompts, shape, *args, **options)
    return record(source, prompts, *args, **options)


def record(
    pipe: Any,
    prompts: int | Sequence[str | KeywordCall],
    *,
    steps: int = 50,
    batch: int = 1,
    seed: int = 0,
    progress: bool = True,
    **call: Any,
) -> Recording:
    """Prepares to record the calls of a pipeline's denoisers.

    Arguments:
        pipe: A diffusers pipeline. A denoiser that is quantized, but not frozen, runs in float.
        prompts: One sample each; or a number of samples; or dictionaries of arguments, one run
            each.
        steps: Sampler steps.
        batch: Samples a run, of prompts or of a number.
        seed: Seed of the noise; sample i has noise of its own, whatever the batch.
        progress: Draw a bar.
        **call: Further arguments of every run: ``guidance_scale``, ``height``, ...

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
    if "output_type" in taken:  # pictures are not needed
        fixed.setdefault("output_type", "latent" if "vae" in pipe.components else "np")
    unknown = sorted(set(fixed) - set(taken))
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        raise ModelError(
            f"the pipeline takes no {', '.join(unknown)}", where=where, fix=f"of {list(taken)}"
        )
    runs = make_runs(prompts, batch, taken, where)
    made_by = {
        "pipeline": where,
        "scheduler": type(getattr(pipe, "scheduler", None)).__name__,
        "steps": steps,
        "seed": seed,
        "runs": len(runs),
    }
    return Recording(
        pipe, tuple({**fixed, **run} for run in runs), tuple(found), seed, progress, made_by
    )
