"""Folders read by an unmodified optimum-intel, in an environment of its own without tdquant."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import tdquant as tdq
from tests.integrations.pipelines.whole import exported
from tests.pipelines import sample
from tests.pipelines.texts import WHOLE

PYTHON = Path(__file__).parents[3] / ".venv-optimum" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-optimum: make optimum"),
]

QUARTER = 0.25 / 255
"""A quarter of a level of pictures in 8 bits."""


@pytest.mark.parametrize("name", WHOLE)
def test_draws_what_our_sessions_draw(name, tmp_path):
    _, call, exact, out = exported(name)
    arguments, pictures = tmp_path / "call.json", tmp_path / "pictures.npy"
    arguments.write_text(json.dumps(call))
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    script = Path(__file__).with_name("optimum_draws.py")
    done = subprocess.run(
        [PYTHON, script, out, arguments, pictures],
        env={**clean, "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("OV")
    found = torch.from_numpy(np.load(pictures))
    expected = sample(tdq.open_pipeline(out), call)
    assert found.shape == expected.shape
    assert (found - expected).abs().mean() <= QUARTER
    assert (expected - exact).abs().max() > 0  # quantized, indeed
