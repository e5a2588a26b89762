"""What is no denoiser is named, with what to give instead."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import ConversionError
from tests.denoisers import Mixed

NO_MODELS = {
    "a pipeline": (SimpleNamespace(unet=Mixed()), r"its denoiser: pipe\.unet"),
    "nothing": (None, "the denoiser itself"),
    "a class": (Mixed, r"an instance: Mixed\(\.\.\.\)"),
    "data parallel": (nn.DataParallel(Mixed()), r"model\.module"),
    "compiled": (torch.compile(Mixed()), r"model\._orig_mod"),
    "lazy": (nn.Sequential(nn.LazyLinear(3)), "call the float model once"),
}


@pytest.mark.parametrize("name", NO_MODELS)
def test_no_denoiser(name):
    model, fix = NO_MODELS[name]
    with pytest.raises(ConversionError, match=fix):
        tdq.quantize(model, tdq.Recipe())
    with pytest.raises(ConversionError, match=fix):
        tdq.freeze(model)


def test_no_denoiser_to_load_into(frozen, tmp_path):
    tdq.save(frozen, tmp_path)
    with pytest.raises(ConversionError, match="the denoiser itself"):
        tdq.load(tmp_path, model="a path")
