"""Which small models there are: data, network, noise schedule and training of each.

Those of ``DEV`` are there for choosing defaults on, those of ``HELD_OUT`` for judging what was
chosen: nobody quantizes one of these before the defaults are frozen. Between the two differ the
data, the kind of network or its shape, the schedule, what is predicted, and the sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tdquant.lab.data import StoredImages, cats, make_dataset, robots
from tdquant.lab.data.fashion_mnist import ROOT

DOWN, DOWN_ATTENTION = "DownBlock2D", "AttnDownBlock2D"
UP, UP_ATTENTION = "UpBlock2D", "AttnUpBlock2D"


@dataclass(frozen=True)
class Art:
    """A set of pictures: its options, splits and where it comes from."""

    options: dict[str, Any]
    heldout: str
    attribution: str
    licence: str

    def images(self, split: str, count: int, size: int, root: str = ROOT) -> StoredImages:
        """The first ``count`` pictures of a split, ``"train"`` or ``"heldout"``."""
        split = self.heldout if split == "heldout" else split
        where = {"root": root} if "fit" in self.options else {"count": count}
        found = make_dataset(split=split, size=size, **self.options, **where)
        assert isinstance(found, StoredImages)
        return StoredImages(found.images[:count], None, found.name, size)


DATA = {
    "cats": Art({"name": "cats"}, "heldout", cats.ATTRIBUTION, "CC-BY-4.0"),
    "robots": Art({"name": "robots"}, "heldout", robots.ATTRIBUTION, "CC-BY-3.0 or CC-BY-4.0"),
    "fashion-mnist": Art(
        {"name": "fashion-mnist", "fit": "resize"},
        "test",
        "Fashion-MNIST: Zalando SE, 2017, MIT.",
        "MIT",
    ),
}


@dataclass(frozen=True)
class Plan:
    """How one model is made.

    Attributes:
        data: A key of DATA.
        shape: Shape of one sample.
        network: Description of the network, as ``networks.build`` reads it.
        scheduler: Description of the sampler, as ``noising.make_scheduler`` reads it.
        steps: Sampler steps.
        minutes: Of one core, for training.
        batch: Samples of an optimizer step.
        rate: Learning rate, behind a warm-up and with half a cosine down to zero.
        spread: Standard deviation of the data.
        pictures: Training pictures.
        seed: Of weights, order and noise.
        bf16: Train under autocast.
    """

    data: str
    shape: tuple[int, int, int]
    network: dict[str, Any]
    scheduler: dict[str, Any]
    steps: int
    minutes: float
    batch: int
    rate: float
    seed: int
    spread: float = 0.5
    pictures: int = 40_000
    bf16: bool = False


def own(name: str, **config: Any) -> dict[str, Any]:
    return {"source": "studies", "class": name, "config": config}


def unet(size: int, **config: Any) -> dict[str, Any]:
    config = {"sample_size": size, "layers_per_block": 2, **config}
    return {"source": "diffusers", "class": "UNet2DModel", "config": config}


def sampler(name: str, **config: Any) -> dict[str, Any]:
    return {"class": name, "config": config}


DEV = {
    "mlp-cats8": Plan(
        "cats", (3, 8, 8),
        own("ScoreMLP", shape=[3, 8, 8], width=384, blocks=6, features=128, spread=0.45),
        sampler("LevelEuler", sigma_min=0.002, sigma_max=80.0),
        steps=40, minutes=8, batch=256, rate=1e-3, seed=31, spread=0.45,
    ),
    "dit-cats": Plan(
        "cats", (3, 32, 32),
        own("UnconditionalDiT", num_attention_heads=4, attention_head_dim=32, in_channels=3,
            num_layers=6, sample_size=32, patch_size=4),
        sampler("DDIMScheduler", beta_schedule="squaredcos_cap_v2", clip_sample=False,
                prediction_type="v_prediction"),
        steps=50, minutes=15, batch=32, rate=1e-3, seed=32, bf16=True,
    ),
}  # fmt: skip
HELD_OUT = {
    "unet-robots": Plan(
        "robots", (3, 32, 32),
        unet(32, in_channels=3, out_channels=3, block_out_channels=[32, 64, 64],
             down_block_types=[DOWN, DOWN_ATTENTION, DOWN],
             up_block_types=[UP, UP_ATTENTION, UP], norm_num_groups=16, attention_head_dim=32),
        sampler("DDIMScheduler", beta_schedule="linear", clip_sample=True),
        steps=50, minutes=20, batch=16, rate=8e-4, seed=33, bf16=True,
    ),
    "unet-fashion": Plan(
        "fashion-mnist", (1, 28, 28),
        unet(28, in_channels=1, out_channels=1, block_out_channels=[24, 48, 72],
             down_block_types=[DOWN, DOWN, DOWN_ATTENTION],
             up_block_types=[UP_ATTENTION, UP, UP], norm_num_groups=8, attention_head_dim=24),
        sampler("DPMSolverMultistepScheduler", beta_schedule="scaled_linear", beta_start=0.00085,
                beta_end=0.02, prediction_type="sample"),
        steps=25, minutes=12, batch=32, rate=1e-3, seed=34, bf16=True, pictures=60_000,
    ),
    "score-fashion": Plan(
        "fashion-mnist", (1, 14, 14),
        own("FunnelMLP", shape=[1, 14, 14], widths=[512, 384, 256], features=128),
        sampler("EulerDiscreteScheduler", beta_schedule="scaled_linear", beta_start=0.00085,
                beta_end=0.02),
        steps=40, minutes=8, batch=256, rate=1e-3, seed=35, pictures=60_000,
    ),
    "dit-robots": Plan(
        "robots", (3, 24, 24),
        own("UnconditionalDiT", num_attention_heads=3, attention_head_dim=48, in_channels=3,
            num_layers=5, sample_size=24, patch_size=3),
        sampler("FlowMatchEulerDiscreteScheduler"),
        steps=30, minutes=15, batch=32, rate=1e-3, seed=36, bf16=True,
    ),
}  # fmt: skip
PLANS = {**DEV, **HELD_OUT}
