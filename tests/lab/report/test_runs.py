"""Which runs stand together, what they are called, and in which order."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
from PIL import Image

from tdquant.lab.evaluation import evaluate_images
from tdquant.lab.report.formats import Layers
from tdquant.lab.report.labels import bits_of, in_order, label_runs
from tdquant.lab.report.layers import brief, explorer, moves, relative_steps
from tdquant.lab.report.pictures import Pictures
from tdquant.lab.report.reading import read_inputs
from tdquant.lab.report.runs import comparable, section
from tests.lab.evaluation.small import Random
from tests.lab.report.made_up import MODELS, face, layers, record, write_run


def opened(tmp_path, *specs):
    for i, (model, changed) in enumerate(specs):
        write_run(tmp_path / f"run{i}", model, 1, with_layers=False, **changed)
    return read_inputs([tmp_path]).runs


def sampling(**changed):
    return {"sampling": {**record(*MODELS[0]).sampling, **changed}}


def test_runs_that_may_not_be_compared_are_apart_and_the_reason_is_said(tmp_path):
    runs = opened(tmp_path, (MODELS[2], {}), (MODELS[3], sampling(images=100)), (MODELS[4], {}))
    assert [[r.path.name for r in g] for g in comparable(runs)] == [["run0", "run2"], ["run1"]]
    made = section(runs)(Pictures())
    assert "Table 1 of 2" in made
    assert "5000 and 100 images" in made
    assert made.count("Not to be compared with the other tables") == 2


def test_what_asks_for_care_stays_in_one_table(tmp_path):
    runs = opened(tmp_path, (MODELS[4], {}), (MODELS[4], sampling(steps=20)))
    assert len(comparable(runs)) == 1
    made = section(runs)(Pictures())
    assert "Compare with care: sampler steps 50 and 20" in made
    assert "Table 1" not in made


def test_runs_are_called_by_what_differs(tmp_path):
    runs = opened(tmp_path, (MODELS[3], {}), (MODELS[4], {}), (MODELS[4], sampling(steps=20)),
                  (MODELS[4], sampling(steps=20)))  # fmt: skip
    assert label_runs(runs) == [
        "W4A4 static 50 steps",
        "W4A4 temporal 50 steps",
        "W4A4 temporal 20 steps (run2)",
        "W4A4 temporal 20 steps (run3)",
    ]
    assert label_runs(runs[:1]) == ["cats-ddpm W4A4 static"]
    apart = [replace(runs[2], path=tmp_path / seed / "w4a4") for seed in ("a", "b")]
    assert label_runs(apart) == ["W4A4 temporal (a/w4a4)", "W4A4 temporal (b/w4a4)"]
    assert label_runs([]) == []


def test_runs_are_ordered_by_bits_then_steps(tmp_path):
    runs = opened(tmp_path, (MODELS[4], sampling(steps=10)), (MODELS[4], {}), (MODELS[0], {}),
                  (MODELS[1], {}))  # fmt: skip
    assert [run.path.name for run in in_order(runs)] == ["run2", "run3", "run1", "run0"]
    assert bits_of("W4A8") == (4, 8)
    assert bits_of("float") > bits_of("W8A8") > bits_of("mixed") > bits_of("W4A4")


def test_samples_of_other_noise_are_apart(tmp_path):
    runs = opened(tmp_path, (MODELS[0], {}), (MODELS[1], sampling(seed=7)), (MODELS[2], {}))
    made = section(runs)(Pictures())
    assert "Samples from the same noise (seed 0)" in made
    assert "Samples of W8A8 static seed 7<" in made
    assert made.count("The same place is the same noise") == 1


def test_given_images_are_shown_by_their_grid(tmp_path):
    for name, count in (("some", 5), ("others", 40)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(face(i, 0.1)).save(tmp_path / name / f"{i}.png")
        evaluate_images(tmp_path / name, tmp_path / "runs" / name, reference=None, metrics=[],
                        network=Random(), device="cpu", progress=False)  # fmt: skip
    write_run(tmp_path / "runs" / "w4a4", MODELS[4], 1, with_layers=False)
    *runs, model = read_inputs([tmp_path / "runs"]).runs
    assert "unknown" not in "".join(label_runs([*runs, model]))
    assert all(run.grid and not run.pictures for run in runs)
    made = section(runs)(Pictures())
    for words in ("Images of some</h3>", 'alt="The first 5 images of some"',
                  "The first 5 of 5, none chosen.", "Images of others</h3>",
                  "The first 36 of 40, none chosen."):  # fmt: skip
        assert words in made
    # Nobody knows their noise: they do not stand beside each other, whatever is in the folder.
    assert "The same place is the same noise" not in made
    found = re.findall(r'base64,([^"]*)" alt="The first 5', made)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[0]))).convert("RGB"))
    written = np.asarray(Image.open(tmp_path / "runs" / "some" / "grid.png"))
    assert np.array_equal(shown, written)
    assert shown.shape == (2 * 34 + 2, 3 * 34 + 2, 3)


def test_a_model_whose_pictures_were_removed_has_its_grid(tmp_path):
    write_run(tmp_path / "run", MODELS[4], 0, with_layers=False)
    Image.new("RGB", (6 * 130 + 2,) * 2).save(tmp_path / "run" / "grid.png")
    made = section(read_inputs([tmp_path]).runs)(Pictures(0.5))
    assert "The first 36 of 5\u202f000, none chosen." in made
    assert "Samples of cats-ddpm W4A4 temporal</h3>" in made
    assert 'width="391"' in made  # large tiles are made smaller, as elsewhere


def test_a_layer_that_is_seldom_called_has_a_row_and_no_curve():
    content = layers(4)
    content["layers"][1]["steps"] = content["layers"][1]["steps"][:3]
    content["layers"][2]["steps"] = []
    made = explorer(Layers(**content), "x")
    assert made.count("data-layer=") == 2
    assert made.count('<th scope="row"><label>') == 4


def test_a_run_without_pictures_or_costs_is_shown(tmp_path):
    write_run(tmp_path / "run", MODELS[4], 0, cost={}, sqnr=None, paired=None, reference=None)
    made = section(read_inputs([tmp_path]).runs)(Pictures())
    assert "Quality and cost" in made
    assert "Samples" not in made
    assert "Speed" not in made


def test_relative_steps_have_no_mean_and_no_size():
    content = Layers(**layers(5)).layers
    relative = relative_steps(content)
    assert np.abs(relative.mean(axis=1)).max() < 1e-12
    larger = [
        layer.model_copy(update={"steps": [7 * s for s in layer.steps]}) for layer in content
    ]
    assert np.allclose(relative, relative_steps(larger))


def test_layers_that_do_not_move_have_a_table_and_no_map():
    still = Layers(**layers(4, temporal=False))
    assert not moves(still)
    assert brief(still) == "4 layers"
    made = explorer(still, "x")
    assert "the same at every timestep" in made
    assert "heat" not in made
    assert made.count("<tr>") == 5
    assert "No quantized layer" in explorer(still.model_copy(update={"layers": []}), "x")


def test_layers_are_listed_by_error():
    content = Layers(**layers(6))
    made = explorer(content, "x")
    order = sorted(content.layers, key=lambda layer: -layer.error)
    places = [made.rindex(f"<span>{layer.path}</span>") for layer in order]
    assert places == sorted(places)
    assert 'aria-sort="descending"' in made
