"""``export_pipeline`` and ``open_pipeline``: the layout of the folder, and what it draws."""

import errno
import json
import sys

import numpy as np
import openvino as ov
import pytest
import torch
from diffusers import DDIMScheduler

import tdquant as tdq
from tdquant.errors import (
    ExportError,
    FreezeError,
    MissingDependencyError,
    ModelError,
    StorageError,
)
from tdquant.integrations.pipelines import folder as folders
from tdquant.integrations.pipelines.opening import Autoencoder, TextEncoder
from tdquant.lowering import Session
from tests.integrations.pipelines.whole import assert_close, exported, quantized
from tests.pipelines import PIPELINES, sample
from tests.pipelines.texts import WHOLE

QUICK = ("ltx", "ddim")
SLOW = (
    "stable_diffusion_xl",
    "stable_diffusion_1",
    "latent_consistency",
    "stable_diffusion_3",
    "flux",
    "pixart",
)
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def graph(file):
    return ov.Core().read_model(str(file))


def inputs(file):
    """Name -> element type and shape of the inputs of a graph."""
    return {
        port.get_any_name(): (
            port.element_type.get_type_name(),
            str(port.get_partial_shape()).replace("?", "*"),
        )
        for port in graph(file).inputs
    }


def files(folder):
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}


# What it draws


@pytest.mark.parametrize("name", NAMES)
def test_draws_what_the_frozen_pipeline_draws(name):
    pipe, call, exact, out = exported(name)
    opened = tdq.open_pipeline(out, threads=1)
    assert type(opened) is type(pipe)
    assert_close(sample(opened, call), sample(pipe, call), exact)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param(
            "stable_diffusion_xl",
            {"height": 16, "width": 24, "num_inference_steps": 5},
            marks=pytest.mark.slow,
        ),
        ("ltx", {"height": 64, "num_frames": 17, "frame_rate": 12}),
        pytest.param("flux", {"height": 16, "width": 24}, marks=pytest.mark.slow),
        pytest.param("stable_diffusion_3", {"height": 12, "width": 16}, marks=pytest.mark.slow),
    ],
)
def test_other_sizes_and_steps_than_those_of_the_example(name, changes):
    pipe, call, exact, out = exported(name)
    exact_now = sample(WHOLE[name]()[0], call, **changes)
    assert exact_now.shape != exact.shape
    pictures = sample(tdq.open_pipeline(out), call, **changes)
    assert_close(pictures, sample(pipe, call, **changes), exact_now)


def test_another_scheduler_and_several_pictures():
    pipe, call, _, out = exported("stable_diffusion_xl")
    own, pictures = pipe.scheduler, []
    for p in (WHOLE["stable_diffusion_xl"]()[0], pipe, tdq.open_pipeline(out)):
        # At the times that calibration saw: elsewhere a quantized model this small is far off.
        p.scheduler = DDIMScheduler.from_config(own.config, timestep_spacing="linspace")
        pictures.append(sample(p, call, num_images_per_prompt=2))
    pipe.scheduler = own
    exact, expected, found = pictures
    assert len(found) == 2
    assert_close(found, expected, exact)


def test_parts_are_sessions_and_graphs():
    _, _, _, out = exported("stable_diffusion_xl")
    opened = tdq.open_pipeline(out)
    assert isinstance(opened.unet, Session)
    assert isinstance(opened.vae, Autoencoder)
    assert isinstance(opened.text_encoder_2, TextEncoder)
    assert opened.device == torch.device("cpu")


def test_an_autoencoder_encodes_as_in_torch():
    pipe, _, _, out = exported("stable_diffusion_xl")
    pictures = torch.randn(1, 3, 16, 8, generator=torch.Generator().manual_seed(2))
    vae = tdq.open_pipeline(out).vae
    with torch.no_grad():
        expected = pipe.vae.encode(pictures).latent_dist
    torch.testing.assert_close(
        vae.encode(pictures).latent_dist.mean, expected.mean, atol=1e-5, rtol=1e-5
    )
    (found,) = vae.encode(pictures, return_dict=False)
    torch.testing.assert_close(found.std, expected.std, atol=1e-5, rtol=1e-5)


# The layout


def test_files_of_the_layout():
    _, _, _, out = exported("stable_diffusion_xl")
    parts = ("unet", "text_encoder", "text_encoder_2", "vae_encoder", "vae_decoder")
    for part in parts:
        graph_files = {"openvino_model.xml", "openvino_model.bin", "config.json"}
        assert files(out / part) == graph_files
    assert {f.split("/")[0] for f in files(out)} == {
        *parts, "scheduler", "tokenizer", "tokenizer_2", "model_index.json",
    }  # fmt: skip
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["ov_config"] == {"INFERENCE_PRECISION_HINT": "f32"}
    config = json.loads((out / "unet" / "config.json").read_text())
    assert config["in_channels"] == 4
    assert "quantization_config" not in config
    assert json.loads((out / "vae_decoder" / "config.json").read_text())["scaling_factor"] == 0.5


def test_names_types_and_shapes_of_images():
    _, _, _, out = exported("stable_diffusion_xl")
    assert inputs(out / "unet" / "openvino_model.xml") == {
        "sample": ("f32", "[*,4,*,*]"),
        "timestep": ("f32", "[*]"),
        "encoder_hidden_states": ("f32", "[*,*,16]"),
        "text_embeds": ("f32", "[*,16]"),
        "time_ids": ("f32", "[*,6]"),
    }
    two = graph(out / "text_encoder_2" / "openvino_model.xml")
    assert inputs(out / "text_encoder_2" / "openvino_model.xml") == {"input_ids": ("i64", "[*,*]")}
    names = ["text_embeds", "last_hidden_state", *(f"hidden_states.{i}" for i in range(3))]
    assert [port.get_any_name() for port in two.outputs] == names
    one = graph(out / "text_encoder" / "openvino_model.xml")
    names = ["last_hidden_state", "pooler_output", *(f"hidden_states.{i}" for i in range(3))]
    assert [port.get_any_name() for port in one.outputs] == names
    for part, taken, given in (
        ("vae_decoder", "latent_sample", "sample"),
        ("vae_encoder", "sample", "latent_parameters"),
    ):
        file = out / part / "openvino_model.xml"
        channels = 4 if part == "vae_decoder" else 3
        assert inputs(file) == {taken: ("f32", f"[*,{channels},*,*]")}
        assert graph(file).output(0).get_any_name() == given


def test_names_types_and_shapes_of_videos():
    _, _, _, out = exported("ltx")
    found = inputs(out / "transformer" / "openvino_model.xml")
    assert {name: found[name] for name in ("num_frames", "height", "width")} == {
        "num_frames": ("i64", "[]"),
        "height": ("i64", "[]"),
        "width": ("i64", "[]"),
    }
    assert found["rope_interpolation_scale"] == ("f32", "[3]")
    assert found["timestep"] == ("f32", "[*]")
    config = json.loads((out / "vae_decoder" / "config.json").read_text())
    assert config["latents_mean_data"] == [0.0] * 4
    assert config["temporal_compression_ratio"] == 8


def test_one_timestep_for_the_batch_or_one_for_each_sample():
    """Without tdquant, as optimum-intel calls it."""
    _, _, _, out = exported("stable_diffusion_xl")
    file = str(out / "unet" / "openvino_model.xml")
    model = ov.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rng = np.random.default_rng(0)
    given = {
        name: rng.standard_normal((2, *shape), dtype=np.float32)
        for name, shape in (
            ("sample", (4, 8, 8)),
            ("encoder_hidden_states", (8, 16)),
            ("text_embeds", (16,)),
            ("time_ids", (6,)),
        )
    }

    def call(*times):
        return model({**given, "timestep": np.array(times, np.float32)})[0]

    np.testing.assert_array_equal(call(501), call(501, 501))
    np.testing.assert_allclose(call(501, 20)[1], call(20)[1], atol=1e-5)
    assert np.abs(call(501) - call(20)).max() > 1e-3


def test_a_denoiser_opens_as_a_session_of_its_own():
    pipe, _, _, out = exported("stable_diffusion_xl")
    session = tdq.open_session(out / "unet" / "openvino_model.xml")
    rng = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 8, 16, generator=rng)
    more = {"text_embeds": text[:, 0], "time_ids": torch.full((2, 6), 8.0)}
    with torch.no_grad():
        expected = pipe.unet(x, torch.tensor([7, 900]), text, added_cond_kwargs=more).sample
    found = session(x, torch.tensor([7, 900]), text, **more).sample
    assert (found - expected).abs().median() <= 1e-5
    assert [row.path for row in tdq.summary(session)] == [r.path for r in tdq.summary(pipe.unet)]


def test_other_pipelines_keep_their_torch_parts():
    _, _, _, out = exported("ddim")
    assert files(out) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/openvino_model.bin",
        "unet/openvino_model.xml",
    }
    assert "ov_config" not in json.loads((out / "model_index.json").read_text())


# Weights of 8 bits


def test_8_bit_weights_need_nncf(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nncf", None)
    pipe, call, _, _ = exported("stable_diffusion_xl")
    with pytest.raises(MissingDependencyError, match=r"tdquant\[compress\]"):
        tdq.export_pipeline(pipe, tmp_path / "out", example=call, weights_8bit=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_8_bit_weights(tmp_path):
    pytest.importorskip("nncf")
    pipe, call, _, out = exported("stable_diffusion_xl")
    small = tmp_path / "small"
    tdq.export_pipeline(pipe, small, example=call, weights_8bit=True, progress=False)
    for part in ("text_encoder", "text_encoder_2", "vae_decoder", "vae_encoder"):
        types = {
            node.get_element_type().get_type_name()
            for node in graph(small / part / "openvino_model.xml").get_ops()
            if node.get_type_name() == "Constant" and len(node.get_output_shape(0)) > 1
        }
        assert "i8" in types
    pictures = sample(tdq.open_pipeline(small), call)
    expected = sample(tdq.open_pipeline(out), call)
    assert 0 < (pictures - expected).abs().max() < 0.1


# Bad input


def test_what_is_no_quantized_pipeline(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ModelError, match=r"no pipeline can be opened[\s\S]*model_index.json"):
        tdq.export_pipeline(tmp_path, out)
    with pytest.raises(ModelError, match="is no pipeline"):
        tdq.export_pipeline(object(), out)
    pipe, _ = PIPELINES["ddim"]()
    with pytest.raises(ModelError, match="unet is not quantized"):
        tdq.export_pipeline(pipe, out)
    tdq.quantize(pipe.unet, tdq.Recipe())
    with pytest.raises(FreezeError):
        tdq.export_pipeline(pipe, out)
    assert not list(tmp_path.iterdir())


def test_an_example_that_the_pipeline_cannot_run(tmp_path):
    pipe, call, _, _ = exported("ltx")
    hooks = list(pipe.transformer._forward_pre_hooks)
    with pytest.raises(ExportError, match="cannot be run for an example"):
        tdq.export_pipeline(pipe, tmp_path / "out", example={**call, "height": 33})
    with pytest.raises(ExportError, match="takes no depth"):
        tdq.export_pipeline(pipe, tmp_path / "out", example={**call, "depth": 3})
    assert not list(tmp_path.iterdir())
    assert list(pipe.transformer._forward_pre_hooks) == hooks


def test_what_is_there_stays(tmp_path):
    pipe, call, _, _ = exported("ddim")
    (tmp_path / "notes.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(StorageError, match="something already"):
            tdq.export_pipeline(pipe, target, example=call)
    assert files(tmp_path) == {"notes.txt"}


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    pipe, call, _, _ = exported("ddim")
    out = tmp_path / "out"
    out.mkdir()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def failed(*args, **kwargs):
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(folders, "write_denoiser", full)
    with pytest.raises(StorageError, match="No space left"):
        tdq.export_pipeline(pipe, out, example=call, progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(ov, "serialize", failed)
    with pytest.raises(StorageError, match="OpenVINO cannot write"):
        tdq.export_pipeline(pipe, out, example=call, progress=False)
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
    assert not list(out.iterdir())


def test_what_came_meanwhile_stays(tmp_path, monkeypatch):
    pipe, call, _, _ = exported("ddim")
    out = tmp_path / "out"

    def write(*args, **kwargs):
        out.mkdir()
        (out / "notes.txt").write_text("mine")

    monkeypatch.setattr(folders, "write_denoiser", write)
    with pytest.raises(StorageError, match="something already"):
        tdq.export_pipeline(pipe, out, example=call, progress=False)
    assert files(tmp_path) == {"out/notes.txt"}


def test_without_openvino(tmp_path, monkeypatch):
    pipe, call, _, out = exported("ddim")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"tdquant\[openvino\]"):
        tdq.export_pipeline(pipe, tmp_path / "out", example=call)
    with pytest.raises(MissingDependencyError):
        tdq.open_pipeline(out)


def test_folders_that_hold_no_pipeline(tmp_path):
    with pytest.raises(ModelError, match="no pipeline"):
        tdq.open_pipeline(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text("[]")
    with pytest.raises(ModelError, match="no pipeline"):
        tdq.open_pipeline(tmp_path)
    index.write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(ModelError, match="NoSuchPipeline"):
        tdq.open_pipeline(tmp_path)
    index.write_text('{"_class_name": "DDIMPipeline", "unet": ["diffusers", "UNet2DModel"]}')
    with pytest.raises(ModelError, match="has no unet"):
        tdq.open_pipeline(tmp_path)


def test_a_pipeline_without_a_prompt_needs_no_example(tmp_path):
    pipe, call, exact = quantized("ddim")
    out = tdq.export_pipeline(pipe, tmp_path / "out", progress=False)
    assert_close(sample(tdq.open_pipeline(out), call), sample(pipe, call), exact)
