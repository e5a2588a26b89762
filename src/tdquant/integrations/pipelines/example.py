"""The first call of each denoiser of a pipeline: the example to export it with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tdquant.calls.from_pipeline import denoisers, quietly, record_pipeline
from tdquant.errors import ExportError

PROMPT = "a photograph"


class _Called(Exception):  # noqa: N818
    """Ends a run of a pipeline at the first call of a denoiser."""

    def __init__(self, model: nn.Module, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.arguments = model, arguments


def first_calls(pipe: Any, example: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Denoiser -> arguments by name of its first call, which is not computed.

    Denoisers of one class are called alike, so one call serves for all of them.

    Arguments:
        pipe: A diffusers pipeline.
        example: Arguments of a run. A prompt is added where the pipeline takes one.

    Raises:
        ExportError: The pipeline cannot be run with these arguments, or ends before it calls a
            denoiser.
    """
    found = denoisers(pipe)
    arguments = _arguments(pipe, example)
    handles = [
        module.register_forward_pre_hook(_stop, with_kwargs=True, prepend=True)
        for module in found.values()
    ]
    where = f"{type(pipe).__name__}({', '.join(example or ())})"
    try:
        with torch.no_grad(), quietly(pipe):
            pipe(**arguments)
    except _Called as call:
        odd = [name for name, module in found.items() if type(module) is not type(call.model)]
        if odd:
            what = f"{', '.join(odd)} would need a call of its own"
            raise ExportError(what, where=where) from None
        return dict.fromkeys(found, call.arguments)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(
            "the pipeline cannot be run for an example call",
            where=where,
            why=str(error).strip().splitlines()[0],
            fix='example={"prompt": ..., "height": ..., ...}, the arguments of a run of it',
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    raise ExportError("the pipeline called no denoiser", where=where)


def _arguments(pipe: Any, example: Mapping[str, Any] | None) -> dict[str, Any]:
    run, taken = dict(example or {}), inspect.signature(pipe.__call__).parameters
    unknown = sorted(set(run) - set(taken))
    if unknown:
        raise ExportError(
            f"the pipeline takes no {', '.join(unknown)}",
            where=type(pipe).__name__,
            fix=f"of {', '.join(taken)}",
        )
    if "prompt" in taken and "prompt_embeds" not in run:
        run.setdefault("prompt", PROMPT)
    # Some schedulers take no fewer than two steps.
    return next(record_pipeline(pipe, [run], steps=2, progress=False).arguments())


def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    raise _Called(module, dict(bound))
