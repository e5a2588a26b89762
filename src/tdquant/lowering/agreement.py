r"""Whether an engine's graph computes what the frozen model does: calls of both are compared.

    d = |y - y_0|^2 / |y_0|^2        for each output, y_0 the frozen model's

Two exact engines differ where a number that lies near the middle of two codes is rounded to the
other one. At few bits one such number changes the output of a deep model by as much as its
quantization does, and most calls of a small model have none: then d is 1e-12 or less. So a graph
is refused if in every one of ``DRAWS`` calls, the first with the arguments that were given, the
others with a little noise on the sample,

    d > max(ALIKE, FACTOR s)

with s the largest difference that the frozen model itself has in these calls when noise of
``NOISE`` times the root mean square is added to every activation before it is rounded: some ten
times what float arithmetic in another order and other exponentials do. Where every call of a model
has such numbers, s is of the size of its quantization error, and only a larger fault is seen.

The first call alone is made if it agrees, which costs one call of the frozen model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import TDQError
from tdquant.lowering.lowered import float32_copy
from tdquant.lowering.nests import leaves, rebuilt
from tdquant.quantizers import activation_quantizers
from tdquant.support.hooks import hooked

ALIKE = 1e-4
"""Relative squared difference, of 1 percent in the root mean square, that needs no explanation."""

NOISE, FACTOR, DRAWS = 1e-5, 4.0, 3

NUDGE = 1e-2
"""Noise on the sample of further calls, over its root mean square."""

FAINT = 1e-12
"""Mean square of an output below which its difference is taken as it is."""


@torch.no_grad()
def require_agreement(
    run: Callable[..., Any],
    output: Any,
    frozen: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    engine: str,
    error: type[TDQError],
) -> None:
    """Compares an engine's calls with the frozen model's, in float32 on the CPU.

    Arguments:
        run: The engine, with the call of the model.
        output: What it gave for the arguments.
        frozen: The model; it stays as it is.
        args: Arguments of the call, likewise ``kwargs``.
        engine: Name of the engine, for the error.
        error: What to raise.

    Raises:
        error: They differ by more than rounding explains.
    """
    model = float32_copy(frozen)
    values = _in_float({**dict(enumerate(args)), **kwargs})
    best: list[float] = []
    own: list[float] = []
    for draw in range(DRAWS):
        if draw:
            values = _nudged(values, draw)
        call = tuple(values[i] for i in range(len(args))), {name: values[name] for name in kwargs}
        found = output if draw == 0 else run(*call[0], **call[1])
        wanted = list(_parts(model(*call[0], **call[1])))
        seen = [difference(y, z) for y, z in zip(_parts(found), wanted, strict=True)]
        best = [min(pair) for pair in zip(best or seen, seen, strict=True)]
        if max(best, default=0.0) <= ALIKE:
            return
        with _noise(model, draw):
            other = _parts(model(*call[0], **call[1]))
        seen = [difference(y, z) for y, z in zip(other, wanted, strict=True)]
        own = [max(pair) for pair in zip(own or seen, seen, strict=True)]
        if all(d <= max(ALIKE, FACTOR * s) for d, s in zip(best, own, strict=True)):
            return
    index = max(range(len(best)), key=lambda i: best[i] / max(ALIKE, FACTOR * own[i]))
    raise error(
        f"{engine} computes something else than the frozen model: {_percent(best[index])} of its "
        f"output, where rounding explains {_percent(max(ALIKE, FACTOR * own[index]))}",
        where=f"{type(frozen).__name__}, output {index}",
        why="an operation of the model is traced or run wrongly",
        fix='tdq.compile(frozen, backend="onednn") runs the model itself; check=False takes the '
        "engine as it is",
    )


def difference(found: Tensor, wanted: Tensor) -> float:
    """``|y - y_0|^2 / |y_0|^2`` over what is finite in y_0; infinity if y is not finite there."""
    y, z = found.detach().cpu().double(), wanted.detach().cpu().double()
    known = z.isfinite()
    if y.shape != z.shape or not bool(y[known].isfinite().all()):
        return float("inf")
    energy = z[known].square().sum().clamp(min=FAINT * max(1, z.numel()))
    return float((y - z)[known].square().sum() / energy)


def _noise(model: nn.Module, seed: int) -> Any:
    """A context in which every activation of a model has noise before it is rounded."""
    rng = torch.Generator().manual_seed(seed)

    def disturb(quantizer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        size = NOISE * x.square().mean().sqrt()
        return (x + size * torch.randn(x.shape, generator=rng, dtype=torch.float32), *args[1:])

    return hooked(q.register_forward_pre_hook(disturb) for _, q in activation_quantizers(model))


def _nudged(values: dict[Any, Any], seed: int) -> dict[Any, Any]:
    """A call with noise on its sample: on the first tensor of numbers that is more than a list."""
    rng = torch.Generator().manual_seed(seed)
    for argument, value in values.items():
        for name, leaf in leaves(argument, value):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 1:
                size = NUDGE * (leaf.square().mean().sqrt() or torch.ones((), dtype=torch.float32))
                noisy = leaf + size * torch.randn(leaf.shape, generator=rng, dtype=torch.float32)
                return {**values, argument: rebuilt(argument, value, {name: noisy})}
    return values


def _in_float(values: dict[Any, Any]) -> dict[Any, Any]:
    """Arguments as an engine takes them: in float32 on the CPU."""
    moved = {
        name: leaf.detach().cpu().float() if leaf.is_floating_point() else leaf.detach().cpu()
        for argument, value in values.items()
        for name, leaf in leaves(argument, value)
        if isinstance(leaf, Tensor)
    }
    return {argument: rebuilt(argument, value, moved) for argument, value in values.items()}


def _parts(output: Any) -> Iterator[Tensor]:
    """The floating tensors of a result."""
    if isinstance(output, Tensor):
        output = (output,)
    for part in output.values() if isinstance(output, Mapping) else output:
        if isinstance(part, Tensor) and part.is_floating_point():
            yield part


def _percent(energy: float) -> str:
    """A relative squared difference as a share of the root mean square."""
    return f"{100 * energy**0.5:.2g} %"
