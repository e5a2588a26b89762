"""``open_pipeline``: a folder that ``export_pipeline`` wrote as a pipeline of diffusers."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import ModelError, StorageError, TDQError
from tdquant.files.documents import read_json
from tdquant.files.looking import is_file, is_folder
from tdquant.integrations.pipelines.denoiser import open_denoiser
from tdquant.integrations.pipelines.layout import CONFIG, GRAPH, INDEX, READ_BY_OPTIMUM
from tdquant.lowering import open_session
from tdquant.lowering.nests import Output
from tdquant.lowering.openvino.session import OpenVINOEngine, core
from tdquant.support.optional import require


def open_pipeline(
    directory: str | os.PathLike[str], *, threads: int | None = None, device: str = "CPU"
) -> Any:
    """Opens a folder that ``tdq.export_pipeline`` wrote.

    The pipeline is that of diffusers with sessions for its denoisers. Text encoders and
    autoencoder run as OpenVINO graphs where the folder has such, else in torch.

    Arguments:
        directory: The folder.
        threads: Threads of one call of a graph; None takes ``torch.get_num_threads()``.
        device: OpenVINO's name of the device.

    Raises:
        ModelError: The folder holds no pipeline, or one of a class that diffusers does not have.
        ExportError: A graph is missing, damaged, or not from ``tdq.export_pipeline``.
        MissingDependencyError: OpenVINO, diffusers or transformers is not installed.
    """
    require("openvino", "openvino")
    diffusers = require("diffusers", "pipelines")
    folder = Path(directory)
    try:
        index = read_json(folder / INDEX, INDEX)
        cls = getattr(diffusers, index["_class_name"])
        if not issubclass(cls, diffusers.DiffusionPipeline):
            raise TypeError(f"{cls.__name__} is no pipeline")
    except (StorageError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            "no pipeline",
            where=str(folder),
            why=f"{INDEX}: {error}",
            fix="a folder that tdq.export_pipeline or tdquant export wrote",
        ) from error
    open_graph = open_denoiser if index["_class_name"] in READ_BY_OPTIMUM else open_session
    run: dict[str, Any] = {"threads": threads or torch.get_num_threads(), "device": device}
    given: dict[str, Any] = {}
    for name in inspect.signature(cls.__init__).parameters:
        value = index.get(name)
        if isinstance(value, list) and len(value) == 2:
            library, kind = value
            if library is None:
                given[name] = None
            elif is_file(folder / name / GRAPH) and not name.startswith("text_encoder"):
                given[name] = open_graph(folder / name / GRAPH, **run)
            else:
                given[name] = _part(folder, name, library, kind, run)
        elif name in index:
            given[name] = value
    with _damage(folder, INDEX):
        return cls(**given)


@contextlib.contextmanager
def _damage(folder: Path, name: str) -> Iterator[None]:
    """Turns whatever diffusers and transformers raise over a damaged part into one error."""
    try:
        yield
    except TDQError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name} of the pipeline cannot be opened",
            where=str(folder),
            why=(str(error).strip() or type(error).__name__).splitlines()[0],
            fix="export the pipeline again",
        ) from error


def _part(folder: Path, name: str, library: str, cls: str, run: dict[str, Any]) -> Any:
    """A component beside the denoisers, of the class that ``model_index.json`` names."""
    if is_file(folder / name / GRAPH):
        return TextEncoder(folder / name, run)
    if is_file(folder / f"{name}_decoder" / GRAPH):
        return Autoencoder(folder, name, run)
    if not is_folder(folder / name):
        raise ModelError(
            f"the folder has no {name}", where=str(folder), fix="export the pipeline again"
        )
    with _damage(folder, name):
        if library in ("diffusers", "transformers"):
            module = importlib.import_module(library)
        else:  # parts that belong to one pipeline, such as a safety checker
            module = getattr(importlib.import_module("diffusers.pipelines"), library)
        return getattr(module, cls).from_pretrained(folder / name)


class _Part(nn.Module):
    """A part of a pipeline that graphs compute.

    Attributes:
        config: Configuration of the part, by key and by attribute.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.config = Output(json.loads((folder / CONFIG).read_text()))

    @property
    def dtype(self) -> torch.dtype:
        """That of the inputs; others are converted."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where results are."""
        return torch.device("cpu")


class _Graph:
    """A graph with one output or several, called with tensors in the order of its inputs."""

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        file = folder / GRAPH
        graph = core().read_model(str(file))
        self.inputs = {p.get_any_name(): p.element_type.to_dtype() for p in graph.inputs}
        self.outputs = [port.get_any_name() for port in graph.outputs]
        self._engine = OpenVINOEngine(graph, run["threads"], run["device"], str(file))

    def __call__(self, *tensors: Any) -> dict[str, Tensor]:
        named = {
            name: torch.as_tensor(torch.as_tensor(tensor).numpy(force=True).astype(dtype))
            for (name, dtype), tensor in zip(self.inputs.items(), tensors, strict=True)
        }
        return dict(zip(self.outputs, self._engine(named), strict=True))


class TextEncoder(_Part):
    """A text encoder of transformers that a graph computes."""

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        super().__init__(folder)
        self._graph = _Graph(folder, run)

    def forward(self, input_ids: Tensor, output_hidden_states: bool = False, **_: Any) -> Output:
        """Outputs by name, by attribute and by position; ``hidden_states`` if they are wanted."""
        found = self._graph(input_ids)
        states = [found.pop(name) for name in list(found) if name.startswith("hidden_states.")]
        return Output(found | ({"hidden_states": tuple(states)} if output_hidden_states else {}))


class Autoencoder(_Part):
    """An autoencoder of diffusers that two graphs compute."""

    def __init__(self, folder: Path, name: str, run: dict[str, Any]) -> None:
        super().__init__(folder / f"{name}_decoder")
        self._decoder = _Graph(folder / f"{name}_decoder", run)
        self._encoder = _Graph(folder / f"{name}_encoder", run)
        for key in ("spatial_compression_ratio", "temporal_compression_ratio"):
            if key in self.config:
                setattr(self, key, self.config[key])
        for key in ("latents_mean", "latents_std"):
            if f"{key}_data" in self.config:
                setattr(self, key, torch.tensor(self.config[f"{key}_data"], dtype=torch.float32))

    def decode(
        self, z: Tensor, timestep: Tensor | None = None, return_dict: bool = True, **_: Any
    ) -> Any:
        """Pictures of latents."""
        found = self._decoder(*(t for t in (z, timestep) if t is not None))
        return Output(found) if return_dict else tuple(found.values())

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """The distribution of the latents of pictures."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        (parameters,) = self._encoder(x).values()
        found = DiagonalGaussianDistribution(parameters)
        return Output(latent_dist=found) if return_dict else (found,)
