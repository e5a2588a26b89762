"""Every family's names through one contract, on the real classes where diffusers has them."""

import pytest
from torch import nn

from tdquant.clock import TIMESTEP_NAMES, find_timestep
from tdquant.families import FAMILIES, GENERIC, family_of

diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize("family", [*FAMILIES, GENERIC], ids=lambda f: f.name)
def test_names_are_patterns(family):
    assert family.first
    assert family.last
    assert family.time_path
    assert all(isinstance(p, str) and p for p in family.first + family.last + family.time_path)


def test_no_class_is_in_two_families():
    names = [name for family in FAMILIES for name in family.classes]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "name", [c for family in FAMILIES for c in family.classes if hasattr(diffusers, c)]
)
def test_the_timestep_of_every_listed_class_is_found(name):
    cls = getattr(diffusers, name)

    class Shell(nn.Module):
        forward = cls.forward

    argument, _ = find_timestep(Shell())
    assert argument in TIMESTEP_NAMES


def test_subclasses_belong_to_the_family_and_others_are_generic():
    class Mine(diffusers.UNet2DModel):
        pass

    assert family_of(Mine.__new__(Mine)).name == "diffusers-unet"
    assert family_of(nn.Linear(1, 1)) is GENERIC
