"""Calls that show what depends on what: one recorded call with two samples, and the same call with
one argument changed for one of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls.call import (
    Call,
    batch_size,
    is_sample_list,
    map_samples,
    sample_axis,
    take_samples,
    tensors_in,
)
from tdquant.clock import time_tensor

SAMPLES = 2
_SEED = 0x7D0  # unlikely to be that of the arguments
Key = str | int
"""Of an argument: its name, or its position."""


class Probe:
    """A call of two samples that can be changed.

    Arguments:
        model: The model.
        call: A recorded call.
        timestep: Name and position of the timestep argument.
        vector: Give each sample a timestep of its own.

    Attributes:
        arguments: The arguments by key.
        time: Key of the timestep.
        times: Timesteps in it, at least one for each sample.
    """

    def __init__(
        self, model: nn.Module, call: Call, timestep: tuple[str, int], vector: bool
    ) -> None:
        size = batch_size(call)
        few = take_samples(call, torch.tensor([0, _other_sample(call, size)]), size)
        self._named = isinstance(few, Mapping)
        self.arguments: dict[Any, Any] = dict(few if isinstance(few, Mapping) else enumerate(few))
        self.time: Key = timestep[0] if timestep[0] in self.arguments else timestep[1]
        time = time_tensor(self.arguments[self.time])
        if vector and time.numel() == 1:
            time = time.reshape(-1).expand(SAMPLES)
        self.arguments[self.time] = time
        self._times = [k for k in self.arguments if k == self.time or _is_time(k)]
        for key in self._times:
            self.arguments[key] = time_tensor(self.arguments[key]).clone()
        self.times = max(SAMPLES, *(self.arguments[key].numel() for key in self._times))
        order = list(inspect.signature(model.forward).parameters)
        keys = [k for k in self.arguments if k not in self._times and _floats(self.arguments[k])]
        keys.sort(key=lambda k: order.index(k) if k in order else k if isinstance(k, int) else 99)
        self._samples = set(keys[:1])

    def add_samples(self, output: Any) -> bool:
        """Counts arguments of the shape of an output, as of a second modality, as samples too;
        whether there are any.
        """
        shapes = {tuple(y.shape) for y in tensors_in(output) if y.ndim > 2}
        before = len(self._samples)
        for key, value in self.arguments.items():
            if isinstance(value, Tensor) and tuple(value.shape) in shapes:
                self._samples.add(key)
        return len(self._samples) > before

    def tensors(self, sample: bool) -> Iterable[Tensor]:
        """The tensors of the sample, or of the conditions."""
        keys = [
            k for k in self.arguments if k not in self._times and (k in self._samples) == sample
        ]
        return tensors_in([self.arguments[key] for key in keys])

    def run(self, model: nn.Module) -> Any:
        """Calls the model."""
        if self._named:
            return model(**self.arguments)
        return model(*self.arguments.values())

    def other_time(self) -> None:
        """Moves the time of the first sample, or the one time of both."""
        for key in self._times:
            time = self.arguments[key]
            rows = time.reshape(-1, *time.shape[1:])
            rows = rows[:1] if time.ndim and len(time) == SAMPLES else rows
            moved = rows * 0.5 + 0.1 if time.is_floating_point() else _other(rows)
            rows.copy_(moved)

    def other_sample(self) -> None:
        """Changes the sample, not its conditions, of the first sample."""
        self._change(0, self._samples)

    def other_arguments(self) -> None:
        """Changes everything but the time of the second sample."""
        self._change(1, {key for key in self.arguments if key not in self._times})

    def _change(self, row: int, keys: set[Any]) -> None:
        rng = torch.Generator().manual_seed(_SEED + row)
        for key in keys:
            self.arguments[key] = _changed(self.arguments[key], row, rng)


def _other_sample(call: Call, size: int) -> int:
    """The last sample, of those with other lengths, masks or labels than the first if there are
    any: sequences of unequal length that a model packs are then seen to be unequal parts.
    """

    def differs(tree: Any, i: int) -> bool:
        if isinstance(tree, Tensor):
            whole = not tree.is_floating_point() and tree.ndim and len(tree) == size
            return bool(whole) and not torch.equal(tree[0], tree[i])
        if is_sample_list(tree, size):
            return bool(tree[0].shape != tree[i].shape)
        if isinstance(tree, Mapping):
            tree = list(tree.values())
        return isinstance(tree, (list, tuple)) and any(differs(value, i) for value in tree)

    unlike = [i for i in range(1, size) if differs(call, i)]
    return unlike[-1] if unlike else size - 1


def _other(times: Tensor) -> Tensor:
    """Other whole numbers that are likely to be times as well."""
    return torch.where(times > 1, times // 2, times + 1)


def _is_time(key: Key) -> bool:
    """Whether an argument is a further time: of a second modality, or as a noise level."""
    return isinstance(key, str) and key.endswith(("timestep", "timestep_r", "sigma"))


def _floats(value: Any) -> bool:
    return any(t.is_floating_point() and t.ndim for t in tensors_in(value))


def _changed(tree: Any, row: int, rng: torch.Generator) -> Any:
    """Adds noise to one of the two samples, wherever it is in the arguments."""

    def noisy(x: Tensor) -> Tensor:
        if not x.is_floating_point() or not x.numel():
            return x
        level = x.float().square().mean().sqrt()
        noise = torch.randn(x.shape, generator=rng, dtype=torch.float32).to(x.device)
        noise *= level + (level == 0)
        return x + noise.to(x.dtype)

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return [noisy(x) if i == row else x for i, x in enumerate(leaf)]
        axis = sample_axis(leaf, SAMPLES)
        if axis is not None:
            leaf = leaf.clone()
            leaf.select(axis, row).copy_(noisy(leaf.select(axis, row)))
        return leaf

    return map_samples(change, tree, SAMPLES)
