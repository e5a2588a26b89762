r"""Conditional sampling: a condition for every image, and classifier-free guidance.

    e = e_empty + g (e_context - e_empty)

with e the prediction and g the guidance scale; 1 is the conditional prediction alone, and costs
one row a sample instead of two.

References:
    Ho and Salimans, Classifier-Free Diffusion Guidance, 2022 (https://arxiv.org/abs/2207.12598).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdquant.errors import ModelError, raise_collected
from tdquant.support.restoring import evaluating


@dataclass(frozen=True)
class Condition:
    """Embeddings for images by their index.

    Arguments:
        context: ``(N, M, D)``; image i takes row ``i % N``.
        empty: Embedding of no condition, ``(1, M, D)``, for guidance.
        guidance: Guidance scale g.

    Raises:
        ModelError: A shape does not fit, a number is not finite, or guidance lacks the empty
            embedding; all mistakes are listed.
    """

    context: Tensor
    empty: Tensor | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        raise_collected(ModelError, self._mistakes(), "the condition")
        object.__setattr__(self, "context", self.context.float())
        object.__setattr__(self, "empty", None if self.empty is None else self.empty.float())

    def _mistakes(self) -> Iterator[str]:
        for name, tensor in (("context", self.context), ("empty", self.empty)):
            if tensor is None:
                continue
            if not tensor.is_floating_point() or not bool(tensor.float().isfinite().all()):
                yield f"{name} of {tensor.dtype}: embeddings are finite real numbers"
        if self.context.ndim != 3 or not self.context.numel():
            yield f"context of shape {tuple(self.context.shape)}: it is (N, tokens, width)"
        elif self.empty is not None and self.empty.shape != (1, *self.context.shape[1:]):
            shape = (1, *self.context.shape[1:])
            yield f"empty of shape {tuple(self.empty.shape)}: it is {shape}, like the context"
        if not math.isfinite(self.guidance):
            yield f"guidance={self.guidance}: a finite number"
        elif self.guidance != 1 and self.empty is None:
            yield f"guidance={self.guidance} without the embedding of an empty prompt"

    @property
    def copies(self) -> int:
        """Rows of a call for each image: 2 with guidance, else 1."""
        return 1 if self.guidance == 1 or self.empty is None else 2

    def rows(self, indices: Sequence[int], device: torch.device | str) -> Tensor:
        """The context of a call for the images ``indices``: with guidance all empty ones first."""
        context = self.context[[i % len(self.context) for i in indices]].to(device)
        if self.copies == 1 or self.empty is None:
            return context
        return torch.cat([self.empty.to(device).expand_as(context), context])

    def bound(
        self, model: Callable[..., Tensor], indices: Sequence[int], device: torch.device | str
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Binds a denoiser ``model(x, t, context)`` on ``device`` to the images ``indices``.

        Returns:
            ``(x, t) -> prediction``.
        """
        context = self.rows(indices, device)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            with evaluating(model):
                output = model(torch.cat([x] * self.copies), t, context.to(x.dtype))
            if self.copies == 1:
                return output
            empty, full = output.chunk(2)
            return torch.lerp(empty, full, self.guidance)

        return predict
