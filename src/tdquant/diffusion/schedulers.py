"""diffusers' schedulers by short names, each made from the configuration of a checkpoint's own.

A checkpoint was trained under one noise schedule; a scheduler of another class must take it over,
or the model silently sees noise levels that it was not trained on.
"""

from __future__ import annotations

from typing import Any

from tdquant.errors import ModelError
from tdquant.support.optional import require

SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "ddpm": "DDPMScheduler",
}


def make_scheduler(name: str, config: Any) -> Any:
    """Makes the scheduler ``name`` on the noise schedule of ``config``.

    Arguments:
        name: A key of SCHEDULERS.
        config: Configuration dictionary of a diffusers scheduler, or a scheduler.

    Raises:
        ModelError: No such name.
        MissingDependencyError: diffusers is not installed.
    """
    if name not in SCHEDULERS:
        raise ModelError(f"no scheduler {name!r}", fix=f"one of {', '.join(SCHEDULERS)}")
    cls = getattr(require("diffusers", "diffusers"), SCHEDULERS[name])
    if isinstance(config, cls):
        cls = type(config)  # a subclass of the requested class stays
    if name == "ddpm":  # its chain has every timestep, and an offset would lead past the last one
        return cls.from_config(getattr(config, "config", config), steps_offset=0)
    return cls.from_config(getattr(config, "config", config))
