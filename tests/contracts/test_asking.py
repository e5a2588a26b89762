"""Layers that stand for others say of themselves what models ask: frozen ones that hold codes,
those of the reference, and those of graphs that are traced.
"""

import pytest
import torch

import tdquant as tdq
from tests.denoisers import Asking, calls

T = torch.tensor([3, 250])


@pytest.fixture(params=[8, 12])
def asking(request):
    """Frozen; 12 bits are codes of 16."""
    recipe = tdq.Recipe(request.param, 8, scale="table", time_weights=request.param)
    model = tdq.quantize(Asking().eval(), recipe)
    tdq.calibrate(model, calls(), progress=False)
    return tdq.freeze(model)


@torch.no_grad()
def test_layers_that_hold_codes(asking, tmp_path, x):
    compact = tdq.load(tdq.save(asking, tmp_path / "m"), model=Asking(seed=5), compact=True)
    assert not compact.inner.codes.is_floating_point()
    assert "weight" not in dict(compact.inner.named_parameters())
    assert torch.equal(compact.inner.weight, asking.inner.weight)
    assert torch.equal(compact(x[:2], T), asking(x[:2], T))


@torch.no_grad()
def test_they_follow_a_cast(asking, tmp_path, x):
    compact = tdq.load(tdq.save(asking, tmp_path / "m"), model=Asking(seed=5), compact=True)
    codes = compact.inner.codes.clone()
    half, dense = compact.bfloat16(), asking.bfloat16()
    assert half.inner.weight.dtype == next(half.inner.parameters()).dtype == torch.bfloat16
    assert torch.equal(half.inner.codes, codes)
    assert half.inner.weight_quantizer.step.dtype == torch.float32
    assert torch.equal(half(x[:2].bfloat16(), T), dense(x[:2].bfloat16(), T))


@torch.no_grad()
@pytest.mark.parametrize("compact", [False, True])
def test_layers_of_the_reference(asking, compact, tmp_path, x):
    model = tdq.load(tdq.save(asking, tmp_path / "m"), model=Asking(), compact=compact)
    exact = tdq.compile(model, "reference")
    assert exact.time.in_features == 8
    assert torch.equal(exact.inner.weight, asking.inner.weight)
    assert sum(p.numel() for p in exact.parameters()) == sum(
        p.numel() for p in asking.parameters()
    )
    assert torch.allclose(exact(x[1:], T), asking(x[1:], T), atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
def test_layers_of_a_graph(asking, suffix, tmp_path, x):
    pytest.importorskip("openvino" if suffix == ".xml" else "onnxruntime")
    file = tdq.export(asking, tmp_path / f"m{suffix}", (x[:2], T))
    error = (tdq.open_session(file)(x[:2], T) - asking(x[:2], T)).abs()
    assert error.median() < 1e-5
    assert error.max() < 0.05
