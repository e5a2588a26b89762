"""Calls of a denoiser: tuples of positional or dictionaries of keyword arguments."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import CalibrationError
from tdquant.support.restoring import ordinary

Call = tuple[Any, ...] | list[Any] | Mapping[str, Any]


def run(model: nn.Module, call: Call) -> Tensor:
    """The model's output for one call: its tensor, or ``(B, N)`` with all floating-point numbers
    of a nest of tensors, one row a sample.

    Raises:
        CalibrationError: The call is neither a tuple nor a dictionary, or the output holds no
            floating-point tensor, or one that samples do not divide.
    """
    output = called(model, call)
    if isinstance(output, Tensor):
        return output
    nest = output if isinstance(output, (Mapping, list, tuple)) else getattr(output, "sample", ())
    tensors = leaf_tensors(nest)
    if len(tensors) == 1:
        return tensors[0]
    size = batch_size(call)
    rows = list(_rows(nest, size))
    if not rows or any(row is None for row in rows):
        what = f"an output of type {type(output).__name__}"
        why = f"its floating-point tensors are not those of {size} samples"
        raise CalibrationError(what, where=type(model).__name__, why=why)
    return torch.cat(rows, dim=1)  # type: ignore[arg-type]


def called(model: Callable[..., Any], call: Call) -> Any:
    """What the model returns for one call.

    Raises:
        CalibrationError: The call is neither a tuple nor a dictionary.
    """
    call = map_tensors(ordinary, call)
    if isinstance(call, Mapping):
        return model(**call)
    if isinstance(call, (tuple, list)):
        return model(*call)
    raise CalibrationError(
        f"a batch of type {type(call).__name__}",
        where="batches",
        fix="yield tuples of positional, or dictionaries of keyword arguments: (x, t)",
    )


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested dictionaries, lists and tuples, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (Mapping, list, tuple)):
        for part in tree.values() if isinstance(tree, Mapping) else tree:
            yield from tensors_in(part)


def leaf_tensors(tree: Any) -> list[Tensor]:
    """The floating-point tensors among ``tensors_in``."""
    return [t for t in tensors_in(tree) if t.is_floating_point()]


def _rows(tree: Any, size: int) -> Iterator[Tensor | None]:
    """The floating-point tensors of a nest as ``(size, *)``, None for one that samples do not
    divide.
    """
    if is_sample_list(tree, size):
        yield nn.utils.rnn.pad_sequence([part.flatten() for part in tree], batch_first=True)
    elif isinstance(tree, Tensor):
        if tree.is_floating_point():
            divided = tree.ndim and len(tree) % size == 0
            yield tree.reshape(size, -1) if divided else None
    elif isinstance(tree, (Mapping, list, tuple)):
        for part in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _rows(part, size)


@torch.no_grad()
def outputs(model: nn.Module, calls: list[Call]) -> list[Tensor]:
    """The model's output for every call, in float32."""
    return [run(model, call).float() for call in calls]


def values(call: Call) -> list[Any]:
    """The arguments of a call, in order."""
    return list(call.values() if isinstance(call, Mapping) else call)


def batch_size(call: Call) -> int:
    """Samples in a call: the length of its first tensor with a batch dimension, timesteps last."""
    tensors = [v for v in values(call) if isinstance(v, Tensor) and v.ndim]
    return next((len(v) for v in (*(t for t in tensors if t.ndim > 1), *tensors)), 1)


def few_samples(call: Call, count: int) -> Call:
    """The call with at most ``count`` of its samples, as detached copies. They are spread evenly
    over the batch, half of which is unconditional under guidance.
    """
    size = batch_size(call)
    places = torch.linspace(0, size - 1, min(count, size), dtype=torch.float32)
    return take_samples(call, places.round().long(), size)


def take_samples(call: Call, chosen: Tensor, size: int) -> Call:
    """The call with some of its ``size`` samples, by their indices, as detached copies."""

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return [leaf[i].detach().clone() for i in chosen.tolist()]
        tensor, axis = leaf.detach(), sample_axis(leaf, size)
        if axis is None:
            return tensor.clone()
        return tensor.index_select(axis, chosen.to(tensor.device))

    return map_samples(cut, call if isinstance(call, Mapping) else tuple(call), size)


def sample_axis(tensor: Tensor, size: int) -> int | None:
    """The dimension of an argument that counts its ``size`` samples: the first, or the second of a
    stack, as of the hidden states of several text encoder layers; None if neither does.
    """
    sizes = tensor.shape[: 2 if tensor.ndim > 3 else 1]
    return next((axis for axis, n in enumerate(sizes) if n == size), None)


def is_sample_list(tree: Any, size: int) -> bool:
    """Whether a list has one tensor for each of ``size`` samples, without a batch dimension."""
    return (
        isinstance(tree, list)  # a tuple is a pair, such as sines and cosines
        and len(tree) == size
        and all(isinstance(item, Tensor) and item.ndim > 1 for item in tree)
        and not any(len(item) == size for item in tree)
    )


def map_tensors(change: Callable[[Any], Any], tree: Any, kind: type = Tensor) -> Any:
    """Applies ``change`` to every tensor, or leaf of another ``kind``, in a tree of dictionaries,
    lists and tuples.
    """
    return _map_leaves(change, tree, lambda part: isinstance(part, kind))


def map_samples(change: Callable[[Any], Any], tree: Any, size: int) -> Any:
    """As ``map_tensors``; a list of one tensor for each of ``size`` samples is a leaf, too."""
    return _map_leaves(
        change, tree, lambda part: isinstance(part, Tensor) or is_sample_list(part, size)
    )


def _map_leaves(change: Callable[[Any], Any], tree: Any, is_leaf: Callable[[Any], bool]) -> Any:
    if is_leaf(tree):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: _map_leaves(change, value, is_leaf) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items = [_map_leaves(change, value, is_leaf) for value in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree


class Reservoir:
    """A uniform random choice of at most ``capacity`` calls from a stream, cut to ``samples``
    samples each.
    """

    def __init__(self, capacity: int, samples: int, seed: int = 0) -> None:
        self.capacity, self.samples = capacity, samples
        self.calls: list[Call] = []
        self.seen = 0
        self._rng = random.Random(seed)

    def offer(self, call: Call) -> None:
        """Keeps the call with the probability that gives every call so far an equal chance."""
        self.seen += 1
        if len(self.calls) < self.capacity:
            self.calls.append(few_samples(call, self.samples))
            return
        place = self._rng.randrange(self.seen)
        if place < self.capacity:
            self.calls[place] = few_samples(call, self.samples)
