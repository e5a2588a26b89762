"""Whether a model can be called with a sample and a timestep alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdquant.errors import ModelError, TDQError
from tdquant.support.restoring import evaluating


def check_call(model: nn.Module, shape: tuple[int, ...], t: Tensor, where: str, fix: str) -> None:
    """Calls a model on the CPU as ``model(x, t)``, x ``(1, *shape)``.

    Arguments:
        model: The model.
        shape: Shape of a sample.
        t: A timestep, of the shape in which the model will get it.
        where: What to call it in an error.
        fix: What to do with a model that takes more.

    Raises:
        ModelError: It takes more, such as the embedding of a prompt, or samples of another shape.
    """
    x = torch.zeros(1, *shape, dtype=torch.float32)
    weight = next((p for p in model.parameters() if p.is_floating_point()), x)
    try:
        with torch.no_grad(), evaluating(model):
            model(x.to(weight.dtype), t)
    except TDQError:
        raise
    except Exception as error:  # models raise anything
        raise ModelError(
            "the model cannot be called with a sample and a timestep alone",
            where=where,
            why=(str(error).strip() or type(error).__name__).splitlines()[0],
            fix=fix,
        ) from error
