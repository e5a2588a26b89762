"""Leaving a model and the process as they were found."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from tdquant.support.hooks import check_unhooked

F = TypeVar("F", bound=Callable[..., Any])

with_gradients = torch.inference_mode(False)
"""Decorator for functions that record gradients, or make tensors that outlive the caller's
``torch.inference_mode`` or ``torch.no_grad``.
"""


@contextlib.contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Puts every module of a model back in its own mode, training or evaluation, at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            if module.training is not mode:  # setting an attribute of a module is slow
                module.training = mode


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Puts a model in evaluation mode, and every module of it back in its own mode at the end.
    What is no module stays as it is.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    with keeping_modes(model):
        if any(module.training for module in model.modules()):
            model.eval()
        yield


@contextlib.contextmanager
def keeping_gradients(model: nn.Module) -> Iterator[None]:
    """Restores the gradient and ``requires_grad`` of every parameter that the model has now."""
    found = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad, gradient in found:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


@contextlib.contextmanager
def keeping_random_state() -> Iterator[None]:
    """Restores the state of torch's global generators, of the GPUs if this process uses them."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        yield


@contextlib.contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Restores the attributes of a model and of all modules in it if the context ends by an error:
    children, parameters, hooks, modes, and ``model.tdq``. Numbers in tensors are not restored.
    """
    owners: list[Any] = list(model.modules())
    owners += [m.tdq for m in owners if hasattr(vars(m).get("tdq"), "__dict__")]
    before = [(vars(owner), _copied(vars(owner))) for owner in owners]
    try:
        yield
    except BaseException:
        for attributes, copies in before:
            attributes.clear()
            for name, (value, content) in copies.items():
                if content is not None:
                    value.clear()
                    value.update(content)
                attributes[name] = value
        raise


@contextlib.contextmanager
def biases_unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Restores the numbers of a model's biases if the context ends by an error: they are the
    tensors of the user that verbs change in place.
    """
    named = model.named_parameters()
    biases = [p for n, p in named if n.rpartition(".")[2] == "bias" and not p.is_inference()]
    before = [p.detach().clone() for p in biases]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for bias, numbers in zip(biases, before, strict=True):
                bias.copy_(numbers)
        raise


def _copied(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Every attribute, and a copy of the content of the dictionaries that belong to nn.Module."""
    own = nn.Module().__dict__
    return {
        name: (value, value.copy() if name in own and isinstance(value, dict) else None)
        for name, value in attributes.items()
    }


def changes_model(verb: F) -> F:
    """Decorates a function that changes the model that is its first argument: wherever it is
    called, it makes ordinary tensors; and a call that fails leaves the model as it was. Models
    with hooks of diffusers are refused.
    """

    @functools.wraps(verb)
    def whole(model: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        check_unhooked(model, f"tdq.{verb.__name__}")
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(unchanged_on_error(model))
            stack.enter_context(biases_unchanged_on_error(model))
            make_ordinary(model)
            return verb(model, *args, **kwargs)

    return cast(F, whole)


def make_ordinary(model: nn.Module) -> None:
    """Replaces parameters and buffers that were made in inference mode, which never learn."""
    known: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or not tensor.is_inference():
                    continue
                if id(tensor) not in known:
                    clone: Tensor = tensor.detach().clone()
                    if isinstance(tensor, nn.Parameter):
                        clone = nn.Parameter(clone, tensor.requires_grad)
                    known[id(tensor)] = clone
                tensors[name] = known[id(tensor)]  # type: ignore[assignment]


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one that was made in inference mode: autograd refuses those."""
    return tensor.clone() if tensor.is_inference() else tensor
