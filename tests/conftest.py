import copy
import gc
import os

import pytest
import torch

import tdquant as tdq
from tests.denoisers import Mixed, calls

THREADS = int(os.environ.get("OMP_NUM_THREADS", 2))
torch.set_num_threads(THREADS)

gc.disable()  # while everything is imported; see below


def pytest_collection_finish():
    """Keeps the garbage collector from walking the imported modules again and again: that is a
    sixth of the time of all tests.
    """
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


_QUANTIZED = {}


def quantized(weights=8, activations=8, scale="temporal", calibrated=True, edges=8, **recipe):
    """A quantized Mixed model; each recipe is calibrated once, and callers get copies."""
    recipe.setdefault("remedies", ())  # scales alone: remedies have tests of their own
    recipe |= {"weights": weights, "activations": activations, "scale": scale, "edges": edges}
    key = repr((sorted(recipe.items()), calibrated))
    if key not in _QUANTIZED:
        model = tdq.quantize(Mixed().eval(), tdq.Recipe(**recipe))
        if calibrated:
            tdq.calibrate(model, calls(), progress=False)
        _QUANTIZED[key] = model
    torch.manual_seed(0)  # as building the model does
    return copy.deepcopy(_QUANTIZED[key])


@pytest.fixture
def calibrated():
    """A Mixed model at W4A6 with temporal scales, calibrated; a copy of its own for each test."""
    return quantized(weights=4, activations=6)


@pytest.fixture
def frozen(calibrated):
    return tdq.freeze(calibrated)


@pytest.fixture
def x():
    return torch.randn(3, 6, 8, 8, generator=torch.Generator().manual_seed(5))
