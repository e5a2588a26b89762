"""What ``import tdquant`` gives, and what it costs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tdquant as tdq

ROOT = Path(__file__).parents[1]
CORE = [
    path.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", ".")
    for path in (ROOT / "src" / "tdquant").rglob("*.py")
    if not {"lab", "cli", "__main__.py"} & {*path.parts}
]


def python(code):
    """What a fresh Python prints."""
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("name", tdq.__all__)
def test_every_public_name_is_there(name):
    value = getattr(tdq, name)
    assert value is getattr(tdq, name)
    assert name in dir(tdq)


def test_there_are_few_enough_to_know():
    assert len(tdq.__all__) <= 40


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="quantise"):
        tdq.quantise  # noqa: B018


def test_importing_the_package_loads_nothing_else():
    heavy = "torch", "numpy", "pydantic"
    code = f"import sys, tdquant; print([m for m in {heavy} if m in sys.modules])"
    assert python(code).strip() == "[]"


def test_the_core_never_imports_the_lab():
    names = [name.removesuffix(".__init__") for name in CORE]
    code = (
        "import importlib, sys, diffusers, peft\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print([m for m in sys.modules if m.startswith('tdquant.lab')])"
    )
    assert python(code).strip() == "[]"


def test_no_submodule_has_the_name_of_a_public_function():
    """Importing such a module would put it in the place of the function."""
    folder = ROOT / "src" / "tdquant"
    inside = {p.stem if p.suffix else p.name for p in folder.iterdir()}
    public = {n for n in tdq.__all__ if callable(getattr(tdq, n))}
    assert not inside & public


def test_every_public_name_has_an_example_that_is_run():
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    found = re.findall(
        r"^```python\n(.*?)^```", "".join(p.read_text() for p in pages), re.M | re.S
    )
    found += [p.read_text() for p in (ROOT / "examples").glob("*.py")]
    text = "\n".join(found)
    assert not [name for name in tdq.__all__ if not re.search(rf"\btdq\.{name}\b", text)]


def test_modules_of_the_lab_are_found_in_a_fresh_process():
    code = "import tdquant as tdq; print(tdq.metrics.mse, tdq.data.Cats)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
