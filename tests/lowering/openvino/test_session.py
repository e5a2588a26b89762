import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import BackendError
from tdquant.lowering.exporters import about, prepared
from tdquant.lowering.openvino.exporter import convert
from tdquant.lowering.openvino.graph import avoid_saturation
from tdquant.lowering.openvino.passes import decompose_norms
from tdquant.lowering.openvino.session import KEPT
from tdquant.numerics.grid import Grid
from tests.lowering.models import LAYERS, All, One, frozen

F32 = {"INFERENCE_PRECISION_HINT": "f32"}
"""With AMX, OpenVINO computes in bfloat16 unless it is told."""


def kernels(session):
    """Primitive of each product in the compiled graph."""
    (compiled,) = session.engine._compiled.values()
    infos = [node.get_rt_info() for node in compiled.rest.model.get_runtime_model().get_ops()]
    return [
        info["primitiveType"].astype(str)
        for info in infos
        if info["layerType"].astype(str) in ("Convolution", "FullyConnected", "MatMul")
    ]


def opened(model, x, folder, **options):
    session = tdq.open_session(tdq.export(model, folder / "m.xml", (x, 3), **options))
    session(x, 3)
    return session


@pytest.mark.parametrize("bits", [2, 5, 7])
def test_every_width_runs_on_integer_kernels(bits, tmp_path):
    """Layers that do nothing but their product: the compiled graph multiplies int8 alone."""
    layers = {k: LAYERS[k] for k in ("1x1", "3x3", "strided", "linear", "conv1d")}
    model = frozen(All(layers), bits, Grid.affine(8, 100))
    session = opened(model, torch.randn(1, 6, 8, 8), tmp_path)
    assert len(kernels(session)) == len(layers)
    assert all(kernel.lower().endswith("i8") for kernel in kernels(session)), kernels(session)
    assert {row.kernel for row in session.rows} == {"int8"}


@pytest.mark.parametrize("codes", [3, 100, 256])
def test_every_number_of_codes_runs_on_integer_kernels(codes, tmp_path):
    """OpenVINO itself knows a few numbers of levels only."""
    model = frozen(One(nn.Conv2d(8, 8, 3)), 4, Grid(8, 0, codes - 1, codes // 3))
    x = torch.randn(1, 8, 8, 8)
    session = opened(model, x, tmp_path)
    assert [kernel.lower()[-2:] for kernel in kernels(session)] == ["i8"]
    assert torch.allclose(session(x, 3), model(x, 3), rtol=1e-4, atol=1e-4)


@pytest.fixture
def without_vnni(monkeypatch):
    monkeypatch.setattr("tdquant.support.machine.instructions", lambda: frozenset({"avx2"}))


def test_a_portable_file_has_no_layer_that_could_saturate(tmp_path):
    x = torch.randn(1, 8, 8, 8)
    wide = frozen(One(nn.Conv2d(8, 8, 3)), 8, Grid.affine(8, 100))
    session = opened(wide, x, tmp_path, portable=True)
    (row,) = session.rows
    assert row.kernel == "float"
    assert "VNNI" in row.note
    assert not any(kernel.lower().endswith("i8") for kernel in kernels(session))
    assert torch.allclose(session(x, 3), wide(x, 3), rtol=1e-4, atol=1e-4)
    narrow = frozen(One(nn.Conv2d(8, 8, 3)), 7, Grid.affine(8, 100))
    (row,) = opened(narrow, x, tmp_path, portable=True).rows
    assert row.kernel == "int8"


@pytest.mark.parametrize(("padding", "bits", "group"), [(0, 8, 0), (1, 8, 0), (1, 4, 24)])
def test_a_session_adapts_a_file_to_a_machine_that_saturates(
    padding, bits, group, tmp_path, request
):
    conv = nn.Conv2d(8, 8, 3, padding=padding)
    model = frozen(One(conv), bits, Grid.signed(8), group=group)
    x = torch.randn(1, 8, 8, 8)
    (row,) = opened(model, x, tmp_path).rows
    assert row.kernel == "int8"
    request.getfixturevalue("without_vnni")
    with pytest.warns(UserWarning, match="1 layers of .* run in float here"):
        session = tdq.open_session(tmp_path / "m.xml")
    assert torch.allclose(session(x, 3), model(x, 3), rtol=1e-4, atol=1e-4)
    assert [kernel.lower()[-2:] for kernel in kernels(session)] != ["i8"]
    (row,) = session.rows
    assert (row.kernel, "VNNI" in row.note) == ("float", True)


def test_products_that_cannot_saturate_stay(without_vnni):
    for bits, grid in ((7, Grid.signed(8)), (8, Grid.signed(7)), (4, Grid.affine(8, 3))):
        model = frozen(One(nn.Conv2d(8, 8, 3)), bits, grid)
        copied, call = prepared(model, (torch.randn(2, 8, 8, 8), 3))
        assert avoid_saturation(convert(copied, call, about(copied))) == []


class ScaleShift(nn.Module):
    """A norm that is scaled and shifted by channel, with numbers that come from the input."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.GroupNorm(3, 6)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x, t):
        scale, shift = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return self.norm(self.conv(x)) * (1 + scale) + shift


def test_scale_shift_norms_run_in_openvino(tmp_path):
    """OpenVINO's own GroupNormalization kills the process here."""
    import openvino as ov

    torch.manual_seed(0)
    model = frozen(ScaleShift(), 8, Grid.affine(8, 100))
    x = torch.randn(2, 6, 9, 7)
    session = opened(model, x, tmp_path)
    assert torch.allclose(session(x, 3), model(x, 3), rtol=1e-4, atol=1e-4)
    bare = ov.Core().compile_model(tmp_path / "m.xml", "CPU", F32)
    (y,) = bare({"x": x.numpy(), "t": torch.tensor([3.0, 3.0]).numpy()}).values()
    assert torch.allclose(torch.from_numpy(y), model(x, 3), rtol=1e-4, atol=1e-4)


def test_the_file_itself_asks_that_inputs_of_float_layers_are_not_rounded(tmp_path):
    """With VNNI, OpenVINO rounds them by default where the weights have 8 bits."""
    import openvino as ov

    unet = tdq.models.load_embedded("tiny").unet.unet
    model = tdq.freeze(tdq.quantize(unet, tdq.Recipe(scale="dynamic")))
    x = torch.randn(1, 12, 8, 8)
    bare = ov.Core().compile_model(tdq.export(model, tmp_path / "m.xml", (x, 3)), "CPU", F32)
    assert bare.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
    (y,) = bare([x.numpy(), torch.tensor([500.0]).numpy()]).values()
    assert torch.allclose(torch.from_numpy(y), model(x, 500).sample, atol=1e-4)


def test_norms_of_files_from_elsewhere_are_decomposed():
    import openvino as ov

    norm = nn.GroupNorm(2, 4, eps=1e-3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 4, 5, 6)
    graph = ov.convert_model(norm, example_input=x)
    assert "GroupNormalization" in {op.get_type_name() for op in graph.get_ops()}
    graph.reshape([-1, 4, -1, -1])
    decompose_norms(graph)
    assert "GroupNormalization" not in {op.get_type_name() for op in graph.get_ops()}
    (y,) = ov.Core().compile_model(graph, "CPU", F32)(x.numpy()).values()
    assert torch.allclose(torch.from_numpy(y), norm(x), atol=1e-5)


def test_compiled_graphs_are_kept_for_the_latest_shapes(tmp_path):
    model = frozen(One(nn.Conv2d(5, 5, 3)), 4)
    session = opened(model, torch.randn(1, 5, 8, 8), tmp_path)
    for side in (5, 6, 7, 8, 9, 8):
        x = torch.randn(2, 5, side, side)
        assert torch.allclose(session(x, 3), model(x, 3), rtol=1e-4, atol=1e-4)
        assert len(session.engine._compiled) <= KEPT
    sizes = [dict(key)["x"][-1] for key in session.engine._compiled]
    assert sizes == [6, 7, 9, 8]


def test_the_backend_is_made_by_its_first_call(calibrated, x):
    model = tdq.freeze(calibrated)
    fast = tdq.compile(model, "openvino")
    assert fast.session is None
    y = model(x, 3)
    assert (fast(x, 3) - y).abs().median() <= 1e-6 * y.abs().max()
    assert "int8" in {row.kernel for row in tdq.summary(fast)}
    ready = tdq.compile(model, "openvino", example=(x, torch.tensor(3)))
    assert ready.session is not None


@pytest.mark.parametrize("knots", ["indices", "continuous"])
def test_a_file_that_an_engine_runs_in_bfloat16_keeps_its_scales(knots, calibrated, x, tmp_path):
    """OpenVINO's default on processors with AMX or AVX512-BF16: float parts lose digits, and steps
    must not lose their place."""
    import openvino as ov

    times = None if knots == "indices" else torch.linspace(0, 999, 300) + 0.25
    model = tdq.freeze(calibrated, times)
    path = tdq.export(model, tmp_path / "m.xml", (x, torch.tensor(3.0)))
    bare = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    for t in (431.0, 998.0):
        (y,) = bare([x.numpy(), torch.full((len(x),), t).numpy()]).values()
        exact = model(x, torch.tensor(t))
        assert (torch.from_numpy(y) - exact).norm() < 0.1 * exact.norm()


class TwoTimes(nn.Module):
    """A layer behind the distance of two times."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, t, r):
        return self.layer(x * (t - r)[:, None]) + t[:, None]


def test_inputs_stay_as_they_are():
    """OpenVINO subtracts in the memory of its input."""
    model = frozen(TwoTimes())
    session = tdq.compile(model, "openvino")
    for time in (3.0, 4.0):
        given = {"x": torch.ones(2, 8), "t": torch.full((2,), time), "r": torch.ones(2)}
        before = {name: tensor.clone() for name, tensor in given.items()}
        assert torch.allclose(session(**given), model(**given), rtol=1e-4, atol=1e-4)
        assert all(torch.equal(given[name], before[name]) for name in given)


def test_an_engine_that_fails_in_a_later_call_says_so_and_nothing_takes_its_place(frozen_model):
    """Other arithmetic in the middle of sampling would be another picture without a word."""
    model, x = frozen_model, torch.randn(2, 6, 8, 8)
    fast = tdq.compile(model, "auto")
    y = fast(x, 3)
    choice, session = fast.tdq_backend, fast.session
    (compiled,) = session.engine._compiled.values()
    real, compiled.rest = compiled.rest, broken

    with pytest.raises(
        BackendError, match=r"OpenVINO failed while(.|\n)*out of beads(.|\n)*onednn"
    ):
        fast(x, 3)
    assert fast.tdq_backend == choice
    assert fast.session is session
    compiled.rest = real
    assert torch.equal(fast(x, 3), y)


def broken(inputs):
    raise RuntimeError("Exception from bead.cpp:7:\nout of beads")


@pytest.fixture
def frozen_model():
    return frozen(One(nn.Conv2d(6, 6, 3, padding=1)), 4)
