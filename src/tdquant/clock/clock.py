"""The clock: the one object that knows the current timestep of one denoiser.

It sits on the root model as a forward pre-hook, reads the timestep argument of the call, lends it
to every quantizer below, and forgets it when the call is over. The hooks are bound methods, so a
deep copy of the model (an EMA, say) gets a clock of its own.

Steps that depend on the timestep alone are computed before the call begins, for the whole model at
once: if the class of a ``scale`` below the root has a static method ``batched_steps(scales,
timestep)``, it returns the steps of all scales that it can compute together. A hundred small
networks become one batched product instead of four hundred small ones.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tdquant.clock.moment import GRAPH, Moment, caller, identity
from tdquant.clock.timestep import check_tokens, find_timestep, outside_message, time_tensor
from tdquant.errors import ClockError, ConversionError
from tdquant.state import ModelState, state_of
from tdquant.support.recomputation import GraphTimeline, Replay
from tdquant.support.wrappers import check_denoiser


class Clock:
    """Holds the timestep of the call in progress.

    Arguments:
        model: The root denoiser, called ``model(x, t, ...)`` in any mixture of positions and
            keywords.
        timestep: Name of its timestep argument; found by its usual names when None.

    Attributes:
        argument: Name of the timestep argument.
        last: The timestep of the latest call, for observers outside the model.
        coverage: Lowest and highest time that frozen tables know, or None before freezing and
            where no scale follows the time.
        seen: Lowest and highest time that calibration of a frozen model's scales saw, or None.
        by_layer: Whether steps are found layer by layer, since the tensors of scales are there
            only while their layers run: the model is offloaded in groups.
    """

    def __init__(self, model: nn.Module, timestep: str | None = None) -> None:
        self.argument, self._position = find_timestep(model, timestep)
        self.coverage: tuple[float, float] | None = None
        self.seen: tuple[float, float] | None = None
        self.by_layer = False
        self.last = torch.zeros((), dtype=torch.float32)
        self._now: dict[int, Moment] = {}
        self._timeline: GraphTimeline[Moment] = GraphTimeline()
        self._groups: list[tuple[Any, list[nn.Module]]] | None = None
        self._warned = self._looked = False
        self._hooks = (
            model.register_forward_pre_hook(self._start, with_kwargs=True),
            model.register_forward_hook(self._stop, always_call=True),
        )
        state_of(model).clock = self

    def read(self) -> Tensor:
        """The current timestep, ``()`` or ``(B,)``, as it was given.

        Raises:
            ClockError: No call of the denoiser is in progress, or recomputed for its gradients.
        """
        moment = self._moment()
        if moment is None:
            raise ClockError(
                "a quantizer ran while no timestep is known",
                why="scales follow the timestep, which the quantized model reads from its call",
                fix=f"call the whole model with {self.argument!r}; a part of it only inside "
                "clock.at(t); gradient checkpointing of compiled blocks wants "
                "context_fn=clock.preserve; threads that share a model whose blocks are compiled "
                "have to take turns",
            )
        return moment.timestep

    def precomputed_step(self, scale: nn.Module) -> Tensor | None:
        """The step of ``scale`` if it was computed before the call in progress, else None."""
        moment = self._moment()
        if moment is None:
            return None
        key = identity(scale)
        step = moment.steps.get(key)
        if moment.replay is None or step is None or not step.requires_grad:
            return step
        if not torch.is_grad_enabled():
            moment.without_graph.add(key)
        elif key in moment.without_graph:
            return moment.replay()[key]
        return step

    def keep(self, output: Tensor) -> None:
        """Keeps the timestep and the steps of the call in progress as long as the graph in which
        a quantizer computed ``output``, for parts of it that are recomputed.
        """
        if torch.compiler.is_compiling():
            return
        if not torch.is_grad_enabled():
            moment = self._now.get(caller())
            if moment is not None:
                moment.hidden = True
            return
        moment = self._moment()
        if moment is not None:
            self._timeline.keep(output, moment)

    @contextlib.contextmanager
    def at(self, timestep: Tensor | float) -> Iterator[None]:
        """Sets the timestep by hand, for calls of a part of the model."""
        with self._during(Moment(time_tensor(timestep))):
            yield

    def preserve(self) -> tuple[Any, Any]:
        """``context_fn`` for ``torch.utils.checkpoint`` around parts that are compiled by
        themselves: they cannot find the call that they recompute. Other parts do not need it.
        """
        return contextlib.nullcontext(), self._during(self._moment())

    def invalidate_scale_cache(self) -> None:
        """Call this when a quantizer is added or removed, or gets another scale: scales are looked
        up again at the next call.
        """
        self._groups = None

    @contextlib.contextmanager
    def _during(self, moment: Moment | None) -> Iterator[None]:
        before = self._now.get(caller())
        self._set(moment)
        try:
            yield
        finally:
            self._set(before)

    def _moment(self) -> Moment | None:
        """The call in progress, or the one that a backward pass recomputes."""
        if torch.compiler.is_compiling():
            return self._now.get(GRAPH)
        recomputed = self._timeline.find()
        if recomputed is not None:
            return recomputed
        moment = self._now.get(caller())
        if moment is not None and moment.is_over:
            self._set(None)
            return None
        return moment

    def _set(self, moment: Moment | None) -> None:
        here = caller()
        if moment is None:
            self._now.pop(here, None)
        else:
            self._now[here] = moment
        if here == GRAPH:
            return
        self._timeline.note(moment)
        # A part of the model that is compiled by itself cannot ask for its thread. It reads the
        # one call in progress, and finds none where several threads share the model.
        calls = [m for c, m in list(self._now.items()) if c != GRAPH]
        if len(calls) == 1:
            self._now[GRAPH] = calls[0]
        else:
            self._now.pop(GRAPH, None)

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles start between calls, and look for scales among their own modules.
        return self.__dict__ | {"_now": {}, "_groups": None}

    def _start(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.argument in kwargs:
            timestep = kwargs[self.argument]
        elif self._position < len(args):
            timestep = args[self._position]
        else:
            timestep = None
        if timestep is None:
            raise ClockError(
                f"the model was called without {self.argument!r}",
                where=f"{type(model).__name__}.forward",
                fix=f"pass the timestep as argument {self._position + 1} or as {self.argument}=",
            )
        timestep = self._by_sample(model, time_tensor(timestep))
        evaluate = partial(self._evaluate, model, timestep)
        if torch.compiler.is_compiling():
            self._set(Moment(timestep, evaluate()))
            return  # nothing of a traced call, whose tensors may be fake, stays behind
        replay = None
        if torch.is_grad_enabled():
            replay = Replay(evaluate, timestep, *islice(model.parameters(), 1))
        frame = sys._getframe(1)
        self._set(Moment(timestep, evaluate(), replay, frame=frame))
        self.last = timestep
        if not self._warned and (self.coverage or self.seen) is not None:
            self._warn_outside(timestep)

    def _by_sample(self, model: nn.Module, timestep: Tensor) -> Tensor:
        """The timestep ``()`` or ``(B,)`` of one given as ``()``, ``(B,)`` or ``(B, *)``. On the
        CPU that of tokens is checked in every call, elsewhere in the first one alone: the check
        makes the host wait for the device.
        """
        if timestep.ndim < 2:
            return timestep
        look = timestep.device.type == "cpu" or not self._looked
        if look and not torch.compiler.is_compiling():
            self._looked = True
            check_tokens(timestep, self.argument, f"{type(model).__name__}.forward")
        return timestep.flatten(1).amax(1)

    def _evaluate(self, model: nn.Module, timestep: Tensor) -> dict[Any, Tensor]:
        """The steps of all scales that can be computed together."""
        if self.by_layer:
            return {}
        groups = self._group_scales(model) if self._groups is None else self._groups
        if not torch.compiler.is_compiling():  # else the graph would be compiled anew for it
            self._groups = groups
        steps: dict[Any, Tensor] = {}
        for batched_steps, scales in groups:
            found = batched_steps(scales, timestep)
            steps |= {identity(scale): step for scale, step in found.items()}
        return steps

    def _group_scales(self, model: nn.Module) -> list[tuple[Any, list[nn.Module]]]:
        groups: dict[Any, list[nn.Module]] = {}
        for module in model.modules():
            scale: Any = getattr(module, "scale", None)
            if not isinstance(scale, nn.Module):  # models have numbers of that name
                continue
            # Grouped by the function: that of a proxy is the same, its class is not.
            batched_steps = getattr(scale, "batched_steps", None)
            if batched_steps is not None and getattr(module, "clock", None) is self:
                groups.setdefault(batched_steps, []).append(scale)
        return list(groups.items())

    def _warn_outside(self, timestep: Tensor) -> None:
        if timestep.device.type != "cpu":
            return  # looking would make the host wait for the device at every call
        message = outside_message(timestep, self.coverage, self.seen)
        if message:
            self._warned = True
            warnings.warn(message, stacklevel=3)

    def _stop(self, model: nn.Module, args: Any, output: Any) -> None:
        moment = self._now.get(caller())
        if moment is not None:
            moment.frame = None  # with its variables; the graph may keep the moment for long
        if moment is not None and moment.hidden and torch.is_grad_enabled():
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor):
                    self._timeline.keep_everywhere(leaf, moment)
        self._set(None)


def is_quantized(model: nn.Module) -> bool:
    """Whether the model was quantized: then it has a clock."""
    return _clock(model) is not None


def clock_of(model: nn.Module) -> Clock:
    """The clock of a quantized model.

    Raises:
        ConversionError: The model was not quantized.
    """
    clock = _clock(model)
    if clock is None:
        check_denoiser(model)
        raise ConversionError(
            "the model is not quantized",
            where=type(model).__name__,
            fix="tdq.quantize(model, recipe) first",
        )
    return clock


def remove_clock(model: nn.Module) -> None:
    """Takes the clock off a quantized model; nothing else of its state changes."""
    clock = clock_of(model)
    for hook in clock._hooks:
        hook.remove()
    model.tdq.clock = None  # type: ignore[union-attr, assignment]
    if model.tdq == ModelState():
        del model.tdq


def _clock(model: nn.Module) -> Clock | None:
    clock = getattr(getattr(model, "tdq", None), "clock", None)
    return clock if isinstance(clock, Clock) else None
