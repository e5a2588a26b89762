"""What writing an OpenVINO file takes, and what is in it."""

import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.lowering.exporters import write_graph
from tdquant.lowering.openvino.graph import _largest_weight, content, pack_int4
from tdquant.quantizers.groups import Groups
from tdquant.support.memory import trim_heap
from tests.lowering.models import One, frozen

ov = pytest.importorskip("openvino")

PEAK = Path("/proc/self/clear_refs")


def resident(which):
    """``VmRSS`` or ``VmHWM`` of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{which}:\s+(\d+)", status)[1])


def measured(folder):
    """For writing a graph and for ``export``, which also runs it: the peak of memory and what
    stays, as parts of the weights in float.
    """
    model = frozen(One(nn.Sequential(*[nn.Linear(2048, 2048) for _ in range(8)])), 8)
    size = sum(p.nbytes for p in model.parameters())
    x = torch.randn(2, 2048)
    tdq.export(frozen(One(nn.Linear(8, 8)), 8), folder / "warm.xml", (x[:, :8], 3))
    trim_heap()
    before = resident("VmRSS")
    found = []
    for write in (write_graph, tdq.export):
        PEAK.write_text("5")
        write(model, folder / "model.xml", (x, 3))
        found.append([(resident(which) - before) / size for which in ("VmHWM", "VmRSS")])
    return found


@pytest.mark.skipif(not PEAK.exists(), reason="needs Linux's peak of resident memory")
def test_export_never_holds_all_weights_in_float(tmp_path):
    # A process of its own: what other tests have left on the heap would be used first.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (peak, left), (peak_run, left_run) = pool.apply(measured, (tmp_path,))
    # Codes are 0.25; an engine packs them. Two layers in float, more or less, depend on when
    # OpenVINO's threads give back what they hold.
    assert max(peak, peak_run) < 0.85
    assert max(left, left_run) < 0.15


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 4)])
def test_four_bits_hold_all_codes(shape):
    op = ov.opset13
    codes = np.resize(np.arange(-8, 8, dtype=np.int8), shape)
    x = op.parameter([1], np.float32)
    graph = ov.Model([op.multiply(op.convert(op.constant(codes), np.float32), x)], [x])
    pack_int4(graph, {})
    types = {n.get_element_type() for n in graph.get_ops() if n.get_type_name() == "Constant"}
    assert types == {ov.Type.i4}
    run = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert (run([np.ones(1, np.float32)])[0] == codes).all()


@pytest.mark.parametrize(("high", "most"), [(1, 32), (3, 32), (7, 16)])
@pytest.mark.parametrize("columns", [64, 40])
def test_four_bits_and_multipliers_are_the_codes(high, most, columns):
    op, generator = ov.opset13, torch.Generator().manual_seed(0)
    m = torch.randint(1, most + 1, (6, -(-columns // 16)), generator=generator, dtype=torch.uint8)
    groups = Groups(m, 16)
    codes = torch.randint(-high, high + 1, (6, columns), generator=generator, dtype=torch.int8)
    codes = (codes * groups.spread(codes)).to(torch.int8)
    x = op.parameter([4, columns], np.float32)
    step = op.constant(np.full((6, 1), 0.5, np.float32))
    weight = op.multiply(op.convert(op.constant(codes.numpy()), np.float32), step)
    ends = [op.constant(np.float32(end)) for end in (-128, 127, -128, 127)]
    product = op.matmul(op.fake_quantize(op.round(x), *ends, 256), weight, False, True)
    graph = ov.Model([product], [x])
    pack_int4(graph, {content(codes): groups})
    four = {n.get_element_type() for n in graph.get_ops() if n.get_type_name() == "Constant"}
    assert (ov.Type.i4 in four) == (columns % 16 == 0)  # the rest of a row stays int8
    assert int(codes.abs().max()) <= _largest_weight(product.input_value(1)) <= most * (high + 4)
    run = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    values = torch.randint(-128, 128, (4, columns), generator=generator).float()
    found = torch.from_numpy(run([values.numpy()])[0])
    assert torch.equal(found, values @ codes.float().T * 0.5)
    # As integers: the multipliers are no operation of the compiled graph.
    kinds = {n.get_rt_info()["layerType"].astype(str) for n in run.get_runtime_model().get_ops()}
    assert not kinds & {"Eltwise", "Gather"}
