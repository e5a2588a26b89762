"""A block's inputs in the quantized model so far, and its target outputs in the float model, for
the same calls.

A block is called with trees of tensors and constants. Tensors that have the batch in front become
rows of a record; all else (None, a shape, a table of positions) is taken from the first call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls.call import Call, batch_size, map_tensors, run
from tdquant.calls.observing import in_float
from tdquant.clock import clock_of, find_timestep, time_tensor
from tdquant.errors import CalibrationError
from tdquant.layers import QuantLayer
from tdquant.quantizers import ActivationQuantizer, activation_quantizers
from tdquant.refine.reconstruction.blocks import learned_layers
from tdquant.refine.reconstruction.samples import Record, Samples
from tdquant.support.hooks import hooked

TIME = "time"


class _ReachedError(Exception):
    """Ends a call of the model where no more of it is needed."""


@dataclass(frozen=True)
class Row:
    """The place of a tensor of the record in a tree of arguments."""

    name: str


def split(tree: Any, size: int, record: Record) -> Any:
    """The tree, with a Row for every tensor of ``size`` rows, which goes to ``record``."""

    def change(tensor: Tensor) -> Tensor | Row:
        if not (tensor.ndim and len(tensor) == size):
            return tensor.detach()
        row = Row(str(len(record)))
        record[row.name] = tensor.detach()
        return row

    return map_tensors(change, tree)


def _same(a: Any, b: Any) -> bool:
    """Whether two trees have the same rows and the same constants."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return True  # flags and shapes, which the first call decides


def _tensors(output: Any) -> Record:
    """The tensors in a block's output, by their places."""
    if isinstance(output, Tensor):
        return {"0": output}
    values = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, (Mapping, tuple, list)):
        values = [getattr(output, "sample", None)]
    found = {str(i): v for i, v in enumerate(values) if isinstance(v, Tensor)}
    if not found:
        raise CalibrationError(
            f"an output of type {type(output).__name__}",
            where="reconstruct",
            why="a block is judged by the tensors in its output",
            fix='another scope, such as "layer"',
        )
    return found


@contextlib.contextmanager
def before_quantization(model: nn.Module, biases: Mapping[QuantLayer, Tensor]) -> Iterator[None]:
    """Runs the model as it was before it was quantized.

    Arguments:
        model: The quantized model; its weights are still the float ones.
        biases: The float biases of layers, whose current ones have moved.
    """

    @torch.no_grad()
    def put(values: Mapping[QuantLayer, Tensor]) -> None:
        for layer, value in values.items():
            assert layer.bias is not None
            layer.bias.copy_(value)

    moved = {layer: layer.bias.detach().clone() for layer in biases if layer.bias is not None}
    try:
        put(biases)
        with in_float(model):
            yield
    finally:
        put(moved)


class Block:
    """A block in its model.

    Arguments:
        model: The quantized model.
        path: The block's path, or empty for the model itself.
        number: Its place in the order of the blocks.

    Attributes:
        module: The block.
        layers: Its layers whose rounding is learned, by path in the model.
        call: Number of the call that the model is running.
    """

    def __init__(self, model: nn.Module, path: str, number: int = 0) -> None:
        self.model, self.path, self.number = model, path, number
        self.module = model.get_submodule(path) if path else model
        self._prefix = f"{path}." if path else ""
        self.layers = {
            name: layer
            for name, layer in learned_layers(model)
            if name == path or name.startswith(self._prefix)
        }
        self.call = 0
        self._tree: Any = None

    def activations(self) -> dict[str, ActivationQuantizer]:
        """The block's activation quantizers by path in the model."""
        found = activation_quantizers(self.module)
        return {self._prefix + name if name else self.path: q for name, q in found}

    def parameters(self) -> dict[str, nn.Parameter]:
        """The biases of its layers and the parameters of its activation scales, by name."""
        found = {f"{n}|bias": m.bias for n, m in self.layers.items() if m.bias is not None}
        for path, quantizer in self.activations().items():
            for name, parameter in quantizer.scale.named_parameters():
                found[f"{path}|scale.{name}"] = parameter
        return found

    def collect_inputs(self, calls: Iterable[tuple[int, Call]], samples: Samples) -> None:
        """Keeps the block's arguments, and the timestep of every row."""

        def keep(size: int, args: Any, kwargs: Any) -> None:
            record: Record = {}
            tree = split((args, kwargs), size, record)
            if self._tree is None:
                self._tree = tree
            elif not _same(self._tree, tree):
                raise CalibrationError(
                    "a block gets something else in every call that is not of the batch",
                    where=self.path or type(self.module).__name__,
                    why=f"tensors without the call's {size} samples in front are taken for "
                    "constants, such as a table of positions",
                    fix='scope="model", where all inputs are of the batch',
                )
            record[TIME] = clock_of(self.model).read().detach().reshape(-1).expand(size)
            samples.put(self.call, record)

        self.run(calls, before=keep)

    def collect_targets(self, calls: Iterable[tuple[int, Call]], samples: Samples) -> None:
        """Keeps the block's outputs."""
        self.run(calls, after=lambda output: samples.put(self.call, _tensors(output)))

    @torch.no_grad()
    def run(
        self,
        calls: Iterable[tuple[int, Call]],
        before: Callable[[int, Any, Any], None] | None = None,
        after: Callable[[Any], None] | None = None,
    ) -> None:
        """Runs the model on numbered calls, up to the block's first use in each: to its start if
        there is ``before(size, args, kwargs)`` to be called there, else to its end, where
        ``after(output)`` is called.
        """
        size = 0

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if before is not None:
                before(size, args, kwargs)
                raise _ReachedError

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if after is not None:
                after(output)
            raise _ReachedError

        # The hooks come after the clock's own, which reads the timestep.
        hooks = (
            self.module.register_forward_pre_hook(enter, with_kwargs=True),
            self.module.register_forward_hook(leave),
        )
        with hooked(hooks):
            for self.call, call in calls:
                size = batch_size(call)
                with contextlib.suppress(_ReachedError):
                    run(self.model, call)

    def __call__(self, record: Record) -> Record:
        """The block's output tensors for rows of its inputs, each at its own timestep."""
        args, kwargs = map_tensors(lambda row: record[row.name], self._tree, Row)
        if not self.path:
            return _tensors(self.model(*args, **kwargs))
        with clock_of(self.model).at(record[TIME]):
            return _tensors(self.module(*args, **kwargs))


def with_times(model: nn.Module, call: Call) -> tuple[Call, Tensor]:
    """The call with one timestep a sample, so that rows of several calls can form a batch, and
    these timesteps.
    """
    argument, position = find_timestep(model, clock_of(model).argument)
    time = time_tensor(call[argument] if isinstance(call, Mapping) else call[position])
    if time.ndim == 0 or len(time) == 1:
        time = time.reshape(-1).expand(batch_size(call))
    if isinstance(call, Mapping):
        return {**call, argument: time}, time
    return (*call[:position], time, *call[position + 1 :]), time
