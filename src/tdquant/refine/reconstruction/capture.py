"""What a block gets and what it should give: inputs from the quantized model as it is so far,
targets from the float model, for the same calls.

A block is called with trees of tensors and constants. Tensors that have the batch in front become
rows of a record; all else (None, a shape, a table of positions) is taken from the first call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls.call import Call, batch_size, run
from tdquant.calls.observing import in_float
from tdquant.clock import clock_of, find_timestep
from tdquant.errors import CalibrationError
from tdquant.refine.reconstruction.samples import Record, Samples
from tdquant.support.hooks import hooked

TIME = "time"


class _ReachedError(Exception):
    """Ends a call of the model where no more of it is needed."""


@dataclass(frozen=True)
class Row:
    """The place of a tensor of the record in a tree of arguments."""

    name: str


def split(tree: Any, size: int, record: Record, name: str = "") -> Any:
    """The tree, with a Row for every tensor of ``size`` rows, which goes to ``record``."""
    if isinstance(tree, Tensor) and tree.ndim and len(tree) == size:
        record[name] = tree.detach()
        return Row(name)
    if isinstance(tree, Mapping):
        return {k: split(v, size, record, f"{name}.{k}") for k, v in tree.items()}
    if isinstance(tree, (tuple, list)):
        return tuple(split(v, size, record, f"{name}.{i}") for i, v in enumerate(tree))
    return tree.detach() if isinstance(tree, Tensor) else tree


def _same(a: Any, b: Any) -> bool:
    """Whether two trees have the same rows and the same constants."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return True  # flags and shapes, which the first call decides


def join(tree: Any, record: Record) -> Any:
    """The tree with the tensors of a record in their places."""
    if isinstance(tree, Row):
        return record[tree.name]
    if isinstance(tree, dict):
        return {k: join(v, record) for k, v in tree.items()}
    if isinstance(tree, tuple):
        return tuple(join(v, record) for v in tree)
    return tree


def outputs(result: Any) -> Record:
    """The float tensors that a block gives, by their places."""
    if isinstance(result, Tensor):
        return {"0": result}
    values = result.values() if isinstance(result, Mapping) else result
    if not isinstance(result, (Mapping, tuple, list)):
        values = [getattr(result, "sample", None)]
    found = {str(i): v for i, v in enumerate(values) if isinstance(v, Tensor)}
    if not found:
        raise CalibrationError(
            f"an output of type {type(result).__name__}",
            where="reconstruct",
            why="a block is judged by the tensors that it gives",
            fix='another scope, such as "layer"',
        )
    return found


@contextlib.contextmanager
def as_it_was(model: nn.Module, biases: dict[nn.Module, Tensor]) -> Iterator[None]:
    """The model as it was before it was quantized.

    Arguments:
        model: The quantized model; its weights are still the float ones.
        biases: The float biases of layers whose own have moved.
    """
    moved = {layer: layer.bias.detach().clone() for layer in biases}  # type: ignore[operator]
    try:
        with torch.no_grad():
            for layer, bias in biases.items():
                layer.bias.copy_(bias)  # type: ignore[operator]
        with in_float(model):
            yield
    finally:
        with torch.no_grad():
            for layer, bias in moved.items():
                layer.bias.copy_(bias)  # type: ignore[operator]


class Part:
    """A block in its model.

    Arguments:
        model: The quantized model.
        path: The block's path, or empty for the model itself.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        self.model, self.path = model, path
        self.module = model.get_submodule(path) if path else model
        self._tree: Any = None

    def collect_inputs(self, calls: Iterator[tuple[int, Call]], samples: Samples) -> None:
        """Keeps what the block is called with, and the timestep of every row."""

        def note(number: int, size: int, args: Any, kwargs: Any) -> None:
            record: Record = {}
            tree = split((args, kwargs), size, record)
            if self._tree is None:
                self._tree = tree
            elif not _same(self._tree, tree):
                raise CalibrationError(
                    "a block gets something else in every call that is not of the batch",
                    where=self.path or type(self.module).__name__,
                    why=f"what does not have the call's {size} samples in front is taken for a "
                    "constant, such as a table of positions",
                    fix='scope="model", where all inputs are of the batch',
                )
            time = clock_of(self.model).read()
            record[TIME] = time.detach().reshape(-1).expand(size)
            samples.put(number, record)

        self._each(calls, note, None)

    def collect_targets(self, calls: Iterator[tuple[int, Call]], samples: Samples) -> None:
        """Keeps what the block gives."""
        self._each(calls, None, lambda number, out: samples.put(number, outputs(out)))

    def run(self, calls: Iterator[tuple[int, Call]]) -> None:
        """Runs the model as far as the block's end."""
        self._each(calls, None, lambda number, out: None)

    @torch.no_grad()
    def _each(
        self,
        calls: Iterator[tuple[int, Call]],
        before: Callable[[int, int, Any, Any], None] | None,
        after: Callable[[int, Any], None] | None,
    ) -> None:
        now: dict[str, Any] = {}

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if before is not None:
                before(now["number"], now["size"], args, kwargs)
                raise _ReachedError

        def leave(module: nn.Module, args: Any, result: Any) -> None:
            if after is not None:
                after(now["number"], result)
                raise _ReachedError

        # Of a block that one call reaches several times the first use counts. The hooks come after
        # the clock's own, which reads the timestep.
        hooks = (
            self.module.register_forward_pre_hook(enter, with_kwargs=True),
            self.module.register_forward_hook(leave),
        )
        with hooked(hooks):
            for number, call in calls:
                call = each_time(self.model, call)
                now |= {"number": number, "size": batch_size(call)}
                with contextlib.suppress(_ReachedError):
                    run(self.model, call)

    def __call__(self, record: Record) -> Record:
        """What the block gives for rows of its inputs, each at its own timestep."""
        args, kwargs = join(self._tree, record)
        if not self.path:
            return outputs(self.model(*args, **kwargs))
        with clock_of(self.model).at(record[TIME]):
            return outputs(self.module(*args, **kwargs))


def time_of(model: nn.Module, call: Call) -> Tensor:
    """The timestep of a call, as it was given."""
    argument, position = find_timestep(model, clock_of(model).argument)
    return torch.as_tensor(call[argument] if isinstance(call, Mapping) else call[position])


def each_time(model: nn.Module, call: Call) -> Call:
    """The call with one timestep a sample, so that rows of several calls make one."""
    size = batch_size(call)
    argument, position = find_timestep(model, clock_of(model).argument)

    def spread(time: Any) -> Tensor:
        time = torch.as_tensor(time)
        return time.reshape(-1).expand(size) if time.ndim == 0 or len(time) == 1 else time

    if isinstance(call, Mapping):
        return {k: spread(v) if k == argument else v for k, v in call.items()}
    return tuple(spread(v) if i == position else v for i, v in enumerate(call))
