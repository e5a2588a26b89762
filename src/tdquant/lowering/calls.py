"""How a call of a denoiser becomes the flat list of named tensors that a graph of another engine
takes, and how the graph's outputs become what the denoiser returns.

The description of both is plain JSON: it is written into the exported file, and a session reads it
back and needs nothing else.

    parameters   names of the arguments of ``model.forward``, in order
    timestep     the one of them that is the timestep
    inputs       of the graph: name, dtype, shape (None where it is free)
    constants    arguments that are no tensors: baked into the graph
    output       ``tensor``, ``tuple`` or ``mapping``, and its keys
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.clock import clock_of, time_tensor
from tdquant.errors import ExportError
from tdquant.lowering.nests import leaves, rebuilt

BATCH = 2
"""Samples of the call that is traced: a batch of one would leave broadcasting undecided."""

CALL_ERRORS = (RuntimeError, TypeError, ValueError, IndexError)
"""What a model raises for arguments that it does not take."""

OBSTACLES = {
    "complex": "the model computes with complex numbers, which graphs do not have",
    "data-dependent": "sizes inside the model depend on values of its inputs",
}
"""A word in what an engine says -> what it means."""

Example = tuple[Any, ...] | Mapping[str, Any]


def bound(parameters: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict:
    """Arguments by name; what is left out, or None, is not there.

    Raises:
        ExportError: There are more of them than parameters, or one is given twice.
    """
    twice = set(parameters[: len(args)]) & set(kwargs)
    if len(args) > len(parameters) or twice:
        raise ExportError(
            f"{len(args)} arguments by position and {sorted(kwargs)} by name",
            where=f"({', '.join(parameters)})",
            why="there are too many" if not twice else f"{sorted(twice)} are given twice",
        )
    given = {**dict(zip(parameters, args, strict=False)), **kwargs}
    return {name: value for name, value in given.items() if value is not None}


def flat_times(timestep: Any) -> Tensor:
    """Timesteps as a vector: of ``(B, N)``, one for each token, one for each sample where those of
    a sample are equal.
    """
    time = time_tensor(timestep).detach().cpu()
    if time.ndim == 2 and bool((time == time[:, :1]).all()):
        time = time[:, :1]
    return time.reshape(-1)


@dataclass(frozen=True)
class Call:
    """One example call, and how its arguments and its result are laid out.

    Attributes:
        values: The arguments by name, their tensors with BATCH samples.
        tensors: The tensors among them by their flat names, in the order of the graph's inputs.
        parameters: Names of the arguments of ``model.forward``.
        timestep: Name of the timestep argument.
        output: Layout of the result.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor]
    parameters: list[str]
    timestep: str
    output: dict[str, Any]

    @property
    def sample(self) -> str:
        """Name of the tensor whose first dimension counts the batch: the first that is not t."""
        return next(name for name in self.tensors if name != self.timestep)

    @property
    def batched(self) -> list[str]:
        """Names of the inputs with one entry for each sample."""
        return [n for n, tensor in self.tensors.items() if tensor.shape[:1] == (BATCH,)]

    def with_batch(self, batch: int) -> dict[str, Tensor]:
        """The tensors with another number of samples: the first ones, again and again."""
        return {
            name: tensor[torch.arange(batch) % BATCH] if name in self.batched else tensor
            for name, tensor in self.tensors.items()
        }

    def arguments(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The arguments by name with other tensors in their places."""
        return {name: rebuilt(name, value, tensors) for name, value in self.values.items()}

    def flat(self, output: Any) -> tuple[Tensor, ...]:
        """The tensors of a result."""
        if isinstance(output, Tensor):
            return (output,)
        parts = output.values() if isinstance(output, Mapping) else output
        return tuple(part for part in parts if part is not None)

    def description(self, shapes: Mapping[str, list[int | None]]) -> dict[str, Any]:
        """What a session needs to know, as JSON."""
        return {
            "parameters": self.parameters,
            "timestep": self.timestep,
            "sample": self.sample,
            "inputs": [
                {
                    "name": name,
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "shape": shapes[name],
                }
                for name, tensor in self.tensors.items()
            ],
            "constants": {
                name: value
                for argument, part in self.values.items()
                for name, value in leaves(argument, part)
                if isinstance(value, (bool, int, float, str))
            },
            "output": self.output,
        }


@contextlib.contextmanager
def engine_errors(
    what: str,
    where: str,
    fix: str,
    last: bool = False,
    kinds: tuple[type[Exception], ...] = (Exception,),
) -> Iterator[None]:
    """Raises ExportError for errors inside the context, with the message of what first went wrong.

    Arguments:
        what: What failed.
        where: The file or the model.
        fix: What to do.
        last: Whether the last line of the message has the reason, not the first.
        kinds: The errors.
    """
    try:
        yield
    except kinds as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # torch wraps it in advice
            cause = cause.__cause__
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        why = lines[-1 if last else 0]
        known = (kind for word, kind in OBSTACLES.items() if word in f"{error}{cause}".lower())
        raise ExportError(what, where=where, why=": ".join([*known, why]), fix=fix) from error


def _layout(output: Any, where: str) -> dict[str, Any]:
    if isinstance(output, Tensor):
        return {"kind": "tensor"}
    if isinstance(output, Mapping) and all(isinstance(v, Tensor) for v in output.values()):
        return {"kind": "mapping", "keys": list(output)}
    if isinstance(output, tuple) and output and all(isinstance(v, Tensor) for v in output):
        return {"kind": "tuple", "keys": [str(i) for i in range(len(output))]}
    raise ExportError(
        f"the model returns a {type(output).__name__}",
        where=where,
        why="a graph gives tensors: one, a tuple of them, or a mapping of them",
        fix="wrap the model in a module that returns tensors",
    )


def _repeated(name: str, value: Tensor, batch: int) -> Tensor:
    """BATCH samples of one input; what has no batch dimension stays as it is."""
    if value.is_floating_point():
        value = value.float()
    if not value.ndim or value.shape[0] != batch:
        return value
    return value[:BATCH] if batch >= BATCH else torch.cat([value] * BATCH)


def _require_one_sample(given: Mapping[str, Any], timestep: str, where: str) -> None:
    """Raises ExportError where the samples of a call are a list, each of its own size."""
    name = next((n for n, value in given.items() if n != timestep), "")
    if isinstance(given.get(name), (list, tuple)):
        raise ExportError(
            f"{name!r} is a list of samples, {len(given[name])} of them",
            where=where,
            why="each is a tensor of its own size; a graph takes one tensor whose first axis "
            "counts them",
            fix='tdq.compile(frozen, backend="onednn"), which runs the model itself',
        )


@torch.no_grad()
def read_call(model: nn.Module, example: Example) -> Call:
    """The call that an example makes, checked by running the model on it.

    Arguments:
        model: A frozen model in float32 on the CPU.
        example: Its arguments: a tuple by position or a dictionary by name, with the timestep
            ``()`` or ``(B,)``.

    Raises:
        ExportError: The example is no call of the model, or the result no tensors.
    """
    signature = {
        name: p
        for name, p in inspect.signature(model.forward).parameters.items()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    parameters = list(signature)
    where = f"{type(model).__name__}.forward({', '.join(parameters)})"
    if not isinstance(example, (tuple, list, Mapping)):
        raise ExportError(
            f"the example is a {type(example).__name__}",
            where=where,
            fix="example=(x, t), or a dictionary of arguments by name",
        )
    by_name = isinstance(example, Mapping)
    given = bound(parameters, () if by_name else tuple(example), example if by_name else {})  # type: ignore[arg-type]
    given.pop("return_dict", None)  # a session gives either form
    timestep = clock_of(model).argument
    _require_one_sample(given, timestep, where)
    tensors = [
        value
        for name, part in given.items()
        for _, value in leaves(name, part)
        if isinstance(value, Tensor) and name != timestep
    ]
    if timestep not in given or not tensors or not tensors[0].ndim:
        raise ExportError(
            "the example is no call of the model",
            where=where,
            why=f"it needs a tensor with a batch dimension and {timestep!r}",
            fix="example=(x, t)",
        )
    batch = tensors[0].shape[0]
    time = flat_times(given[timestep])
    time = time.float() if time.is_floating_point() else time.long()
    given[timestep] = time.expand(batch) if len(time) == 1 else time
    values = {
        argument: rebuilt(
            argument,
            part,
            {
                name: _repeated(name, value.detach().cpu(), batch)
                for name, value in leaves(argument, part)
                if isinstance(value, Tensor)
            },
        )
        for argument, part in given.items()
    }
    # Given as None, as pipelines without a prompt give text.
    values |= {n: None for n, p in signature.items() if p.default is p.empty and n not in values}
    with engine_errors(
        "the model cannot be called with the example",
        where,
        "example=(x, t), as the model is called in sampling",
        kinds=CALL_ERRORS,
    ):
        output = model(**values)
        values[timestep] = _as_float(model, values, timestep, output)
    found = {
        name: value
        for argument, part in values.items()
        for name, value in leaves(argument, part)
        if isinstance(value, Tensor)
    }
    return Call(values, found, parameters, timestep, _layout(output, where))


def _as_float(model: nn.Module, values: dict[str, Any], timestep: str, output: Any) -> Tensor:
    """The timestep as float32 if the model gives the same for it: the graph then takes the times
    between training indices that some schedulers visit.
    """
    time = values[timestep]
    if time.is_floating_point():
        return time
    try:
        other = model(**{**values, timestep: time.float()})
    except CALL_ERRORS:
        return time
    firsts = (next(iter(leaves("", o)))[1] for o in (output, other))
    return time.float() if torch.equal(*firsts) else time
