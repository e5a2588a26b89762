"""Cats and robots as data sets."""

import pytest
import torch

from tdquant.lab.data.cats import Cats
from tdquant.lab.data.robots import Robots


@pytest.mark.parametrize("kind", [Cats, Robots])
def test_items_are_float_images(kind):
    found = kind("heldout", 10, size=16)
    assert len(found) == 10
    assert found[3].shape == (3, 16, 16)
    assert found[3].dtype == torch.float32
    assert found[3].min() >= -1
    assert found[3].max() <= 1
    assert torch.stack([found[i] for i in range(10)]).std() > 0.2
