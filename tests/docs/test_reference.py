"""The reference lists every public name, and the navigation every page."""

import importlib
import re
import types

import pytest

import tdquant as tdq
from tests.docs.programs import DOCS

PACKAGES = (
    "tdquant", "tdquant.calibration", "tdquant.calls", "tdquant.diffusion", "tdquant.families",
    "tdquant.files.checkpoints", "tdquant.files.config", "tdquant.lab.bench", "tdquant.lab.data",
    "tdquant.lab.demo", "tdquant.lab.evaluation", "tdquant.lab.metrics", "tdquant.lab.report",
    "tdquant.lab.runs", "tdquant.layers", "tdquant.lowering", "tdquant.models",
    "tdquant.quantizers", "tdquant.refine.reconstruction", "tdquant.refine.search",
    "tdquant.scales", "tdquant.storage", "tdquant.training",
)  # fmt: skip
TEXT = (DOCS / "reference.md").read_text()
LISTED = re.findall(r"^::: (\S+)$", TEXT, re.M)
REGISTRIES = dict(re.findall(r"^\| `(tdquant\.\S+)` \| (.*) \|$", TEXT, re.M))


def resolved(path):
    """What a dotted path names: a module, or something in one."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{path} names nothing")


def members(package):
    """Public functions and classes of a package."""
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, type) or callable(value):
            yield name, value


def test_nothing_is_listed_twice_and_everything_exists():
    assert len(set(LISTED)) == len(LISTED)
    assert all(resolved(path) is not None for path in LISTED)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_listed(package):
    listed = [resolved(path) for path in LISTED]
    modules = {found.__name__ for found in listed if isinstance(found, types.ModuleType)}
    lacking = [
        name
        for name, value in members(package)
        if not any(value is found for found in listed)
        and value.__module__ not in modules
        and not isinstance(value, types.ModuleType)
    ]
    assert not lacking


def test_public_modules_are_packages_of_the_reference():
    found = {v.__name__ for n in tdq.__all__ if isinstance(v := getattr(tdq, n), types.ModuleType)}
    assert found <= {*PACKAGES, *LISTED}


@pytest.mark.parametrize("path", REGISTRIES)
def test_every_entry_of_a_registry_is_listed(path):
    registry = resolved(path)
    told = re.findall(r"`([^`]+)`", REGISTRIES[path])
    if path.endswith("FAMILIES"):
        text = (DOCS / "families.md").read_text()
        assert not told
        assert "tdquant.families" in TEXT
        assert sum(f"| {family.name} |" in text for family in registry) > len(registry) // 2
        return
    names = [key.__name__ if isinstance(key, type) else key for key in registry]
    assert sorted(told) == sorted(names)


def test_every_page_is_in_the_navigation():
    pages = re.findall(r"^\s*- .*: (\S+\.md)$", (DOCS.parent / "mkdocs.yml").read_text(), re.M)
    assert sorted(pages) == sorted(page.name for page in DOCS.glob("*.md"))


def test_every_page_can_be_reached_from_the_landing_page():
    linked = set(re.findall(r"\]\((\S+?\.md)", (DOCS / "index.md").read_text()))
    assert {page.name for page in DOCS.glob("*.md")} - linked <= {"index.md", "model-card.md"}
