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

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from tdquant.errors import ConfigError, raise_collected
from tdquant.files.config.checking import check_keys, dotted
from tdquant.files.documents import Section

SECTION = "tdquant"

_Count = Annotated[int, Field(ge=1)]
_Whole = Annotated[int, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, lt=1)]


class TrainingOptions(Section):
    """The keys of the section, with their defaults.

    Attributes:
        steps: Optimizer steps.
        rate: Learning rate; ``model.base_learning_rate`` if absent.
        warmup: Steps in which the rate rises linearly from 0.
        schedule: Of the rate after the warm-up; cosine falls to 0.
        ema: Decay of the averaged weights; 0 keeps none.
        accumulate: Parts into which a batch is split to save memory.
        clip: Largest norm of the gradient; 0 does not clip, which is the default with ``scheme:
            published``.
        loss: Of the noise; ``model.params.loss_type`` if absent.
        min_snr: gamma of min-SNR weights; absent: equal weights.
        precision: Of autocast; no: float32 throughout.
        save_every: Steps between checkpoints.
        sample_every: Steps between pictures of samples; 0: none.
        seed: Of the order of images, flips, noise and timesteps.
        scale: Kind of the activation scales, as a recipe takes it; absent: static, or temporal
            with ``--use_dynamic``.
        depth: Linear layers of a temporal scale's network; absent: 4.
        dropout: Rate in that network; absent: 0. The published one has 0.2.
        granularity: Step sizes of a weight: one an output channel, or one in all.
        time_weights: Bits of weights on the time path, 32 for float; absent: what ``Recipe`` has,
            8 with scales of a kind.
        scheme: published: the grids, starts and scale networks of TDQ's code, one step size for
            each weight, the time path in float.
        rates: published: learned step sizes at a tenth of the rate, scales' networks at the whole;
            equal: all at the rate.
        step_rate: Rate of the activation scales as a multiple of the network's, instead of that
            of ``rates``.
        correct: Samples on which a correction of the output is fitted at the end; 0: none.
        calibration_batches: Batches from which the scales start. With ``scheme: published``, draws
            of t for one batch, 100 by default.
    """

    steps: _Count = 200_000
    rate: Annotated[float, Field(gt=0)] | None = None
    warmup: _Whole = 5_000
    schedule: Literal["constant", "cosine"] = "constant"
    ema: _Share = 0.9999
    accumulate: _Count = 1
    clip: Annotated[float, Field(ge=0)] = 1.0
    loss: Literal["l1", "l2"] | None = None
    min_snr: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    save_every: _Count = 5_000
    sample_every: _Whole = 0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 23
    scale: str | None = None
    depth: _Count | None = None
    dropout: _Share | None = None
    granularity: Literal["channel", "tensor"] | None = None
    time_weights: Annotated[int, Field(ge=2)] | None = None
    scheme: Literal["tdquant", "published"] = "tdquant"
    rates: Literal["published", "equal"] = "published"
    step_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    correct: _Whole = 0
    calibration_batches: _Count = 16


PUBLISHED = {"clip": 0.0, "calibration_batches": 100}
"""Defaults that are others with ``scheme: published``."""

_NOT_PUBLISHED = ("depth", "dropout", "granularity", "time_weights")


def training_mistakes(section: object, where: str = SECTION) -> list[str]:
    """Finds the mistakes in a ``tdquant`` section; an absent one has none."""
    if section is None:
        return []
    mistakes = check_keys(section, TrainingOptions.model_fields, where=where)
    if not isinstance(section, Mapping):
        return mistakes
    try:
        TrainingOptions.model_validate(dict(section))
    except ValidationError as error:
        for wrong in error.errors(include_url=False):
            key, rule = wrong["loc"][0], wrong["msg"]
            mistakes.append(f"{dotted(where, key)}={section[key]!r}: {rule[0].lower()}{rule[1:]}")
    if section.get("scheme") == "published":
        mistakes += [
            f"{dotted(where, key)}={section[key]!r}: the published scheme has its own"
            for key in _NOT_PUBLISHED
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
    """Completes the section ``tdquant`` of a configuration with the defaults.

    Arguments:
        config: A whole configuration, from ``read_config``.
        where: What to call it in an error, such as its file's name.

    Returns:
        A value for every key of ``TrainingOptions``.

    Raises:
        ConfigError: Keys are unknown or values out of range; all mistakes are listed.
    """
    section = config.get(SECTION)
    raise_collected(ConfigError, training_mistakes(section), where)
    section = dict(section or {})
    published = PUBLISHED if section.get("scheme") == "published" else {}
    return TrainingOptions().model_dump() | published | section
