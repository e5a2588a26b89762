"""The ``tdquant`` section of a configuration: how the quantized model is trained.

Everything is optional. The defaults are the published settings where there is one:

    loss = mean_b w(t_b) l(eps_b, eps_theta(x_t, t_b)),   w(t) = min(SNR(t), gamma) / SNR(t)

with l of ``loss``, gamma of ``min_snr`` (w = 1 without it), and after ``warmup`` steps of linear
rise the constant rate of ``rate``.

References:
    Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, 2023
    (https://arxiv.org/abs/2303.09556), for gamma.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from tdquant.files.config.checking import check_keys, complain, dotted

SECTION = "tdquant"


class Option(NamedTuple):
    """One key of the section.

    Attributes:
        default: Its value where the section does not give it.
        kind: int, float, str, or the strings that are allowed.
        meaning: What it does.
        low: Least value of a number.
        below: A number must be less than this.
        exclusive: The number must be more than ``low``.
    """

    default: int | float | str | None
    kind: type | tuple[str, ...]
    meaning: str
    low: float = 0
    below: float = math.inf
    exclusive: bool = False

    def mistake(self, value: object) -> str | None:
        """What is wrong with ``value``, or None. None is allowed where it is the default."""
        if value is None and self.default is None:
            return None
        if isinstance(self.kind, tuple):
            return None if value in self.kind else f"one of {', '.join(self.kind)}"
        if self.kind is str:
            return None if isinstance(value, str) else "text"
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = whole or (self.kind is float and isinstance(value, float))
        if fits and self.low <= value < self.below and not (self.exclusive and value == self.low):  # type: ignore[operator]
            return None
        noun = "a whole number" if self.kind is int else "a number"
        start = f"above {self.low:g}" if self.exclusive else f"{self.low:g} or more"
        return f"{noun}, {start}" + ("" if self.below == math.inf else f", below {self.below:g}")


TRAINING: dict[str, Option] = {
    "steps": Option(200_000, int, "Optimizer steps.", low=1),
    "rate": Option(
        None, float, "Learning rate; model.base_learning_rate if absent.", exclusive=True
    ),
    "warmup": Option(5_000, int, "Steps in which the rate rises linearly from 0."),
    "schedule": Option(
        "constant", ("constant", "cosine"), "Of the rate after the warm-up; cosine falls to 0."
    ),
    "ema": Option(0.9999, float, "Decay of the averaged weights; 0 keeps none.", below=1),
    "accumulate": Option(1, int, "Parts into which a batch is split to save memory.", low=1),
    "clip": Option(1.0, float, "Largest norm of the gradient; 0 does not clip."),
    "loss": Option(None, ("l1", "l2"), "Of the noise; model.params.loss_type if absent."),
    "min_snr": Option(None, float, "gamma of min-SNR weights; absent: equal.", exclusive=True),
    "precision": Option("no", ("no", "bf16", "fp16"), "Of autocast; no: float32 throughout."),
    "save_every": Option(5_000, int, "Steps between checkpoints.", low=1),
    "sample_every": Option(0, int, "Steps between pictures of samples; 0: none."),
    "seed": Option(23, int, "Of the order of images, flips, noise and timesteps.", below=2**63),
    "scale": Option(
        None,
        str,
        "Law of activation scales: a kind that a recipe takes; --use_dynamic means temporal; "
        "absent: static.",
    ),
    "depth": Option(None, int, "Linear layers of a temporal scale's network; 4.", low=1),
    "dropout": Option(None, float, "Of that network; 0. The published one has 0.2.", below=1),
    "granularity": Option(
        None, ("channel", "tensor"), "Steps of a weight: one an output channel, or one in all."
    ),
    "time_weights": Option(None, int, "Bits of weights on the time path; 8, or 32 for float.", 2),
    "scheme": Option(
        "tdquant",
        ("tdquant", "published"),
        "published: the grids, starts and scale networks of TDQ's code, one step for each weight, "
        "the time path in float; clip is then 0 and calibration_batches 100 unless given.",
    ),
    "rates": Option(
        "published",
        ("published", "equal"),
        "published: learned steps at a tenth of the rate, scales' networks at the whole; "
        "equal: all at the rate.",
    ),
    "correct": Option(
        0, int, "Samples on which a gain of the output over time is fitted at the end; 0: none."
    ),
    "calibration_batches": Option(
        16, int, "Batches from which the scales start; of one batch with scheme published.", low=1
    ),
}
"""Every key of the section ``tdquant``, its default, its type and its meaning."""

PUBLISHED = {"clip": 0.0, "calibration_batches": 100}
"""Defaults that are others with ``scheme: published``."""

_OWN = ("depth", "dropout", "granularity", "time_weights")


def training_mistakes(section: object, where: str = SECTION) -> list[str]:
    """The mistakes in a ``tdquant`` section; an absent one has none."""
    if section is None:
        return []
    mistakes = check_keys(section, TRAINING, where=where)
    if isinstance(section, Mapping):
        for key, value in section.items():
            wrong = TRAINING[key].mistake(value) if key in TRAINING else None
            if wrong:
                mistakes.append(f"{dotted(where, key)}={value!r}: {wrong}")
        if section.get("scheme") == "published":
            mistakes += [
                f"{dotted(where, key)}={section[key]!r}: the published scheme has its own"
                for key in _OWN
                if section.get(key) is not None
            ]
            if section.get("scale") not in (None, "static", "temporal"):
                mistakes.append(
                    f"{dotted(where, 'scale')}={section['scale']!r}: static or temporal with the "
                    "published scheme"
                )
    return mistakes


def training_options(
    config: Mapping[str, Any], where: str = "the configuration"
) -> dict[str, Any]:
    """The options of training: the section ``tdquant`` of ``config`` over the defaults.

    Arguments:
        config: A whole configuration, from ``read_config``.
        where: What to call it in an error, such as its file's name.

    Returns:
        A value for every key of ``TRAINING``.

    Raises:
        ConfigError: Keys are unknown or values out of range; all mistakes are listed.
    """
    section = config.get(SECTION)
    complain(training_mistakes(section), where)
    section = dict(section or {})
    defaults = {key: option.default for key, option in TRAINING.items()}
    if section.get("scheme") == "published":
        defaults |= PUBLISHED
    return defaults | section
