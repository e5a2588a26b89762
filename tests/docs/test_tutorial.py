"""The programs in the documentation run as they are printed."""

import re

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image
from safetensors import safe_open

import tdquant as tdq
from tdquant.models.pipe import Pipe
from tests.denoisers import Mixed
from tests.docs.programs import DOCS, programs, run
from tests.pipelines import PIPELINES, sample

FEW = {"steps=20": "steps=4"}
"""Fewer steps than a reader would take."""
QUICK = {"activations=8)": "activations=8, remedies=())"}
"""The trials of remedies have tests of their own."""


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The two programs of the tutorial, run in a folder that has the pipeline; the variables of
    the first one and the folder.
    """
    folder = tmp_path_factory.mktemp("tutorial")
    PIPELINES["stable_diffusion_1"]()[0].save_pretrained(folder / "my-pipeline")
    first, second = programs(DOCS / "diffusers.md", "From a pipeline to a quantized one")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        variables = run(first, **FEW, **QUICK)
        run(second, **FEW)
    return variables, folder


def test_it_is_short():
    first, second = programs(DOCS / "diffusers.md", "From a pipeline to a quantized one")
    assert len((first + second).splitlines()) < 25


def test_the_loaded_pipeline_gives_the_images_of_the_frozen_one(tutorial):
    variables, folder = tutorial
    _, call = PIPELINES["stable_diffusion_1"]()
    again = DiffusionPipeline.from_pretrained(folder / "my-pipeline-w4a8")
    images = sample(again, call)
    assert torch.equal(images, sample(variables["pipe"], call))
    exact = sample(DiffusionPipeline.from_pretrained(folder / "my-pipeline"), call)
    assert 0 < (images - exact).abs().mean() < 0.05


def test_the_folder_holds_what_the_page_says(tutorial):
    _, folder = tutorial
    out = folder / "my-pipeline-w4a8"
    text = (DOCS / "diffusers.md").read_text()
    listed = re.search(r"^my-pipeline-w4a8/\n((?:  \S+.*\n)+)", text, re.M)[1]
    names = {line.split()[0] for line in listed.splitlines()}
    written = {str(file.relative_to(out)) for file in (out / "unet").iterdir()}
    assert names == written | {"model_index.json"}
    assert all((out / name).is_file() for name in names)
    with safe_open(out / "unet/diffusion_pytorch_model.safetensors", framework="pt") as file:
        types = {name.rpartition(".")[2]: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert types["codes"] == torch.uint8
    assert types["table"] == types["step"] == torch.float32
    assert "## Calibrate" in (out / "unet/README.md").read_text()
    assert tdq.is_frozen(tdq.load(out / "unet"))


def test_the_recorded_calls_are_read_again(tutorial):
    variables, folder = tutorial
    kept = list(tdq.trajectories(folder / "calls"))
    assert len(kept) == len(variables["calls"]) > 4
    fresh = PIPELINES["stable_diffusion_1"]()[0]
    again = list(tdq.trajectories(fresh, variables["prompts"], steps=4, progress=False))
    assert all(torch.equal(a["sample"], b["sample"]) for a, b in zip(kept, again, strict=True))


def test_the_picture(tutorial):
    picture = Image.open(tutorial[1] / "cat.png")
    assert picture.size == (8, 8)
    assert len(picture.getcolors()) > 4


@pytest.mark.parametrize(
    "section", ["A float checkpoint, quantized as it loads", "Half precision and memory"]
)
def test_loading(tutorial, section, monkeypatch):
    monkeypatch.chdir(tutorial[1])
    for program in programs(DOCS / "diffusers.md", section):
        variables = run(program)
        unet = variables.get("unet") or variables["pipe"].unet
        assert unet.is_quantized
    if "half" in section.lower():
        assert unet.dtype == torch.bfloat16
        with pytest.raises(ValueError, match="Casting a quantized model"):
            variables["pipe"].to(torch.float16)


def test_two_denoisers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe, call = PIPELINES["wan_of_two"]()
    pipe.save_pretrained("my-video-pipeline")
    (program,) = programs(DOCS / "diffusers.md", "Two denoisers")
    # Its prompt is an embedding, for there is no text encoder.
    without = {"text_encoder": None, "tokenizer": None}
    changed = {
        '("my-video-pipeline")': '("my-video-pipeline", **without)',
        '["a cat on a sofa"]': "[call]",
        "calls[name])": 'calls[name], estimator="minmax")',
    }
    variables = run(program, {"call": call, "without": without}, **changed)
    again = DiffusionPipeline.from_pretrained("my-video-pipeline-w4a8", **without)
    assert all(model.is_quantized for model in tdq.denoisers(again).values())
    assert len(tdq.denoisers(again)) == 2
    assert torch.equal(sample(again, call), sample(variables["pipe"], call))


def test_post_training_quantization(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Mixed().eval()
    tiny = Pipe(model, None, DDIMScheduler(), (6, 8, 8), "tiny")
    monkeypatch.setattr(tdq.models, "load_embedded", lambda name: tiny)
    head, *others = programs(DOCS / "ptq.md")
    variables = run(head, **{"pipe, 16": "pipe, 4, steps=8"})
    fewer = {"iterations=300": "iterations=3", "size=0.2, time=0.5": "size=1.0, time=0.9"}
    for program in others:
        run(program, variables, **{w: other for w, other in fewer.items() if w in program})
    assert variables["found"].bits <= 4
    assert {file.name for file in tmp_path.iterdir()} >= {"sensitivity.png", "search.png"}
    x = torch.randn(2, 6, 8, 8)
    assert tdq.is_frozen(variables["frozen"])
    assert variables["frozen"](x, torch.tensor(500)).isfinite().all()
    assert variables["frozen"].tdq.history[-1]["step"] == "correct"


def test_two_denoisers_as_on_the_page_of_families():
    _, program = programs(DOCS / "families.md")
    pipe, call = PIPELINES["wan_of_two"]()
    recipe = tdq.Recipe(8, 8, scale="static")
    known = {"tdq": tdq, "pipe": pipe, "recipe": recipe, "call": call}
    del call["num_inference_steps"]
    run(program, known, **{"prompts, steps=20": "1, steps=4, **call"})
    assert all(tdq.is_frozen(part) for part in (pipe.transformer, pipe.transformer_2))
