r"""Matching features inside a quantized model with those of its float teacher.

    d = mean over blocks  |h - h*|^2 / |h*|^2

with h the output of a block in the student and h* in the teacher, for the same input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import TrainingError
from tdquant.support.hooks import hooked
from tdquant.support.patterns import matching, unmatched_patterns


class FeatureMatch:
    """Listens to the same blocks of two models.

    Arguments:
        teacher: The float model, which has the blocks' names.
        patterns: Globs over its module paths, such as ``"up_blocks.*"``.

    Raises:
        TrainingError: Patterns that match no module; all of them are named.
    """

    def __init__(self, teacher: nn.Module, patterns: Sequence[str]) -> None:
        paths = [name for name, _ in teacher.named_modules() if name]
        unknown = unmatched_patterns(patterns, paths)
        if unknown:
            raise TrainingError(
                f"patterns that match no module: {', '.join(unknown)}",
                where="features",
                fix="patterns are globs over module paths, such as 'up_blocks.*'",
            )
        self.paths = [n for n in paths if matching(n, patterns)]

    @contextlib.contextmanager
    def listen(self, model: nn.Module) -> Iterator[list[Tensor]]:
        """Collects the outputs of the blocks during a call of the model, in their order."""
        root = getattr(model, "module", model)
        heard: dict[str, Tensor] = {}

        def keep(path: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                first = output[0] if isinstance(output, tuple) else output
                heard[path] = first

            return hook

        hooks = [root.get_submodule(p).register_forward_hook(keep(p)) for p in self.paths]
        collected: list[Tensor] = []
        try:
            with hooked(hooks):
                yield collected
        finally:
            collected += [heard[p] for p in self.paths if p in heard]

    @staticmethod
    def distance(learned: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
        """Mean relative squared distance, ``()``."""
        terms = [
            (a.float() - b.float()).square().mean() / b.float().square().mean().clamp(min=1e-12)
            for a, b in zip(learned, taught, strict=True)
        ]
        return torch.stack(terms).mean()
