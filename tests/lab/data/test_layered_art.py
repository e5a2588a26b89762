"""Pictures composed from layers: numbering, drawing, splits."""

import numpy as np
import pytest
import torch

from tdquant.errors import DataError
from tdquant.lab.data.cats import ART as CATS
from tdquant.lab.data.layered_art import LayeredArt
from tdquant.lab.data.robots import ART as ROBOTS
from tdquant.lab.data.robots import COLOURS


def keys(images):
    return {i.numpy().tobytes() for i in images}


def test_combinations_of_the_art():
    assert CATS.combinations() == 360_000
    assert ROBOTS.combinations() == 1_000_000


@pytest.mark.parametrize("art", [CATS, ROBOTS], ids=lambda art: art.name)
def test_splits_are_disjoint_distinct_and_fixed(art):
    train, heldout = (art.split(split, 500, 16) for split in ("train", "heldout"))
    assert len(keys(train)) == len(keys(heldout)) == 500
    assert not keys(train) & keys(heldout)
    assert torch.equal(train, art.split("train", 500, 16))
    assert torch.equal(train[:100], art.split("train", 100, 16))


@pytest.mark.parametrize("art", [CATS, ROBOTS], ids=lambda art: art.name)
def test_layers_go_over_each_other_on_white(art):
    pictures = art.render(np.arange(0, art.combinations(), art.combinations() // 9 + 1), 16)
    assert pictures.dtype == np.uint8
    assert (pictures[:, :, 0, 0] == 255).all()  # corners are background
    assert len({p.tobytes() for p in pictures}) == len(pictures)


def test_a_robot_has_one_colour_of_paint():
    """Combinations of a palette are numbered together, and drawn alike among others."""
    each = np.arange(len(COLOURS)) * 100_000
    pictures = ROBOTS.render(each, 16)
    inside = (pictures < 250).any(axis=1)
    means = {
        colour: [picture[c][mask].mean() for c in range(3)]
        for colour, picture, mask in zip(COLOURS, pictures, inside, strict=True)
    }
    assert np.argmax(means["red"]) == 0
    assert np.argmax(means["green"]) == 1
    assert np.argmax(means["blue"]) == 2
    assert (ROBOTS.render(each[3:4], 16) == pictures[3]).all()


@pytest.mark.parametrize("options", [("test", 1, 8), ("train", 0, 8), ("train", 1, 0)])
def test_wrong_options(options):
    with pytest.raises(DataError):
        CATS.split(*options)


def test_more_than_there_are():
    with pytest.raises(DataError, match="distinct cats"):
        CATS.split("heldout", 20_001, 16)


def test_art_that_is_not_there():
    with pytest.raises(DataError, match="carries no set99"):
        LayeredArt("ghosts", ("set99",)).combinations()
