import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

from tdquant.errors import ModelError
from tdquant.models import build, load_embedded
from tdquant.models.build import description, from_description, without_weights
from tdquant.models.embedded import TINY
from tdquant.models.pixel_unet import PixelUNet
from tests.denoisers import Mixed


def test_layers_have_no_weights_and_buffers_are_real():
    spec = description(PixelUNet(**TINY))
    model = without_weights(spec)
    assert all(p.is_meta for n, p in model.named_parameters() if n.endswith("weight"))
    want = dict(from_description(spec).named_buffers())
    assert all(torch.equal(b, want[n]) for n, b in model.named_buffers())


def test_what_computes_with_allocated_memory_is_built_as_it_is(monkeypatch):
    class Filled(Mixed):
        def __init__(self, **_):
            super().__init__()
            self.register_buffer("mask", torch.empty(3, 3).fill_(2.0).triu_())

    monkeypatch.setitem(build.OWN, "Filled", Filled)
    model = without_weights({"source": "tdquant", "class": "Filled", "config": {}})
    assert torch.equal(model.mask, torch.full((3, 3), 2.0).triu())


def test_other_threads_build_and_draw_as_if_nobody_did(monkeypatch):
    inside, built = threading.Event(), threading.Event()
    spec = description(PixelUNet(**TINY))

    class Slow(PixelUNet):
        def __init__(self, **config):
            inside.set()
            assert built.wait(30)
            super().__init__(**config)

    monkeypatch.setitem(build.OWN, "PixelUNet", Slow)
    thread = threading.Thread(target=without_weights, args=(spec,))
    torch.manual_seed(3)
    want = nn.Linear(5, 5)
    torch.manual_seed(3)
    register = nn.Module.__dict__["register_parameter"]
    thread.start()
    assert inside.wait(30)
    try:
        found = nn.Linear(5, 5)
        assert nn.Module.__dict__["register_parameter"] is register
    finally:
        built.set()
        thread.join()
    assert torch.equal(found.weight, want.weight)
    assert torch.equal(found.bias, want.bias)


def test_no_global_generator_is_used():
    spec = description(PixelUNet(**TINY))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    without_weights(spec)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


@pytest.mark.parametrize("change", [{"sample_size": []}, {"down_block_types": [["x"]]}, {"x": {}}])
def test_a_damaged_configuration_is_named(change):
    spec = description(load_embedded("tiny").unet)
    config = spec["config"] | {"unet": spec["config"]["unet"] | change}
    with pytest.raises(ModelError, match="cannot be built from its configuration"):
        from_description(spec | {"config": config | change})
