"""Which forward call a backward pass is recomputing.

Gradient checkpointing runs parts of a model again while gradients are computed, long after the
call is over and perhaps after other calls. Autograd numbers the nodes of its graph, thread by
thread, and tells which node it is at. A value that is noted together with the current number
whenever it changes is therefore found again for every node, whoever implements the checkpointing.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import get_device_states, set_device_states

T = TypeVar("T")

_thread = threading.local()


class _Change(NamedTuple):
    number: int
    """Nodes of the thread from this number on belong to the value."""
    value: weakref.ref[Any] | None
    recomputed: bool = False


class GraphTimeline(Generic[T]):
    """The values that were in effect while nodes of the autograd graph were made.

    They are held weakly: ``keep`` has nodes of the graph hold them.
    """

    def __init__(self) -> None:
        self._changes: dict[object, tuple[_Change, ...]] = {}  # replaced as a whole: see find
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        return type(self), ()  # copies have seen nothing

    def note(self, value: T | None) -> None:
        """Assigns the nodes that this thread makes from now on to ``value``, or to nothing."""
        number = torch._C._autograd._get_sequence_nr()  # type: ignore[attr-defined]
        self._add(_Change(number, None if value is None else weakref.ref(value)))

    def keep(self, output: Tensor, value: T) -> None:
        """Lets the node that made ``output`` keep ``value`` as long as it lives."""
        node: Any = output.grad_fn
        if node is not None:
            node.metadata.setdefault(self, value)

    def keep_everywhere(self, output: Tensor, value: T) -> None:
        """Lets all nodes of ``value`` before ``output`` keep it."""
        first = min((c.number for c in self._here() if _value(c) is value), default=0)
        nodes: list[Any] = [output.grad_fn]
        seen = {None}
        for node in nodes:
            if node not in seen and node._sequence_nr() >= first:
                node.metadata.setdefault(self, value)
                nodes += [before for before, _ in node.next_functions]
            seen.add(node)

    def find(self) -> T | None:
        """The value of the node whose gradient this thread is computing, or None: there is no
        such node, it belongs to nothing, or several threads made a node of its number and the
        graph does not tell whose it is.
        """
        node: Any = torch._C._current_autograd_node()  # type: ignore[attr-defined]
        if node is None:
            return None
        value = node.metadata.get(self)
        if value is None:
            number = node._sequence_nr()
            values = [v for c in self._changes.values() if (v := _latest(c, number)) is not None]
            value = values[0] if len(values) == 1 else self._nearest(node, values)
        here = self._here()
        if value is not None and _latest(here) is not value:
            # For checkpoints within what is recomputed. The first of their nodes may be there
            # already, and nothing else that was made since the latest call asks whose it is.
            last = here[-1] if here else _Change(0, None)
            if last.recomputed or _value(last) is None:
                self._add(_Change(last.number, weakref.ref(value), True))
            else:
                self.note(value)
        return value

    def _here(self) -> tuple[_Change, ...]:
        return self._changes.get(_this_thread(), ())

    def _add(self, change: _Change) -> None:
        here = _this_thread()
        with self._lock:
            before = [c for c in self._here() if not (c.recomputed and c.number == change.number)]
            changes = {**self._changes, here: (*before, change)}
            shorter = {thread: tuple(_alive(all_)) for thread, all_ in changes.items()}
            self._changes = {
                thread: left
                for thread, left in shorter.items()
                if thread is here or any(_value(c) is not None for c in left)
            }

    def _nearest(self, node: Any, values: list[Any]) -> Any:
        """The one of ``values`` that the nearest node before ``node`` keeps."""
        nodes: list[Any] = [node] if values else []
        seen = {None}
        for node in nodes:
            if node in seen:
                continue
            kept = node.metadata.get(self)
            if any(kept is value for value in values):
                return kept
            nodes += [before for before, _ in node.next_functions]
            seen.add(node)
        return None


def _this_thread() -> object:
    """A key of this thread alone: identifiers of threads are used again."""
    if not hasattr(_thread, "key"):
        _thread.key = object()
    return _thread.key


def _value(change: _Change) -> Any:
    return None if change.value is None else change.value()


def _latest(changes: tuple[_Change, ...], number: float = float("inf")) -> Any:
    """The value of the node of that number."""
    return next((_value(c) for c in reversed(changes) if c.number <= number), None)


def _alive(changes: tuple[_Change, ...]) -> Iterator[_Change]:
    """The changes that change something: values that are gone are like none."""
    before: Any = _alive  # unlike any
    for change in changes:
        value = _value(change)
        if value is not before:
            yield change if value is not None else _Change(change.number, None)
            before = value


class Replay(Generic[T]):
    """Evaluates a function again with the random numbers of the first time.

    Arguments:
        evaluate: The function, about to be called for the first time.
        tensors: Tensors on the devices where it draws random numbers, beside the CPU.
    """

    def __init__(self, evaluate: Callable[[], T], *tensors: Tensor) -> None:
        self._evaluate = evaluate
        self._random = torch.get_rng_state()
        self._devices = get_device_states(*tensors)
        self._latest: tuple[Any, T] | None = None

    def __call__(self) -> T:
        """What the function returns, in a graph that nothing else has run backward. It is
        evaluated once for each node that is being differentiated.
        """
        node = torch._C._current_autograd_node()  # type: ignore[attr-defined]
        key = torch._C._current_graph_task_id(), node and node._sequence_nr()
        latest = self._latest
        if latest is None or latest[0] != key:
            latest = self._latest = key, self._replay()
        return latest[1]

    def _replay(self) -> T:
        devices, states = self._devices
        with torch.random.fork_rng(devices), saved_tensors_hooks(_same, _same):
            torch.set_rng_state(self._random)
            set_device_states(devices, states)
            return self._evaluate()


def _same(tensor: Tensor) -> Tensor:
    """For saved tensors that no other hook is to see: checkpointing counts them."""
    return tensor
