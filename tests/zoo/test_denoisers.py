"""What the results say of denoiser classes of diffusers holds: of a few by default, of all in the
slow run. ``scripts/denoisers.py`` writes the results.
"""

import json
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from tests.zoo import CASES
from tests.zoo.proof import prove, works

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "denoisers.json"
WORKING = [record["case"] for record in json.loads(RESULTS.read_text())["cases"] if works(record)]
FEW = ("QwenImageTransformer2DModel", "ZImageTransformer2DModel")


@pytest.mark.parametrize(
    "name", [c if c in FEW else pytest.param(c, marks=pytest.mark.slow) for c in WORKING]
)
def test_a_denoiser_works(name, tmp_path):
    record = prove(CASES[name], tmp_path, files=False)
    assert works(record), record["stages"]


def test_named_denoisers_are_among_them():
    assert set(FEW) <= set(WORKING)
