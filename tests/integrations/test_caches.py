"""Caches of diffusers: they run on quantized models as on float ones, and verbs that copy a model,
or have to see all of its calls, refuse them.
"""

import copy

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
)
from diffusers.hooks import MagCacheConfig, TaylorSeerCacheConfig

import tdquant as tdq
from tdquant.errors import ConversionError
from tests.pipelines import PIPELINES, sample

STEPS = 6
CACHES = {
    "first block": "flux",
    "magnitudes": "flux",
    "taylor": "flux",
    "broadcast": "flux",
    "faster": "cogvideox",  # which doubles the batch for guidance; this cache halves it again
}
"""Pipeline that each cache is tried on."""


@pytest.fixture(scope="module", params=dict.fromkeys(CACHES.values()))
def made(request, tmp_path_factory):
    """A pipeline, its transformer in every state, a call, and the caches that it is for."""
    pipe, call = PIPELINES[request.param]()
    models = {"float": pipe.transformer}
    recipe = tdq.Recipe(8, 8, scale="dynamic")
    models["live"] = tdq.quantize(copy.deepcopy(pipe.transformer), recipe)
    frozen = tdq.freeze(models["live"])
    models["reference"] = tdq.compile(frozen, "reference")
    folder = tmp_path_factory.mktemp("caches")
    frozen.save_pretrained(folder)
    models["codes"] = type(frozen).from_pretrained(folder)
    names = [name for name, pipeline in CACHES.items() if pipeline == request.param]
    return pipe, models, {**call, "num_inference_steps": STEPS}, names


def configuration(name, pipe):
    def now():
        return pipe._current_timestep

    everywhere = (-1, 1001)
    return {
        "first block": lambda: FirstBlockCacheConfig(threshold=10.0),
        "magnitudes": lambda: MagCacheConfig(
            mag_ratios=[1.0] * STEPS, num_inference_steps=STEPS, threshold=1.0
        ),
        "taylor": lambda: TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1),
        "broadcast": lambda: PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=everywhere,
            current_timestep_callback=now,
        ),
        "faster": lambda: FasterCacheConfig(
            spatial_attention_timestep_skip_range=everywhere,
            unconditional_batch_skip_range=2,
            unconditional_batch_timestep_skip_range=everywhere,
            current_timestep_callback=now,
            attention_weight_callback=lambda _: 0.3,
            tensor_format="BFCHW",
        ),
    }[name]()


def cached(made, name, state):
    pipe, models, *_ = made
    model = copy.deepcopy(models[state])
    model.enable_cache(configuration(name, pipe))
    return model


def pictures(made, model):
    pipe, _, call, _ = made
    pipe.transformer = model
    return sample(pipe, call)


@pytest.mark.parametrize("state", ["live", "codes", "reference"])
def test_a_cache_does_what_it_does_in_float(made, state):
    _, models, _, names = made
    plain, exact = pictures(made, models[state]), pictures(made, models["float"])
    for name in names:
        model = cached(made, name, state)
        change = pictures(made, cached(made, name, "float")) - exact
        assert change.norm() > 0
        assert (pictures(made, model) - plain - change).norm() < 0.5 * change.norm()
        model.disable_cache()
        assert torch.equal(pictures(made, model), plain)


def test_verbs_refuse_a_cache_and_work_without(made):
    _, models, _, names = made
    for name in names:
        net, live, codes = (cached(made, name, state) for state in ("float", "live", "codes"))
        for verb in (
            lambda net=net: tdq.quantize(net, tdq.Recipe()),
            lambda live=live: tdq.calibrate(live, [], progress=False),
            lambda live=live: tdq.freeze(live),
            lambda codes=codes: tdq.compile(codes, "reference"),
            lambda codes=codes: tdq.export(codes, "model.xml", {}),
        ):
            with pytest.raises(ConversionError, match="disable_cache"):
                verb()
        live.disable_cache()
        assert torch.equal(pictures(made, tdq.freeze(live)), pictures(made, models["codes"]))


def test_a_model_with_a_cache_is_saved_without(made, tmp_path):
    model = cached(made, made[3][-1], "codes")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert not again.is_cache_enabled
    assert torch.equal(pictures(made, again), pictures(made, made[1]["codes"]))
