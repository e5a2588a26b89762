r"""Conditional sampling: a condition for every image, and classifier-free guidance.

    e = e_empty + g (e_context - e_empty)

with e the prediction and g the guidance scale; 1 is the conditional prediction alone, and costs
one row a sample instead of two.

References:
    Ho and Salimans, Classifier-Free Diffusion Guidance, 2022 (https://arxiv.org/abs/2207.12598).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdquant.errors import ModelError


@dataclass(frozen=True)
class Condition:
    """Embeddings for images by their index.

    Arguments:
        context: ``(N, M, D)``; image i takes row ``i % N``.
        empty: Embedding of no condition, ``(1, M, D)``, for guidance.
        guidance: Guidance scale g.

    Raises:
        ModelError: A shape is another, or guidance lacks the empty embedding.
    """

    context: Tensor
    empty: Tensor | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        tensors = [t for t in (self.context, self.empty) if t is not None]
        if not all(t.is_floating_point() and bool(t.float().isfinite().all()) for t in tensors):
            raise ModelError(
                "embeddings that are not finite real numbers",
                where="Condition",
                why=f"they are {', '.join(str(t.dtype) for t in tensors)}",
                fix="floating point tensors without NaN or infinity",
            )
        object.__setattr__(self, "context", self.context.float())
        object.__setattr__(self, "empty", None if self.empty is None else self.empty.float())
        if self.context.ndim != 3 or not self.context.numel():
            raise ModelError(
                f"embeddings of shape {tuple(self.context.shape)}",
                where="Condition",
                fix="(N, tokens, width)",
            )
        if not math.isfinite(self.guidance):
            raise ModelError(f"guidance={self.guidance}", where="Condition", fix="a finite number")
        if self.guidance != 1 and self.empty is None:
            raise ModelError(
                f"guidance={self.guidance} without the embedding of an empty prompt",
                where="Condition",
                fix="empty=, or guidance=1",
            )
        if self.empty is not None and self.empty.shape != (1, *self.context.shape[1:]):
            raise ModelError(
                f"an empty embedding of shape {tuple(self.empty.shape)}",
                where="Condition",
                fix=f"{(1, *self.context.shape[1:])}, like the others",
            )

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
        """``(x, t) -> prediction`` for the images ``indices``, in their order.

        Arguments:
            model: The denoiser ``model(x, t, context)``.
            indices: Images of the batch.
            device: Where the model is.
        """
        context = self.rows(indices, device)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            output = model(torch.cat([x] * self.copies), t, context)
            if self.copies == 1:
                return output
            empty, full = output.chunk(2)
            return torch.lerp(empty, full, self.guidance)

        return predict
