"""The programs of the other pages run as they are printed, from the first block to the last."""

import html
import importlib
import json
import re

import pytest
import torch

import tdquant as tdq
from tdquant.families import FAMILIES
from tdquant.lab import data, metrics
from tdquant.layers import STRUCTURES
from tdquant.lowering import BACKENDS, EXPORTERS
from tdquant.quantizers import activation_quantizers
from tdquant.scales import SCALES, Curves, TableScale
from tests.contracts import test_scales as contract
from tests.docs.programs import DOCS, README, programs, run, run_all, small_frozen, small_pipe
from tests.integrations.pipelines.whole import quantized
from tests.models.compvis import examples
from tests.pipelines import sample

REGISTRIES = (SCALES, STRUCTURES, BACKENDS, EXPORTERS, metrics.PAIRED, data.DATASETS)


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    """A folder of its own, a very small model for the embedded ones, and nothing left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tdq.models, "load_embedded", lambda name: small_pipe(name))
    before, families = [dict(registry) for registry in REGISTRIES], list(FAMILIES)
    yield
    FAMILIES[:] = families
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)


def finite(model, *call):
    with torch.no_grad():
        return bool(model(*call).isfinite().all())


def test_landing_page(capsys):
    found = run_all(DOCS / "index.md", {"(pipe, 16)": "(pipe, 2, steps=4)", "steps=50": "steps=4"})
    assert tdq.is_frozen(found["frozen"])
    assert found["images"].shape == (16, 3, 16, 16)
    assert "layers quantized" in capsys.readouterr().out


def test_first_quantization():
    fewer = {
        'scale="auto"': 'scale="static"',
        "count=16": "count=2",
        "steps=50": "steps=4",
        "16, pipe.shape, steps=20": "2, pipe.shape, steps=2",
        "16, pipe.shape, steps=100": "2, pipe.shape, steps=4",
        '"train")': '"train", 8)',
        "steps=2000, batch=32": "steps=1, batch=2",
    }
    found = run_all(DOCS / "guide.md", fewer)
    rows = {row.path: row for row in tdq.summary(found["again"])}
    assert rows["unet.up_blocks.0.attentions.0.to_out.0"].input_bits == 32
    assert found["images"].shape == (2, 3, 16, 16)
    assert tdq.is_frozen(found["frozen"])


def test_training(capsys):
    fewer = {
        "8, pipe.shape, steps=10": "2, pipe.shape, steps=4",
        "count=512": "count=16",
        "steps=20,": "steps=2,",
        "32, pipe.shape, steps=20": "2, pipe.shape, steps=2",
        "batch=8": "batch=2",
        "every=10": "every=2",
    }
    found = run_all(DOCS / "training.md", fewer)
    assert found["run"].finished
    assert tdq.is_frozen(tdq.load("cats-w4a4/frozen"))
    assert "unet.down_blocks.0.resnets.0.conv1.input_quantizer: x" in capsys.readouterr().out


def test_deploying():
    tdq.save(small_frozen(), "cats-w4a8")
    first, _, second = programs(DOCS / "deploy.md")
    known = run(first)
    run(second, known)
    wanted = known["session"](known["x"], torch.tensor(500))
    assert torch.allclose(torch.as_tensor(known["y"]), wanted, atol=1e-4)


def test_deploying_a_whole_pipeline():
    pipe, call, _ = quantized("stable_diffusion_1")
    pipe.save_pretrained("sdxl-w4a8")
    _, program, _ = programs(DOCS / "deploy.md")
    known = run(program, {"tdq": tdq, "call": call}, **{'{"height": 512, "width": 512}': "call"})
    assert sample(known["pipe"], call).isfinite().all()


def test_backends(monkeypatch, capsys):
    tdq.save(small_frozen(), "model-w4a8")
    compiling = importlib.import_module("tdquant.lowering.backends")
    monkeypatch.setitem(compiling.PREFERENCE, "cpu", ("onednn", "reference"))
    x, t = torch.randn(2, 3, 16, 16), torch.tensor(5)
    known = {"tdq": tdq, "torch": torch, "frozen": small_frozen(), "pipe": small_pipe()}
    known |= {"x": x, "t": t}
    for program in programs(DOCS / "backends.md"):
        if "cuda" in program and not torch.cuda.is_available() and "compile(tdq" in program:
            continue
        fewer = {"16, pipe.shape, steps=50": "2, pipe.shape, steps=2"}
        run(program, known, **{k: v for k, v in fewer.items() if k in program})
    shown = capsys.readouterr().out
    assert "backend: onednn" in shown
    assert "onednn, the first choice\n" in shown
    wanted = known["frozen"](x, torch.tensor([5, 900]))
    with torch.no_grad():
        found = known["fast"](x, torch.tensor([5, 900]))
    assert (found - wanted).abs().median() <= 1e-5 * wanted.abs().max()
    kernels = {row.kernel for row in tdq.summary(known["fast"]) if row.layer == "QuantLinear"}
    assert "numpy" in kernels
    assert re.search(r"simulated +numpy has no convolution", shown)
    assert torch.allclose(known["program"].module()(x, torch.tensor([5, 900])), wanted, atol=1e-4)


@pytest.mark.filterwarnings("ignore:model.ckpt. no averaged parameters")
def test_coming_from_the_published_code(tmp_path):
    file = tmp_path / "configs/lsun_churches-ldm-kl-8.yaml"
    file.parent.mkdir()
    file.write_text(json.dumps(examples.config()))  # JSON is YAML
    examples.write(tmp_path / "model.ckpt", examples.checkpoint(examples.weights()))
    found = run_all(DOCS / "published.md")
    assert found["pipe"].vae is None
    assert finite(found["pipe"].unet, torch.randn(1, *found["pipe"].shape), torch.tensor(5))


def test_a_new_model(capsys):
    found = run_all(DOCS / "new-model.md", {"steps=20": "steps=6"})
    shown = capsys.readouterr().out
    first, second = (part for part in shown.split("layers quantized")[:2])
    assert re.search(r"level_mlp\.0 +Linear +4 +8 ", first)
    assert re.search(r"level_mlp\.0 +Linear +5 +float", second)
    for part in (first, second):
        assert re.search(r"stem +Conv2d +float", part)
    assert found["image"].isfinite().all()
    assert found["found"].bits <= 4


def test_a_new_model_without_a_family_has_to_name_its_timestep():
    model, quantize, *_ = programs(DOCS / "new-model.md")
    known = run(model)
    with pytest.raises(tdq.TDQError, match="timestep argument cannot be found"):
        run(quantize, known, **{', timestep="level"': ""})


def test_extending(capsys):
    few = {"(pipe, 16)": "(pipe, 2, steps=6)", "steps=20": "steps=2"}
    found = run_all(DOCS / "extending.md", few)
    assert tdq.load(tdq.save(found["frozen"], "saved")) is not None
    assert len(found["images"]) == 4
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        assert torch.allclose(found["fast"](x, t), found["frozen"](x, t), atol=1e-5)
    assert "my float" in str(tdq.summary(found["fast"]))
    layers = [layer for _, layer in tdq.layers.quantized_layers(found["frozen"])]
    steps = [layer.weight_quantizer.step for layer in layers]
    assert steps
    assert all(torch.equal(s, 2 ** s.log2().round()) for s in steps)
    values = [float(line) for line in capsys.readouterr().out.splitlines() if line[:2] == "0."]
    assert values
    assert 0 < values[-1] < 1


def test_the_scale_law_keeps_the_contract():
    law, use, *_ = programs(DOCS / "extending.md")
    known = run(law)
    curve = known["CurveScale"]
    assert SCALES["curve"] is curve
    for grid in contract.GRIDS:
        contract.test_scalar_time(curve(0.05), grid, torch.tensor(31.5))
        contract.test_mixed_times_equal_one_at_a_time(curve(0.05), grid)
        contract.test_values_are_the_nearest_grid_points_outside_training(curve(0.05), grid)
        contract.test_trains_without_nan_at_any_width(curve(0.05), grid)
    contract.test_survives_a_cast(curve(0.05))
    # It follows a parabola exactly, and its table is it.
    bowl = torch.linspace(-1, 1, 1000).square().exp()[None]
    times, weights = torch.arange(1000.0), torch.ones(1, 1000)
    (fitted,) = curve.from_curves(Curves(times, bowl, weights, [grid], (0.0, 999.0), 0), {})
    t = torch.arange(1000)
    assert torch.allclose(fitted(t, t, grid), bowl, rtol=1e-4)
    contract.test_frozen_equals_live_at_every_training_timestep(fitted)
    contract.test_round_trip_through_settings_and_a_state_dict(fitted)
    known = run(use, known, **{"(pipe, 16)": "(pipe, 2, steps=6)", "steps=20": "steps=2"})
    laws = {type(q.scale) for _, q in activation_quantizers(known["model"])}
    assert laws == {curve}
    tables = [q.scale for _, q in activation_quantizers(known["frozen"])]
    assert tables
    assert all(isinstance(scale, TableScale) and len(scale.knots) == 1000 for scale in tables)


def test_readme(monkeypatch):
    compiling = importlib.import_module("tdquant.lowering.backends")
    monkeypatch.setitem(compiling.PREFERENCE, "cpu", ("onednn", "reference"))
    (program,) = programs(README, "Use")
    few = {"count=16": "count=2, steps=4", "16, pipe.shape, steps=50": "2, pipe.shape, steps=2"}
    known = run(program, **few)
    assert known["images"].shape == (2, *known["pipe"].shape)
    x, t = torch.randn(1, *known["pipe"].shape), torch.tensor(500)
    again = tdq.load("cats-w4a8")
    assert torch.equal(again(x, t), known["frozen"](x, t))
    # A value on the border of two codes may fall to either side, and moves the image a little.
    assert (known["fast"](x, t) - again(x, t)).norm() <= 0.05 * again(x, t).norm()


def test_readme_fits_two_screens():
    assert len(README.read_text().splitlines()) <= 120


@pytest.mark.filterwarnings("ignore:kernel distance")
def test_evaluation(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TDQUANT_CACHE", str(tmp_path / "cache"))
    tdq.save(small_frozen(), "cats-w4a8")
    judged = 'reference="cats:heldout:8", metrics=["kid"], resamples=2, progress=False'
    fewer = {
        "images=1000, steps=20": f"images=4, steps=2, {judged}",
        '"runs/judged")': f'"runs/judged", {judged})',
    }
    found = run_all(DOCS / "evaluation.md", fewer)
    assert found["judged"].metrics["kid"] == found["exact"].metrics["kid"]
    assert re.search(r"^w4a8 +cats-w4a8 W4A8", capsys.readouterr().out, re.M)
    assert found["record"].paired["images"] == 4
    assert (tmp_path / "report.html").stat().st_size > 10_000
    page = (DOCS / "evaluation.md").read_text()
    for key in found["record"].to_dict():
        assert f"`{key}`" in page, key


def test_verdicts_on_the_page_are_those_of_the_studies():
    text = (DOCS / "study.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| ([a-z ]+) \| ", text, re.M))
    results = sorted((DOCS.parent / "studies" / "results").glob("*.json"))
    assert {file.stem: json.loads(file.read_text())["verdict"] for file in results} == told


def test_the_report_that_ships_is_of_the_committed_results():
    page = html.unescape((DOCS / "report.html").read_text())
    for file in (DOCS.parent / "studies" / "results").glob("*.json"):
        study = json.loads(file.read_text())
        assert study["title"] in page
        assert study["measured"] in page, file.stem
    assert len(page) < 5_000_000


def test_flags_on_the_evaluation_page_exist():
    from tdquant.cli.main import build_parser

    (commands,) = build_parser()._subparsers._group_actions
    known = set()
    for name in ("evaluate", "report"):
        for action in commands.choices[name]._actions:
            known |= set(action.option_strings)
    page = (DOCS / "evaluation.md").read_text()
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page))
    assert told
    assert told <= known


def test_the_study_page_has_every_study():
    studies = DOCS.parent / "studies"
    names = {file.stem for file in studies.glob("*.py") if "def tell(" in file.read_text()}
    page = (DOCS / "study.md").read_text()
    assert names
    assert {name for name in names if f"python studies/{name}.py" in page} == names
    assert {name for name in names if f"| `{name}` |" in page} == names
