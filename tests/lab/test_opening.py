"""One way to open a model, wherever it comes from."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

import tdquant as tdq
from tdquant.errors import ModelError, StorageError
from tdquant.freezing import is_frozen
from tdquant.lab.opening import KINDS, kind_of, open_model
from tdquant.lab.sample_shapes import sample_shape
from tdquant.models import load_embedded
from tests.conftest import quantized
from tests.lab.bench.saved import saved_unet
from tests.lab.runs.tiny import workspace


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A source of each kind, by its kind."""
    folder = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(folder / "pipeline")
    saved = saved_unet(folder / "saved")
    (folder / "model.onnx").touch()
    (folder / "run").mkdir()
    files = workspace(folder / "files")
    return {
        "embedded": "tiny",
        "pipeline": folder / "pipeline",
        "saved": saved,
        "exported": folder / "model.onnx",
        "run": folder / "run",
        "checkpoint": files / "model.safetensors",
    }


def test_every_kind_is_recognized_and_can_be_refused(place):
    assert set(place) == set(KINDS)
    for kind, source in place.items():
        assert kind_of(source) == kind
        with pytest.raises(ModelError, match=r"not taken here[\s\S]*another one"):
            kind_of(source, {kind: "another one"})


def test_names_on_the_hub_are_pipelines_and_misspelt_files_are_not():
    assert kind_of("google/ddpm-cifar10-32") == "pipeline"
    for source in ("nowhere", "logs/model.ckpt", "a/b/c", "/a/b", "cats"):
        with pytest.raises(StorageError, match="no such model"):
            kind_of(source)


def test_a_path_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert kind_of("tiny") == "embedded"
    (tmp_path / "tiny").mkdir()
    assert kind_of("tiny") == "run"


def test_a_saved_denoiser_alone_has_a_shape_and_no_parts(place):
    opened = open_model(place["saved"], alone=True)
    assert opened.model.shape == (3, 8, 8)
    assert opened.model.scheduler is None
    assert is_frozen(opened.frozen())
    assert open_model(place["saved"], alone=True, shape=(3, 16, 16)).model.shape == (3, 16, 16)


def test_a_live_model_is_frozen_and_a_float_one_refused(place):
    opened = open_model("tiny")
    with pytest.raises(ModelError, match="not quantized"):
        opened.frozen()
    pipe = load_embedded("tiny")
    tdq.quantize(pipe.unet, tdq.Recipe(weights=8, activations=32))
    assert is_frozen(type(opened)("embedded", "tiny", pipe).frozen())


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("checkpoint", {}, "without its configuration"),
        ("embedded", {"overrides": ["a.b=3"]}, "no configuration to change by a.b=3"),
        ("pipeline", {"overrides": ["a.b=3"]}, "no configuration to change by a.b=3"),
        ("embedded", {"text_encoder": "clip"}, "a text encoder for an embedded model"),
        ("saved", {"parts": "cats-ddpm"}, "--pipe with the model"),
    ],
)
def test_what_does_not_fit_is_explained(place, kind, options, words):
    with pytest.raises(ModelError, match=words):
        open_model(place[kind], **options)


def test_parts_come_from_what_has_them(place):
    with pytest.raises(ModelError, match="--pipe"):
        open_model(place["saved"], parts=place["pipeline"])


def test_a_folder_without_a_pipeline_inside(place, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ModelError, match="no pipeline can be opened"):
        open_model(tmp_path)
    with pytest.raises(StorageError, match="nor a run"):
        open_model(place["run"])


def test_without_a_known_shape(tmp_path):
    model = quantized()
    path = tdq.save(tdq.freeze(model), tmp_path / "mixed")
    with pytest.raises(ModelError):
        open_model(path, alone=True)


def test_sample_shapes():
    assert sample_shape(load_embedded("tiny").unet) == (3, 16, 16)
    assert sample_shape(load_embedded("cats-ldm").unet) == load_embedded("cats-ldm").shape
    assert sample_shape(torch.nn.Linear(2, 2)) is None
