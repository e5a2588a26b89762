import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_imports_go_down_the_floors():
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("import-linter is not installed")
    result = subprocess.run([program, "--no-logo"], cwd=ROOT, capture_output=True, text=True)
    result_text = result.stdout + result.stderr
    assert result.returncode == 0, result_text


def test_the_core_needs_no_extra():
    """`import tdquant` must work with torch, numpy and safetensors alone."""
    code = (
        "import sys\n"
        "for name in ('diffusers', 'accelerate', 'robohash', 'PIL', 'torchmetrics',\n"
        "             'matplotlib', 'tqdm', 'efficientnet_lite_pytorch', 'openvino', 'onnx',\n"
        "             'onnxruntime', 'onnxscript'):\n"
        "    sys.modules[name] = None  # importing it fails\n"
        "import torch, tdquant as tdq\n"
        "class M(torch.nn.Module):\n"
        "    def __init__(s):\n"
        "        super().__init__()\n"
        "        s.a, s.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)\n"
        "    def forward(s, x, t): return s.b(s.a(x))\n"
        "m = tdq.quantize(M(), tdq.Recipe(weights=4, edges=8))\n"
        "tdq.calibrate(m, [(torch.randn(8, 4), torch.tensor(t)) for t in range(0, 1000, 99)])\n"
        "tdq.compile(tdq.freeze(m))(torch.randn(2, 4), 3)\n"
        "try: tdq.models.load_embedded()\n"
        "except tdq.errors.MissingDependencyError as e: print(e)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 'pip install "tdquant[diffusers]"' in result.stdout
