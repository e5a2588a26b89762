import errno
import json
import math
import os
import re

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import ConversionError, ExportError, FreezeError, StorageError
from tdquant.lowering import EXPORTERS
from tdquant.lowering.session import ENGINES
from tdquant.numerics.batch_axis import BatchAxis
from tdquant.numerics.grid import Grid
from tdquant.quantizers import activation_quantizers
from tests.denoisers import Mixed
from tests.lowering.models import LAYERS, All, One, frozen

TIMES = (torch.tensor(0), torch.tensor([3, 500, 999]), torch.tensor([10.5, 0.25, 998.9]))


def compare(model, session, *args, tolerance=1e-5, **kwargs):
    for t in TIMES:
        y = model(args[0], t, *args[1:], **kwargs)
        error = (session(args[0], t, *args[1:], **kwargs) - y).abs().max()
        assert error <= tolerance * y.abs().max(), (t, float(error), float(y.abs().max()))


def sessions(model, x, folder, suffixes=tuple(EXPORTERS), **options):
    for suffix in suffixes:
        yield tdq.open_session(tdq.export(model, folder / f"m{suffix}", (x, 3), **options))


SLOW_ONNX = [".xml", pytest.param(".onnx", marks=pytest.mark.slow)]
"""torch's own exporter takes seconds for a few layers."""


def check_all(layers, model, session, x):
    for t in TIMES:
        for name, y, found in zip(layers, model(x, t), session(x, t), strict=True):
            error = (found - y).abs().max() / y.abs().max()
            assert error <= 1e-5, (name, t, float(error))


@pytest.mark.parametrize("suffix", SLOW_ONNX)
@pytest.mark.parametrize(
    "bits", [(8, 8), (4, 8), (3, 5), (4, 8, 3), (6, 8, 16)], ids=lambda b: "W{}A{}".format(*b)
)
def test_single_layers_are_exact(suffix, bits, tmp_path):
    """Behind a single layer there is no rounding boundary: every value must fit."""
    weights, activations, *group = bits
    grid = Grid.affine(activations, 2 ** (activations - 2))
    model = frozen(All(LAYERS), weights, grid, group=sum(group))
    x = 3 * torch.randn(3, 6, 8, 8)
    (session,) = sessions(model, x, tmp_path, [suffix])
    check_all(LAYERS, model, session, x)


def test_layers_on_large_images_are_exact(tmp_path):
    """There the zero points stay in OpenVINO's kernels."""
    model = frozen(All(LAYERS), 8, Grid.signed(8))
    x = 3 * torch.randn(3, 6, 19, 18)
    (session,) = sessions(model, x, tmp_path, [".xml"])
    check_all(LAYERS, model, session, x)


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_sums_beyond_32_bits_are_in_float(suffix, tmp_path):
    model = frozen(One(nn.Linear(67_000, 2)), 8, Grid.affine(8, 0))
    with torch.no_grad():
        model.layer.weight.copy_(
            127 * model.layer.weight_quantizer.scale(model.layer.weight).expand(2, -1)
        )
    x = torch.full((3, 67_000), 100.0)
    (session,) = sessions(model, x, tmp_path, [suffix])
    assert [row.kernel for row in session.rows] == ["float"]
    compare(model, session, x, tolerance=1e-3)  # float sums of so many numbers


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_what_is_no_number_stays_none(suffix, tmp_path):
    model = frozen(One(nn.Conv2d(6, 6, 3, padding=1)), 8)
    x = torch.randn(3, 6, 8, 8)
    (session,) = sessions(model, x, tmp_path, [suffix])
    whole = session(x, 3)
    for value in (math.nan, math.inf):
        bad = x.clone()
        bad[1, 2, 3, 4] = value
        y = session(bad, 3)
        assert y[1].isnan().all()
        assert torch.equal(y[[0, 2]], whole[[0, 2]])


@pytest.mark.parametrize("suffix", SLOW_ONNX)
def test_offset_quantizers_are_exact(suffix, tmp_path):
    model = frozen(All(LAYERS), 4, Grid(4, 0, 14), offset=-0.2785)
    x = torch.randn(3, 6, 8, 8)
    (session,) = sessions(model, x, tmp_path, [suffix])
    check_all(LAYERS, model, session, x)


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_sums_never_saturate(suffix, tmp_path):
    """The worst case of 8 by 8 bits: all codes extreme, pairs of products beyond int16."""
    model = frozen(One(nn.Conv2d(64, 16, 3, padding=1)), 8, Grid.affine(8, 0))
    layer = model.layer
    with torch.no_grad():
        layer.weight.copy_(
            127 * layer.weight_quantizer.scale(layer.weight).expand_as(layer.weight)
        )
    x = torch.full((3, 64, 8, 8), 100.0)
    (session,) = sessions(model, x, tmp_path, [suffix])
    compare(model, session, x)


def test_sixteen_bits_stay_in_float(tmp_path):
    model = frozen(One(nn.Conv2d(5, 7, 3)), 12, Grid.signed(12))
    x = torch.randn(3, 5, 8, 8)
    (session,) = sessions(model, x, tmp_path, [".xml"])
    compare(model, session, x)
    assert {row.kernel for row in session.rows} == {"float"}


def test_half_precision_models_are_exported_in_float(calibrated, tmp_path, x):
    half, full = tdq.freeze(calibrated).bfloat16(), tdq.freeze(calibrated)
    (session,) = sessions(half, x.bfloat16(), tmp_path, [".xml"])
    assert (session(x, 5) - full(x, 5)).abs().median() < 0.02 * full(x, 5).abs().max()


class Many(nn.Module):
    """Several outputs, nested inputs, and a switch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, t, added=None, double: bool = False):
        h = self.a(x) * (2 if double else 1)
        h = h + added["text"][:, None] + added["ids"][0][:, None].float()
        return h, self.b(h)


@pytest.mark.parametrize("suffix", SLOW_ONNX)
def test_nested_inputs_constants_and_several_outputs(suffix, tmp_path):
    model = frozen(Many(), 4)
    x = torch.randn(3, 6, 4)
    added = {"text": torch.randn(3, 4), "ids": [torch.arange(12).reshape(3, 4)]}
    example = {"x": x, "t": torch.tensor([1, 2, 3]), "added": added, "double": True}
    session = tdq.open_session(tdq.export(model, tmp_path / f"m{suffix}", example))
    assert [spec["name"] for spec in session.about["inputs"]] == [
        "x", "t", "added.text", "added.ids.0",
    ]  # fmt: skip
    for t in TIMES:
        found = session(x, t, added=added)
        assert isinstance(found, tuple)
        for y, z in zip(model(x, t, added=added, double=True), found, strict=True):
            assert torch.allclose(y, z, rtol=1e-4, atol=1e-3)
    with pytest.raises(ExportError, match=r"double=False: exported with True"):
        session(x, 3, added=added, double=False)


class WholeTimes(One):
    """A denoiser that indexes by its timestep."""

    def forward(self, x, t):
        return self.layer(x) + torch.arange(1000.0)[torch.as_tensor(t)].reshape(-1, 1, 1)


def test_a_model_that_wants_whole_timesteps_gets_them(tmp_path):
    model = frozen(WholeTimes(nn.Linear(4, 4)), 4)
    x = torch.randn(3, 2, 4)
    (session,) = sessions(model, x, tmp_path, [".xml"])
    for t in (torch.tensor(7), torch.tensor([7, 8, 999])):
        assert torch.allclose(session(x, t), model(x, t), rtol=1e-5, atol=1e-4)
    assert torch.equal(session(x, 7.0), session(x, 7))
    with pytest.raises(ExportError, match="whole numbers"):
        session(x, 7.5)


def test_continuous_times(tmp_path):
    torch.manual_seed(0)
    model = Mixed().eval()
    tdq.quantize(model, tdq.Recipe(weights=4, scale="temporal", edges=8))
    rng = torch.Generator().manual_seed(0)
    calls = [
        (torch.randn(4, 6, 8, 8, generator=rng), torch.rand(4, generator=rng)) for _ in range(8)
    ]
    tdq.calibrate(model, calls, progress=False)
    model = tdq.freeze(model)
    x = calls[0][0][:3]
    (session,) = sessions(model, x, tmp_path, [".xml"])
    for t in (torch.tensor(0.3), torch.tensor([0.0, 0.123456, 1.0])):
        y = model(x, t)
        assert (session(x, t) - y).abs().median() <= 1e-5 * y.abs().max()


def test_quantized_attention(tmp_path):
    recipe = tdq.Recipe(weights=4, activations=6, attention=6, scale="dynamic")
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16),
        layers_per_block=1, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=4, attention_head_dim=8,
    )  # fmt: skip
    model = tdq.freeze(tdq.quantize(unet.eval(), recipe))
    x = torch.randn(3, 3, 8, 8)
    (session,) = sessions(model, x, tmp_path, [".xml"])
    for t in TIMES:
        y = model(x, t).sample
        assert (session(x, t).sample - y).abs().median() <= 1e-4 * y.abs().max()
    rows = {row.path: row.kernel for row in session.rows if ".processor." in row.path}
    assert len(rows) == 4 * 4
    assert set(rows.values()) == {"int8"}


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_weights_of_four_bits_take_half_a_byte(suffix, tmp_path):
    x = torch.randn(3, 2, 129)
    sizes = []
    for bits in (4, 5):
        model = frozen(One(nn.Linear(129, 255)), bits)
        path = tdq.export(model, tmp_path / f"{bits}{suffix}", (x, 3))
        assert torch.allclose(tdq.open_session(path)(x, 431), model(x, 431), rtol=1e-4, atol=1e-4)
        sizes.append(sum(p.stat().st_size for p in tmp_path.glob(f"{bits}.*")))
    assert sizes[1] - sizes[0] == pytest.approx(129 * 255 / 2, rel=0.1)


def test_a_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    model = frozen(One(nn.Linear(4, 4)))
    x = torch.randn(3, 2, 4)
    path = tdq.export(model, tmp_path / "m.xml", (x, 3))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("openvino.serialize", full)
    with pytest.raises(OSError, match="space"):
        tdq.export(frozen(One(nn.Linear(4, 4)), seed=1), path, (x, 3))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_the_file_says(calibrated, tmp_path):
    model = tdq.freeze(calibrated)
    path = tdq.export(model, tmp_path / "m.xml", (torch.randn(1, 6, 8, 8), 3))
    about = tdq.open_session(path).about
    assert about["tdquant"] == tdq.__version__
    assert about["coverage"] == [0.0, 999.0]
    assert about["timestep"] == "timestep"
    assert about["recipe"] == json.loads(json.dumps(model.tdq.recipe.to_dict()))
    assert [spec["shape"] for spec in about["inputs"]] == [[None, 6, None, None], [None]]


MISTAKES = {
    "suffix": (lambda m, x, p: tdq.export(m, p / "m.engine", (x, 3)), "'.engine' [m.engine]"),
    "no suffix": (lambda m, x, p: tdq.export(m, p / "m", (x, 3)), "a file without suffix"),
    "no timestep": (lambda m, x, p: tdq.export(m, p / "m.xml", (x,)), "needs a tensor"),
    "no sample": (lambda m, x, p: tdq.export(m, p / "m.xml", (3, 3)), "needs a tensor"),
    "one tensor": (lambda m, x, p: tdq.export(m, p / "m.xml", x), "the example is a Tensor"),
    "unknown argument": (
        lambda m, x, p: tdq.export(m, p / "m.xml", {"x": x, "t": 3, "y": 3}),
        "cannot be called",
    ),
    "too many": (lambda m, x, p: tdq.export(m, p / "m.xml", (x, 3, 4)), "too many"),
    "shape": (lambda m, x, p: tdq.export(m, p / "m.xml", (x[..., :2], 3)), "cannot be called"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, tmp_path):
    make, match = MISTAKES[mistake]
    with pytest.raises(ExportError, match=re.escape(match)):
        make(frozen(One(nn.Linear(4, 4))), torch.randn(3, 2, 4), tmp_path)
    assert not list(tmp_path.iterdir())


def test_unfrozen_and_unquantized(calibrated, x, tmp_path):
    with pytest.raises(FreezeError, match="frozen"):
        tdq.export(calibrated, tmp_path / "m.xml", (x, 3))
    with pytest.raises(ConversionError):
        tdq.export(Mixed(), tmp_path / "m.xml", (x, 3))


class Text(One):
    def forward(self, x, t):
        return {"y": self.layer(x), "name": "cat"}


def test_a_model_that_returns_no_tensors(tmp_path):
    with pytest.raises(ExportError, match="returns a dict"):
        tdq.export(frozen(Text(nn.Linear(4, 4))), tmp_path / "m.xml", (torch.randn(3, 2, 4), 3))


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_weights_held_as_codes(suffix, tmp_path):
    model = tdq.quantize(Mixed(), tdq.Recipe(weights=4, activations=32))
    tdq.save(tdq.freeze(model), tmp_path / "saved")
    exact = tdq.load(tmp_path / "saved", model=Mixed())
    compact = tdq.load(tmp_path / "saved", model=Mixed(), compact=True)
    x = torch.randn(3, 6, 8, 8)
    (session,) = sessions(compact, x, tmp_path, [suffix])
    compare(exact, session, x)


@pytest.mark.slow
def test_openvino_runs_the_onnx_file(tmp_path):
    """The engine that did not write it, without tdquant between."""
    import openvino

    layers = {k: v for k, v in LAYERS.items() if k != "circular"}  # its reader knows no such Pad
    model = frozen(All(layers), 4, Grid.affine(8, 64))
    x = torch.randn(2, 6, 8, 8)
    file = tdq.export(model, tmp_path / "m.onnx", (x, torch.tensor([3, 700])))
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for t in (torch.tensor([3.0, 700.0]), torch.tensor([10.5, 998.9])):
        found = compiled({0: x.numpy(), 1: t.numpy()})
        for name, y, output in zip(layers, model(x, t), compiled.outputs, strict=True):
            error = (torch.from_numpy(found[output]) - y).abs().max() / y.abs().max()
            assert error <= 1e-5, (name, float(error))


class Frames(nn.Module):
    """A video model that folds frames into the batch, and repeats what is given once a video."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.time, self.conv = nn.Linear(1, 6), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x, t):
        batch, frames = x.shape[:2]
        t = torch.as_tensor(t).to(x.dtype).reshape(-1).expand(batch) / 1000
        times = t.repeat_interleave(frames, 0)[:, None]
        level = (
            times.repeat_interleave(3, -1, output_size=3)
            .mean(-1)
            .reshape(batch, -1)
            .repeat_interleave(1)
        )
        h = self.conv(x.flatten(0, 1)) + self.time(times)[..., None, None]
        h = (
            h * level[:, None, None, None]
            + self.time(t[:, None]).repeat_interleave(frames, dim=0)[..., None, None]
        )
        return h.reshape(x.shape)


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_frames_folded_into_the_batch(suffix, tmp_path):
    model = frozen(Frames(), 8)
    for _, quantizer in activation_quantizers(model):
        quantizer.batch = BatchAxis()  # as calibration would have found
    x = torch.randn(2, 3, 6, 8, 8)
    session = tdq.open_session(tdq.export(model, tmp_path / f"m{suffix}", (x, torch.tensor(500))))
    for batch, t in ((2, torch.tensor(500)), (3, torch.tensor([5, 500, 900]))):
        x = torch.randn(batch, 3, 6, 8, 8)
        assert torch.allclose(session(x, t), model(x, t), atol=1e-4)


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_a_graph_that_cannot_run_its_example_is_not_written(suffix, tmp_path, monkeypatch):
    model, x = frozen(One(nn.Linear(6, 6)), 8), torch.randn(2, 6)
    path = tdq.export(model, tmp_path / f"m{suffix}", (x, 3))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    real = ENGINES[suffix]

    def broken(*args):
        about, _ = real(*args)
        raise ExportError("the engine cannot run the graph", where=about["model"])

    monkeypatch.setitem(ENGINES, suffix, broken)
    with pytest.raises(ExportError, match="cannot run the graph"):
        tdq.export(frozen(One(nn.Linear(6, 4)), 8), path, (x, 3))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_constants_beyond_a_single_file_lie_beside_it(tmp_path, monkeypatch):
    from tdquant.lowering.onnx import exporter

    model, x = frozen(One(nn.Linear(256, 64)), 8), torch.randn(2, 256)
    whole = tdq.open_session(tdq.export(model, tmp_path / "whole.onnx", (x, 3)))(x, 3)
    monkeypatch.setattr(exporter, "LARGEST", 4096)
    path = tmp_path / "m.onnx"
    for folder in (tmp_path, tmp_path / "elsewhere", tmp_path):  # again, and elsewhere
        path = tdq.export(model, folder / "m.onnx", (x, 3))
        assert (folder / "m.onnx.data").stat().st_size > 64 * 256
        assert torch.equal(tdq.open_session(path)(x, 3), whole)
    (tmp_path / "elsewhere" / "m.onnx.data").unlink()
    with pytest.raises(ExportError, match=r"m\.onnx\.data is not beside it"):
        tdq.open_session(tmp_path / "elsewhere" / "m.onnx")
    monkeypatch.undo()
    tdq.export(model, path, (x, 3))
    assert not (tmp_path / "m.onnx.data").exists()
    assert torch.equal(tdq.open_session(path)(x, 3), whole)


def test_a_disk_that_takes_no_file(frozen, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(StorageError, match="cannot be written"):
        tdq.export(
            frozen, tmp_path / "m.xml", example=(torch.zeros(1, 6, 8, 8), torch.tensor([1]))
        )
    assert not list(tmp_path.iterdir())


class Counting(nn.Module):
    """Branches on how many numbers are positive, which no graph can."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, t):
        y = self.layer(x)
        return y + 1 if len(y[y > 0]) == 1 else y


def test_a_graph_that_cannot_be_traced_is_not_printed(tmp_path, capfd):
    with pytest.raises(ExportError, match="cannot be traced"):
        tdq.export(frozen(Counting()), tmp_path / "m.onnx", (torch.ones(2, 8), torch.ones(2)))
    assert capfd.readouterr() == ("", "")


class Turned(nn.Module):
    """A rotary embedding in complex numbers, as Lumina's."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x, t):
        pairs = torch.view_as_complex(self.layer(x).unflatten(-1, (3, 2)))
        return torch.view_as_real(pairs[:, None].repeat(1, 2, 1) * 1j).sum(1).flatten(1)


class Samples(nn.Module):
    """Takes a list of samples, as Z-Image does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x, t):
        return torch.stack([self.layer(part) for part in x])


@pytest.mark.parametrize(
    ("model", "x", "why"),
    [
        (Turned, torch.randn(2, 6), "complex numbers"),
        (Samples, [torch.randn(6), torch.randn(6)], "'x' is a list of samples, 2 of them"),
    ],
)
@pytest.mark.parametrize("suffix", EXPORTERS)
def test_the_kind_of_an_obstacle_is_named(suffix, model, x, why, tmp_path):
    with pytest.raises(ExportError, match=rf"{why}(.|\n)*onednn"):
        tdq.export(frozen(model()), tmp_path / f"m{suffix}", (x, 3))
    assert list(tmp_path.iterdir()) == []
