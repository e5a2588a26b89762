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
FOUND = json.loads(RESULTS.read_text())
WORKING = [record["case"] for record in FOUND["cases"] if record["works"]]
FEW = ("QwenImageTransformer2DModel", "ZImageTransformer2DModel")


@pytest.mark.parametrize(
    "name", [c if c in FEW else pytest.param(c, marks=pytest.mark.slow) for c in WORKING]
)
def test_a_denoiser_works(name, tmp_path):
    record = prove(CASES[name], tmp_path, files=False)
    assert works(record), record["stages"]


def test_named_denoisers_are_among_them():
    assert set(FEW) <= set(WORKING)


def test_records_count_every_case_and_what_works():
    assert FOUND["known"] == list(CASES)
    assert {record["case"] for record in FOUND["cases"]} <= set(CASES)
    assert all(record["works"] == works(record) for record in FOUND["cases"])
