"""The benchmark of the GPU in its emulated form."""

import re
import runpy
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_kernel_runs_and_is_exact(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--emulate", "--rounds", "1"])
    runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")
    shown = capsys.readouterr().out
    kernels = re.findall(r"'([\w ]+)': {'layers': (\d+), 'error': ([\d.e-]+)}", shown)
    assert {name for name, _, _ in kernels} == {"int8", "fp8", "float32 codes"}
    assert all(int(layers) > 10 and float(error) < 1e-6 for _, layers, error in kernels)
    for model in ("tiny UNet", "tiny DiT"):
        for run in ("bf16", "W8A8", "W4A4"):
            assert f"| {model} | 1 | {run} |" in shown
