"""Settings of ``train`` that have good defaults: how parameters are updated, and what is kept."""

from __future__ import annotations

from dataclasses import dataclass

from tdquant.errors import TrainingError, raise_collected
from tdquant.training.groups import RATES, STEP_RATE, WHY_STEP_RATE, is_multiple
from tdquant.training.learner import PRECISIONS
from tdquant.training.optimizing import SCHEDULES


@dataclass(frozen=True)
class Optimization:
    """How the optimizer, AdamW, updates the parameters.

    Arguments:
        rates: Learning rates of scales relative to the network's, ``"equal"`` or ``"published"``;
            see ``parameter_groups``.
        step_rate: Learning rate of the activation scales of every kind as a multiple of the
            network's, instead of that of ``rates``; 0 leaves them as calibration put them.
        warmup: Optimizer steps of linear warm-up; a twentieth of all, at most 5000, if None.
        schedule: ``"constant"`` after the warm-up, or ``"cosine"`` down to zero.
        decay: Weight decay of the network.
        ema: Decay of the moving average, in [0, 1).
        clip: Largest norm of the gradient; 0 does not clip.
        accumulate: Parts that a process splits its share of the batch into, to save memory.
        recompute: Gradient checkpointing: less memory, a third more time.
        precision: ``"no"`` (float32), ``"bf16"`` or ``"fp16"`` autocast. Scales stay float32.

    Raises:
        TrainingError: A setting is invalid; all mistakes are listed.
    """

    rates: str = "equal"
    step_rate: float | None = None
    warmup: int | None = None
    schedule: str = "constant"
    decay: float = 0.01
    ema: float = 0.9999
    clip: float = 1.0
    accumulate: int = 1
    recompute: bool = False
    precision: str = "no"

    def __post_init__(self) -> None:
        names = {"rates": RATES, "schedule": SCHEDULES, "precision": PRECISIONS}
        found = [
            f"{name}={getattr(self, name)!r}: one of {', '.join(known)}"
            for name, known in names.items()
            if getattr(self, name) not in known
        ]
        if self.step_rate is not None and not is_multiple(self.step_rate):
            found.append(f"step_rate={self.step_rate!r}: {WHY_STEP_RATE}; {STEP_RATE}")
        if self.accumulate < 1:
            found.append(f"accumulate={self.accumulate}: at least 1")
        found += [
            f"{name}={getattr(self, name)}: at least 0"
            for name in ("warmup", "decay", "clip")
            if (getattr(self, name) or 0) < 0
        ]
        if not 0 <= self.ema < 1:
            found.append(f"ema={self.ema}: at least 0, below 1")
        raise_collected(TrainingError, found, "the optimization")


@dataclass(frozen=True)
class Checkpointing:
    """Which checkpoints a run leaves in its folder.

    Arguments:
        every: Optimizer steps between checkpoints; there is one at the end in any case.
        keep: Checkpoints to keep.
        resume: Continue from the newest undamaged checkpoint in the folder.

    Raises:
        TrainingError: ``every`` or ``keep`` is less than 1.
    """

    every: int = 500
    keep: int = 2
    resume: bool = True

    def __post_init__(self) -> None:
        given = {"every": self.every, "keep": self.keep}
        mistakes = [f"{name}={n}: at least 1" for name, n in given.items() if n < 1]
        raise_collected(TrainingError, mistakes, "the checkpointing")
