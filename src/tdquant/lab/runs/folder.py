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

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from tdquant.errors import StorageError
from tdquant.files.config import training_options
from tdquant.files.writing import replacing, write_tensors
from tdquant.models import Pipe
from tdquant.support.optional import require
from tdquant.training.checkpoints import Checkpoints

FORMAT = "tdquant-run"


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what.

    Attributes:
        path: The folder.
    """

    path: Path

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
        return (self.path / "run.json").exists()

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
        index = {"format": FORMAT, "scale_factor": pipe.scale_factor, "asked": asked}
        with replacing(self.path / "run.json") as fresh:
            fresh.write_text(json.dumps(index, indent=1) + "\n")

    def asked(self) -> dict[str, Any]:
        """What the run was started with.

        Raises:
            StorageError: ``run.json`` cannot be read.
        """
        asked = dict(self._index()["asked"])
        if "rate" not in asked:
            raise StorageError(
                "a folder that was never trained",
                where=str(self.path),
                why="tdquant quantize wrote it",
                fix="another --name; the float checkpoint is what training starts from",
            )
        # Runs of older versions lack the options that came later.
        return asked | {"options": training_options({}) | asked["options"]}

    def scale_factor(self) -> float:
        """Factor of the latents."""
        return float(self._index()["scale_factor"])

    def fill_first_stage(self, vae: nn.Module | None) -> None:
        """Loads the autoencoder's weights."""
        if vae is not None:
            vae.load_state_dict(load_file(self.path / "first_stage.safetensors"))

    def _index(self) -> dict[str, Any]:
        file = self.path / "run.json"
        try:
            index = json.loads(file.read_text())
            if index["format"] != FORMAT:
                raise ValueError(f"format {index['format']!r}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                "not the folder of a run",
                where=str(file),
                why=str(error),
                fix="a folder that tdquant train wrote, such as logs/NAME",
            ) from error
        return dict(index)
