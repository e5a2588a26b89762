"""Tiny real pipelines of diffusers, one function each, with random weights.

pipe, call = PIPELINES["flux"]()
images = sample(pipe, call)
"""

import inspect

import torch

from tests.pipelines import transformers, unets, videos

PIPELINES = {
    name: make
    for module in (unets, transformers, videos)
    for name, make in vars(module).items()
    if inspect.isfunction(make) and make.__module__ == module.__name__ and name[0] != "_"
}


def sample(pipe, call, **changes):
    """The images, or latents, of one call from fixed noise."""
    pipe.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        out = pipe(**{"output_type": "pt", **call, **changes}, generator=rng, return_dict=False)
    return out[0]


def put(pipe, models):
    """The pipeline with other models in the places of these names."""
    for name, model in models.items():
        setattr(pipe, name, model)
    return pipe
