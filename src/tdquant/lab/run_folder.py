"""The folder of a training run: all that it takes to go on, and to sample.

RUN/run.json                        what was asked for
RUN/config.yaml                     the whole configuration
RUN/first_stage.safetensors         the autoencoder, if there is one
RUN/checkpoints/step-00000500/      see tdquant.training.checkpoints
RUN/frozen/                         the averaged model, frozen, as tdq.save writes it
RUN/published.ckpt                  model and averages as TDQ's authors write them, if the
                                    quantizers are theirs
RUN/log.jsonl, samples/, tensorboard/
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from tdquant.errors import StorageError
from tdquant.files.checkpoints import open_checkpoint
from tdquant.files.config import training_options
from tdquant.files.documents import Document, read_json
from tdquant.files.looking import exists, is_file
from tdquant.files.writing import replacing, write_tensors
from tdquant.models import Pipe, load_compvis
from tdquant.quantization import quantize
from tdquant.recipe import Recipe
from tdquant.storage import load
from tdquant.support.optional import require
from tdquant.training.checkpoints import Checkpoint, Checkpoints, read_checkpoint
from tdquant.training.structure import joined, restore


class RunIndex(Document):
    """``run.json``.

    Attributes:
        scale_factor: Factor of the latents.
        asked: Arguments of the run.
    """

    FORMAT: ClassVar[str] = "tdquant-run"
    VERSION: ClassVar[int] = 1
    scale_factor: float | None
    asked: dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """The files of a run.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def around(cls, path: Path) -> RunFolder:
        """The run at a path, or around one of its checkpoints."""
        return cls(path.parent.parent if exists(path / "state.json") else path)

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.path / "config.yaml"

    @property
    def frozen(self) -> Path:
        """The finished model."""
        return self.path / "frozen"

    @property
    def published(self) -> Path:
        """The finished model in the published format."""
        return self.path / "published.ckpt"

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of training."""
        return Checkpoints(self.path / "checkpoints")

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return exists(self.path / "run.json")

    @property
    def index(self) -> RunIndex:
        """The content of ``run.json``.

        Raises:
            StorageError: It is missing or damaged.
        """
        file, what = self.path / "run.json", "the index of a run"
        fix = "a folder that tdquant train wrote, such as logs/NAME"
        content = read_json(file, what, fix)
        if isinstance(content, dict):  # the first versions had none
            content = {"version": 1, **content}
        return RunIndex.from_dict(content, what, str(file), fix)

    def begin(self, pipe: Pipe, config: dict[str, Any], asked: dict[str, Any]) -> None:
        """Writes what does not change while the run goes on; ``run.json`` comes last."""
        shutil.rmtree(self.frozen, ignore_errors=True)  # a longer run makes a better one
        self.published.unlink(missing_ok=True)
        conf = require("omegaconf", "train").OmegaConf
        with replacing(self.config) as fresh:
            fresh.write_text(conf.to_yaml(conf.create(config)))
        if pipe.vae is not None:
            tensors = {k: v.cpu().contiguous() for k, v in pipe.vae.state_dict().items()}
            with replacing(self.path / "first_stage.safetensors") as fresh:
                write_tensors(tensors, fresh)
        RunIndex(scale_factor=pipe.scale_factor, asked=asked).write(self.path / "run.json")

    def asked(self) -> dict[str, Any]:
        """The arguments that the run was started with.

        Raises:
            StorageError: ``run.json`` cannot be read, or nothing was trained here.
        """
        asked = self.index.asked
        if "rate" not in asked:
            raise StorageError(
                "a folder that was never trained",
                where=str(self.path),
                why="tdquant quantize wrote it",
                fix="another --name; training starts from the float checkpoint",
            )
        # Runs of older versions lack the options that came later.
        return asked | {"options": training_options({}) | asked["options"]}

    def fill_first_stage(self, vae: nn.Module | None) -> None:
        """Loads the autoencoder's weights.

        Raises:
            StorageError: They are missing, damaged, or not of this autoencoder.
        """
        file = self.path / "first_stage.safetensors"
        if vae is not None:
            with open_checkpoint(file) as tensors:
                state = {name: tensor.load() for name, tensor in tensors.items()}
            try:
                vae.load_state_dict(state)
            except RuntimeError as error:
                raise StorageError(
                    "another first stage than the configuration's",
                    where=str(file),
                    why=str(error).splitlines()[0],
                ) from error

    def model(
        self, checkpoint: Path | None = None, ema: bool = True, overrides: Sequence[str] = ()
    ) -> Pipe:
        """The finished model, or that of a checkpoint.

        Arguments:
            checkpoint: Folder of a checkpoint. None takes the frozen model if there is one, else
                the newest checkpoint.
            ema: Take averaged parameters.
            overrides: ``key.path=value`` changes to the configuration.

        Raises:
            StorageError: There is no whole checkpoint.
        """
        if checkpoint is None and ema and exists(self.frozen / "tdquant.json"):
            return replace(self._untrained(None, overrides), unet=load(self.frozen))
        found = read_checkpoint(checkpoint) if checkpoint else self.checkpoints.latest()
        if found is None:
            raise StorageError(
                "the run has no whole checkpoint yet", where=str(self.path), fix="let it train on"
            )
        pipe = self.reopen(found, overrides)
        tensors = found.tensors("model") | (found.tensors("average") if ema else {})
        pipe.unet.load_state_dict(tensors)
        return pipe

    def reopen(self, found: Checkpoint, overrides: Sequence[str] = ()) -> Pipe:
        """The model as a checkpoint describes it, for training to load its tensors into.

        Raises:
            StorageError: The run began with a quantized checkpoint file that is gone.
        """
        structure = found.state["structure"]
        if structure is not None and structure["recipe"] is None:
            source = self.asked()["checkpoint"]
            if source is None or not is_file(source):
                raise StorageError(
                    "the quantized checkpoint that the run began with is not there",
                    where=str(source),
                    why="it describes the layers, which the run's own checkpoints do not",
                    fix="put it back",
                )
            return self._untrained(source, overrides)
        pipe = self._untrained(None, overrides)
        known = pipe.unet.state_dict()
        tensors = joined(found.tensors("model"), structure)
        pipe.unet.load_state_dict({k: v for k, v in tensors.items() if k in known})
        if structure is not None:
            quantize(pipe.unet, Recipe.from_dict(structure["recipe"]))
            restore(pipe.unet, structure, str(found.path))
        return pipe

    def _untrained(self, source: str | None, overrides: Sequence[str]) -> Pipe:
        """Configuration and first stage of the run, with a UNet that is still to be filled."""
        pipe = load_compvis(self.config, source, overrides=overrides, quiet=True)
        self.fill_first_stage(pipe.vae)
        return replace(pipe, scale_factor=self.index.scale_factor, name=self.path.name)
