"""Small trained denoisers for the studies: ``load(name)`` gives one that is committed.

``DEV`` are for choosing defaults, ``HELD_OUT`` for judging them; ``train_models.py`` makes both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from torch import nn

from small_models.networks import build
from small_models.noising import make_scheduler, objective
from small_models.plans import DATA, DEV, HELD_OUT, PLANS
from tdquant.errors import ModelError, StorageError
from tdquant.files.digests import file_digest
from tdquant.lab.data import StoredImages
from tdquant.lab.data.fashion_mnist import ROOT
from tdquant.models import Pipe

__all__ = ["DEV", "HELD_OUT", "PLANS", "SmallModel", "load", "trained"]

MODELS = Path(__file__).parents[1] / "models"
WEIGHTS, CARD = "weights.safetensors", "card.json"


@dataclass(frozen=True)
class SmallModel(Pipe):
    """A pixel model with its card.

    Attributes:
        steps: Sampler steps that it is sampled with.
        card: What is in its card: data, licence, training, digest of the weights.
    """

    steps: int = 50
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def held_out(self) -> bool:
        """Whether it is for judging alone."""
        return self.card["role"] == "held out"

    def images(self, split: str, count: int, root: str = ROOT) -> StoredImages:
        """The first pictures of its data, in [-1, 1].

        Arguments:
            split: ``"train"`` or ``"heldout"``.
            count: Number of pictures.
            root: Folder of Fashion-MNIST's files; other data take none.
        """
        return DATA[self.card["data"]["name"]].images(split, count, self.shape[-1], root)

    def objective(self) -> nn.Module:
        """What it was trained on: ``draw`` noises samples as ``DiffusionObjective`` does, and
        ``tdq.train(objective=...)`` takes it.
        """
        return objective(self.scheduler, self.card["data"]["spread"])


def trained() -> list[str]:
    """The names of the models that are committed."""
    return [name for name in PLANS if (MODELS / name / CARD).exists()]


def load(name: str) -> SmallModel:
    """Loads a committed model in float32, in evaluation mode. Float is what its float16 weights
    say: the model is defined by them.

    Raises:
        ModelError: There is no such model, or it is not trained yet.
        StorageError: The weights are not those of the card.
    """
    if name not in trained():
        raise ModelError(f"no small model {name!r}", fix=f"one of {', '.join(trained())}")
    card = json.loads((MODELS / name / CARD).read_text())
    file = MODELS / name / WEIGHTS
    if file_digest(file) != card["sha256"]:
        raise StorageError("weights that the card does not know", where=str(file))
    network = build(card["network"], name)
    weights = load_tensors(file.read_bytes())
    network.load_state_dict({key: value.float() for key, value in weights.items()})
    return SmallModel(
        network.eval(), None, make_scheduler(card["scheduler"]), tuple(card["shape"]), name,
        steps=card["steps"], card=card,
    )  # fmt: skip
