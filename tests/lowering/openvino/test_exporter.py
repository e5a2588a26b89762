"""What writing an OpenVINO file takes, and what is in it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.lowering.exporters import write_graph
from tdquant.lowering.openvino.graph import pack_int4
from tdquant.support.memory import trim_heap
from tests.lowering.models import One, frozen

ov = pytest.importorskip("openvino")

PEAK = Path("/proc/self/clear_refs")


def resident(which):
    """``VmRSS`` or ``VmHWM`` of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{which}:\s+(\d+)", status)[1])


@pytest.mark.skipif(not PEAK.exists(), reason="needs Linux's peak of resident memory")
def test_export_never_holds_all_weights_in_float(tmp_path):
    model = frozen(One(nn.Sequential(*[nn.Linear(2048, 2048) for _ in range(8)])), 8)
    size = sum(p.nbytes for p in model.parameters())
    x = torch.randn(2, 2048)
    tdq.export(frozen(One(nn.Linear(8, 8)), 8), tmp_path / "warm.xml", (x[:, :8], 3))
    trim_heap()
    before = resident("VmRSS")
    # Codes are 0.25. ``export`` also runs the file, whose engine packs them.
    for write, most in ((write_graph, 0.6), (tdq.export, 0.75)):
        PEAK.write_text("5")
        write(model, tmp_path / "model.xml", (x, 3))
        assert resident("VmHWM") - before < most * size
        assert resident("VmRSS") - before < 0.15 * size


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 4)])
def test_four_bits_hold_all_codes(shape):
    op = ov.opset13
    codes = np.resize(np.arange(-8, 8, dtype=np.int8), shape)
    x = op.parameter([1], np.float32)
    graph = ov.Model([op.multiply(op.convert(op.constant(codes), np.float32), x)], [x])
    pack_int4(graph)
    types = {n.get_element_type() for n in graph.get_ops() if n.get_type_name() == "Constant"}
    assert types == {ov.Type.i4}
    run = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert (run([np.ones(1, np.float32)])[0] == codes).all()
