"""A model that an engine runs, in the place of a denoiser: what pipelines read of it besides
calling it. A graph has no modules to ask, so its file describes them, as JSON:

    adapter          what kind of adapter is computed beside its layers, or null
    config           the model's configuration
    attributes       path of a module -> its plain attributes, ``""`` for the model itself
    num_parameters   numbers in its weights

Modules inside repeated blocks, whose paths have a number in them, are left out: pipelines read
``unet.add_embedding.linear_1.in_features`` and ``transformer.inner_dim``, and nothing of a block.
Whatever changes a denoiser, adapters, attention processors, caches, is refused by name.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import torch
from torch import nn

from tdquant.errors import EngineAttributeError, ExportError
from tdquant.lowering.nests import Output
from tdquant.support.adapters import adapters_of

_HOOKS = "_diffusers_hook"
"""Where diffusers keeps its caches and group offloading on a module."""


LENGTH = "__len__"
"""Key of the number of modules in a list."""


def described(model: nn.Module) -> dict[str, Any]:
    """The description of a model that is not its call."""
    config, adapter = getattr(model, "config", None), adapters_of(model)
    return {
        "adapter": adapter and adapter[0],
        "config": plain({k: getattr(config, k, v) for k, v in dict(config or {}).items()}),
        "attributes": {
            path: _attributes(module)
            for path, module in model.named_modules()
            if not any(part.isdigit() for part in path.split("."))
        },
        "num_parameters": sum(p.numel() for p in model.parameters()),
    }


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Attributes of one module that are numbers, strings, None, or lists of them."""
    found = plain({k: v for k, v in vars(module).items() if k != "training"})
    if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
        found[LENGTH] = len(module)
    return found


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """The entries that JSON can hold, without private ones."""
    out = {}
    for key, value in values.items():
        if key.startswith("_"):
            continue
        try:
            out[key] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            continue
    return out


class OnEngine(nn.Module):
    """Base of models that an engine runs.

    It has one parameter, of no elements: ``.to``, ``.half``, ``.dtype``, ``.device`` and
    ``next(model.parameters())`` work as for any module. They tell a pipeline where and of what
    type to make its tensors; the graph computes in its own precision, on its own device.

    Arguments:
        about: ``described``, with or without more.

    Attributes:
        config: Configuration of the model, by key and by attribute.
    """

    is_cache_enabled = False

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__()
        self.config = Output(about.get("config", {}))
        self._name = str(about.get("model", ""))
        self._attributes: dict[str, dict[str, Any]] = about.get("attributes", {})
        self._count = int(about.get("num_parameters", 0))
        self._adapter = about.get("adapter")
        self._place = nn.Parameter(torch.empty(0, dtype=torch.float32), requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        """That of the inputs a pipeline makes; others are converted."""
        return self._place.dtype

    @property
    def device(self) -> torch.device:
        """Where a pipeline makes its inputs. Results are where the sample of the call is."""
        return self._place.device

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Numbers in the weights of the model, none of which can be trained."""
        return 0 if only_trainable else self._count

    def cache_context(
        self, *names: Any, **options: Any
    ) -> contextlib.AbstractContextManager[None]:
        """A context that does nothing: an engine computes every block in every call."""
        return contextlib.nullcontext()

    def check_adapter(self) -> None:
        """Raises EngineAttributeError if the graph computes an adapter, which stays as it is."""
        if self._adapter:
            raise _fixed("keeps the adapter in its graph", self._name)

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:
        """Raises ExportError: the frozen model is what is saved."""
        raise not_saved(type(self).__name__, self._name)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            known = self.__dict__.get("_attributes", {})
            return _look(known, "", name, self.__dict__.get("_name", ""))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == _HOOKS:
            raise _fixed("takes no hooks of diffusers", self._name)
        super().__setattr__(name, value)


class Described:
    """A submodule of which only plain attributes are left.

    Arguments:
        attributes: Those of every module, by path.
        path: Of this one.
        model: Name of the model, for errors.
    """

    def __init__(self, attributes: dict[str, dict[str, Any]], path: str, model: str) -> None:
        self._attributes, self._path, self._model = attributes, path, model

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _look(self._attributes, self._path, name, self._model)

    def __len__(self) -> int:
        return int(_look(self._attributes, self._path, LENGTH, self._model))

    def __bool__(self) -> bool:
        return self._attributes[self._path].get(LENGTH, 1) > 0

    def __repr__(self) -> str:
        return f"Described({self._model}.{self._path})"


def _look(attributes: dict[str, dict[str, Any]], path: str, name: str, model: str) -> Any:
    """An attribute of a described module, or one of its submodules."""
    own = attributes.get(path, {})
    if name in own:
        return own[name]
    below = f"{path}.{name}" if path else name
    if below in attributes:
        return Described(attributes, below, model)
    raise _fixed(f"has no {name!r}", f"{model}.{path}".strip("."))


def _fixed(what: str, where: str) -> EngineAttributeError:
    return EngineAttributeError(
        f"a model that an engine runs {what}",
        where=where,
        why="its graph is what was frozen: adapters, attention processors, fused projections and "
        "caches cannot be put into it afterwards",
        fix="change the float model, then tdq.quantize, tdq.calibrate, tdq.freeze and export or "
        "compile it; or put the frozen model into the pipeline",
    )


def not_saved(kind: str, model: str) -> ExportError:
    """The error of saving a model that was compiled or opened."""
    return ExportError(
        f"a compiled or exported model, {kind}, cannot be saved",
        where=model,
        why="it is for running, and diffusers could not load it again",
        fix="put the frozen model into the pipeline and save that; tdq.export writes the file of "
        "another engine",
    )
