"""A tiny UNet of Stable Diffusion quantized in every state that adapters may meet."""

import copy

import torch
from diffusers import UNet2DConditionModel

import tdquant as tdq
from tests.pipelines import PIPELINES


def recorded():
    """The pipeline, and calls of its UNet."""
    pipe, _ = PIPELINES["stable_diffusion_1"]()
    return pipe, list(
        tdq.trajectories(pipe, ["a cat"], steps=2, height=8, width=8, progress=False)
    )


def in_states(unet, calls, recipe, folder):
    """``"live"``, ``"frozen"`` and ``"codes"``, loaded from a folder -> UNet of a recipe."""
    live = tdq.quantize(copy.deepcopy(unet), recipe)
    if recipe.scale != "dynamic":
        tdq.calibrate(live, calls, estimator="minmax", progress=False)
    frozen = tdq.freeze(live)
    frozen.save_pretrained(folder)
    loaded = UNet2DConditionModel.from_pretrained(folder)
    return {"live": live.eval(), "frozen": frozen, "codes": loaded}


def out(model, call, **changes):
    """The prediction of a UNet for a recorded call with other arguments."""
    with torch.no_grad():
        return model(**{**call, "return_dict": True, **changes}).sample
