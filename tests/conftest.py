import copy
import os

import pytest
import torch

import tdquant as tdq
from tests.denoisers import Mixed, calls

THREADS = int(os.environ.get("OMP_NUM_THREADS", 2))
torch.set_num_threads(THREADS)


def quantized(weights=8, activations=8, scale="temporal", calibrated=True, edges=8, **recipe):
    recipe.setdefault("remedies", ())  # scales alone: remedies have tests of their own
    model = Mixed().eval()
    tdq.quantize(
        model,
        tdq.Recipe(weights=weights, activations=activations, scale=scale, edges=edges, **recipe),
    )
    if calibrated:
        tdq.calibrate(model, calls(), progress=False)
    return model


@pytest.fixture(scope="session")
def _calibrated():
    return quantized(weights=4, activations=6)


@pytest.fixture
def calibrated(_calibrated):
    """A Mixed model at W4A6 with temporal scales, calibrated; a copy of its own for each test."""
    return copy.deepcopy(_calibrated)


@pytest.fixture
def frozen(calibrated):
    return tdq.freeze(calibrated)


@pytest.fixture
def x():
    return torch.randn(3, 6, 8, 8, generator=torch.Generator().manual_seed(5))
