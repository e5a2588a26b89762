import concurrent.futures
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import BackendError, ClockError, ExportError
from tdquant.lowering import EXPORTERS
from tests.conftest import quantized
from tests.lowering.models import One, frozen


@pytest.fixture(scope="module")
def model():
    return tdq.freeze(quantized(weights=4, activations=6))


@pytest.fixture(scope="module")
def sample():
    return torch.randn(3, 6, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module", params=[".xml", ".onnx"])
def file(request, model, sample, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / f"model{request.param}"
    return tdq.export(
        model, path, {"x": sample, "timestep": torch.tensor(3), "gain": sample[:, :1].abs()}
    )


@pytest.fixture
def session(file):
    return tdq.open_session(file)


@pytest.fixture
def gain(sample):
    return sample[:, :1].abs()


def test_takes_positions_names_numbers_and_other_types(session, model, sample, gain):
    y = model(sample, 431, gain)
    for out in (
        session(sample, 431, gain),
        session(sample, timestep=torch.tensor(431.0), gain=gain),
        session(
            x=sample.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), timestep=431, gain=gain
        ),
    ):
        assert torch.allclose(out, y, rtol=1e-4, atol=1e-5)
    half = session(sample.bfloat16(), 431, gain)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), y, rtol=0.1, atol=0.1)


def test_results_stay_as_they_are(session, sample, gain):
    first = session(sample, 3, gain)
    kept = first.clone()
    session(sample * 2, 900, gain)
    assert torch.equal(first, kept)


def test_eight_threads_share_a_session(session, model, sample, gain):
    times = [torch.tensor(t) for t in range(0, 1000, 42)]
    expected = [session(sample, t, gain) for t in times]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda t: session(sample, t, gain), times * 4))
    for i, out in enumerate(found):
        assert torch.equal(out, expected[i % len(times)])


def test_looks_like_a_module(session):
    assert isinstance(session, nn.Module)
    assert not sum(p.numel() for p in session.parameters())
    assert session.eval().dtype == torch.float32
    assert session.device == torch.device("cpu")
    assert session.about["recipe"]["weights"] == 4
    assert "int8" in {row.kernel for row in session.rows}


def test_a_timestep_outside_the_tables_is_clamped_with_one_warning(session, sample, gain):
    with pytest.warns(UserWarning, match="4000 lies outside"):
        far = session(sample, 4000, gain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = session(sample, 4000, gain)
    assert torch.equal(far, again)
    assert far.isfinite().all()


def test_a_timestep_far_from_those_of_calibration_is_warned_of(session, sample, gain):
    session.about["seen"] = [0, 300]
    with pytest.warns(UserWarning, match="900 is far from all that calibration saw, 0 to 300"):
        session(sample, 900, gain)


BAD_CALLS = {
    "no timestep": (lambda s, x, g: s(x, gain=g), ClockError, "without 'timestep'"),
    "two timesteps": (lambda s, x, g: s(x, torch.tensor([1, 2]), g), ClockError, "2 timesteps"),
    "an input is missing": (lambda s, x, g: s(x, 3), ExportError, "gain is missing"),
    "an unknown input": (
        lambda s, x, g: s(x, 3, g, labels=torch.tensor(3)),
        ExportError,
        "labels was not in the example",
    ),
    "too many arguments": (lambda s, x, g: s(x, 3, g, g), ExportError, "too many"),
    "an argument twice": (lambda s, x, g: s(x, 3, x=x), ExportError, "given twice"),
    "channels": (lambda s, x, g: s(x[:, :5], 3, g), ExportError, r"\(3, 5, 8, 8\), not \(\*, 6"),
    "dimensions": (lambda s, x, g: s(x[0], 3, g), ExportError, "shape"),
}


@pytest.mark.parametrize("mistake", BAD_CALLS)
def test_calls_that_the_graph_cannot_take(session, sample, gain, mistake):
    call, kind, match = BAD_CALLS[mistake]
    with pytest.raises(kind, match=match):
        call(session, sample, gain)


def test_all_mistakes_of_a_call_are_listed(session, sample):
    with pytest.raises(ExportError) as error:
        session(sample[:, :5], 3, labels=3)
    assert all(text in str(error.value) for text in ("labels", "gain is missing", "(3, 5, 8, 8)"))


def test_sizes_that_do_not_fit_each_other(session, sample, gain):
    with pytest.raises(ExportError, match="cannot"):
        session(sample.repeat(1, 1, 2, 2), 3, gain)


def damaged(file, folder):
    """A copy of an exported file, to be damaged."""
    for part in file.parent.iterdir():
        shutil.copy(part, folder / part.name)
    return folder / file.name


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
def test_a_changed_byte_is_found(file, tmp_path, at):
    copy = damaged(file, tmp_path)
    flip(copy, at)
    with pytest.raises(ExportError, match=r"not (what|a file)"):
        tdq.open_session(copy)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_truncated(file, tmp_path, keep):
    copy = damaged(file, tmp_path)
    data = copy.read_bytes()
    copy.write_bytes(data[: keep if keep in (0, 100) else int(keep * len(data))])
    with pytest.raises(ExportError, match=r"not (what|a file)") as error:
        tdq.open_session(copy)
    assert str(copy) in str(error.value)


def test_constants_beside_it(model, sample, tmp_path):
    path = tdq.export(model, tmp_path / "a.xml", (sample, 3))
    constants = path.with_suffix(".bin")
    flip(constants, 0.5)
    with pytest.raises(ExportError, match="digest"):
        tdq.open_session(path)
    constants.write_bytes(constants.read_bytes()[:-10])
    with pytest.raises(ExportError, match="digest"):
        tdq.open_session(path)
    constants.unlink()
    with pytest.raises(ExportError, match=r"no a\.bin beside it"):
        tdq.open_session(path)


def test_files_that_are_not_ours(tmp_path):
    for name in ("m.xml", "m.onnx"):
        (tmp_path / name).write_text("<net/>")
        (tmp_path / "m.bin").write_bytes(b"")
        with pytest.raises(ExportError, match="not a file that"):
            tdq.open_session(tmp_path / name)
    with pytest.raises(ExportError, match="no such file"):
        tdq.open_session(tmp_path / "absent.onnx")
    with pytest.raises(ExportError, match=r"no engine runs '\.pt'"):
        tdq.open_session(tmp_path / "m.pt")


def test_an_unknown_device(file, sample, gain):
    with pytest.raises(ExportError, match="NPU9"):
        tdq.open_session(file, device="NPU9")(sample, 3, gain)


def test_the_package_to_install_is_named(file):
    """In a process where neither engine can be imported."""
    code = (
        "import sys\n"
        "sys.modules['openvino'] = sys.modules['onnxruntime'] = None\n"
        "import tdquant as tdq\n"
        f"try: tdq.open_session({str(file)!r})\n"
        "except tdq.errors.MissingDependencyError as e: print(e)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    extra = "openvino" if file.suffix == ".xml" else "onnx"
    assert f'pip install "tdquant[{extra}]"' in found.stdout, found.stderr


def test_a_diffusers_model_gives_what_pipelines_look_at(tmp_path):
    unet = tdq.models.load_embedded("tiny").unet.unet
    frozen = tdq.freeze(tdq.quantize(unet, tdq.Recipe(scale="dynamic")))
    x = torch.randn(1, 12, 8, 8)
    session = tdq.open_session(tdq.export(frozen, tmp_path / "m.xml", (x, 3)))
    y = frozen(x, 500).sample
    assert torch.allclose(session(x, 500).sample, y, atol=1e-4)
    assert torch.allclose(session(x, 500, return_dict=False)[0], y, atol=1e-4)
    assert torch.allclose(session(x, 500)[0], y, atol=1e-4)
    assert session.config.in_channels == unet.config.in_channels
    assert session.config.sample_size == 8


def test_samplers_take_a_session(tmp_path):
    scheduler = tdq.models.load_embedded("tiny").scheduler
    model, shape = frozen(One(nn.Conv2d(6, 6, 3, padding=1))), (6, 8, 8)
    session = tdq.open_session(tdq.export(model, tmp_path / "m.xml", (torch.randn(1, *shape), 3)))

    def draw(model):
        return tdq.sample(model, scheduler, 3, shape, steps=4, batch=2, progress=False)

    assert (draw(session) - draw(model)).abs().median() < 1e-3


def linear_session(x, path):
    return tdq.open_session(tdq.export(frozen(One(nn.Linear(4, 4))), path, (x, 3)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("suffix", EXPORTERS)
def test_a_forked_process_is_told_so(suffix, tmp_path):
    x = torch.randn(2, 4)
    session = linear_session(x, tmp_path / f"m{suffix}")
    y = session(x, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forks beside threads
        child = os.fork()
    if not child:
        try:
            session(x, 3)
        except BackendError as error:
            os._exit(7 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert torch.equal(session(x, 3), y)


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_an_empty_batch_is_refused(suffix, tmp_path):
    x = torch.randn(2, 4)
    session = linear_session(x, tmp_path / f"m{suffix}")
    with pytest.raises(ExportError, match="x is empty"):
        session(x[:0], 3)
    with pytest.raises(ExportError, match="x is empty"):
        session(x[:0], torch.empty(0))


def test_threads_with_shapes_and_times_of_their_own(tmp_path):
    model, x = frozen(One(nn.Conv2d(6, 6, 3, padding=1)), 4), torch.randn(8, 6, 8, 8)
    session = tdq.open_session(tdq.export(model, tmp_path / "m.xml", (x, 3)))
    times = [float(100 * i) for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            found = list(pool.map(lambda i: session(x[: i // 2 + 1], times[i]), range(8)))
    for i, y in enumerate(found):
        wanted = model(x[: i // 2 + 1], torch.tensor(times[i]))
        assert torch.allclose(y, wanted, rtol=1e-4, atol=1e-4)


def test_a_file_that_may_not_be_read(file, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ExportError, match="cannot be read"):
        tdq.open_session(file)
