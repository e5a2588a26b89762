"""torch-fidelity, to compare with.

It lies beside the environment's packages, in a folder of its own: torchmetrics imports it where it
can, and it imports torchvision, which not every machine can load.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torchmetrics  # noqa: F401  before torch-fidelity can be imported

FOLDER = Path(sys.prefix, "lib", "torch-fidelity")
STAND_INS = {
    "torchvision": {},
    "torchvision.datasets": {
        name: type(name, (), {}) for name in ("CIFAR10", "CIFAR100", "STL10")
    },
    "torchvision.transforms": {},
    "torchvision.transforms.functional": {},
}


@pytest.fixture(scope="module")
def fidelity():
    """``fidelity("metric_kid")`` is that module of torch-fidelity."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        if importlib.util.find_spec("torch_fidelity") is None:
            pytest.skip(f"there is no torch-fidelity in {FOLDER}: make venv")
        if importlib.util.find_spec("torchvision") is None:
            for name, members in STAND_INS.items():
                module = ModuleType(name)
                module.__dict__.update(members)
                patch.setitem(sys.modules, name, module)
                parent, _, child = name.rpartition(".")
                if parent:
                    setattr(sys.modules[parent], child, module)
        yield lambda name: importlib.import_module(f"torch_fidelity.{name}")
        for name in [n for n in sys.modules if n.partition(".")[0] == "torch_fidelity"]:
            del sys.modules[name]
