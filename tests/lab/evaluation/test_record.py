import json
import math

import pytest

from tdquant.errors import StorageError
from tdquant.lab.evaluation import Record, comparison_table, incomparable, record_table
from tdquant.lab.evaluation.comparison import WARNING
from tdquant.lab.evaluation.progress import Progress
from tdquant.lab.evaluation.record import SamplingCost


def replace(record, **fields):
    return record.model_copy(update=fields)


def test_a_record_reads_back_equal(whole, tmp_path):
    _, record = whole
    record.write(tmp_path / "r.json")
    assert Record.read(tmp_path / "r.json") == record
    assert Record.from_dict(record.to_dict()) == record


def test_records_of_earlier_versions_are_read(whole):
    record, spec = whole[1], whole[1].to_dict()
    assert "complete" not in spec
    assert Record.from_dict(spec | {"complete": True}) == record
    for name in ("reference", "paired", "sqnr", "asked", "command"):
        del spec[name]
    bare = Record.from_dict(spec)
    assert (bare.reference, bare.paired, bare.sqnr, bare.asked) == (None, None, None, "")


def test_what_a_record_may_lack_is_left_out_of_tables(whole):
    record = replace(
        whole[1],
        model={"name": "m"},
        sampling={"images": 3, "steps": 2},
        reference={"name": "set"},
        metrics={"frechet": {"title": "FID", "value": 1.0}},
        paired={"against": {}, "images": 3, "metrics": {"mse": {"title": "MSE", "value": None}}},
        cost={},
    )
    again = Record.from_dict(record.to_dict())
    text = record_table(again)
    assert "m: 3 images, 2 steps\n" in text
    assert "against set; paired with 3 images of another model" in text
    assert "FID" in comparison_table([again, whole[1]])


def test_numbers_that_are_not_finite_become_null(whole, tmp_path):
    _, record = whole
    record = replace(record, sqnr={"times": [1.0], "decibels": [math.inf]})
    record.write(tmp_path / "r.json")
    assert "Infinity" not in (tmp_path / "r.json").read_text()
    assert Record.read(tmp_path / "r.json").sqnr == {"times": [1.0], "decibels": [None]}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": 99}, "newer"),
        ({"version": "1"}, "version"),
        ({"version": 0}, "version 0"),
        ({"version": True}, "version True"),
        ({"format": "other"}, "foreign format"),
        ({"metrics": None}, "metrics"),
        ({"network": 3}, "network"),
        ({"sampling": {}}, "sampling.images is missing"),
        ({"sampling": {"images": 4, "size": [8]}}, "sampling.size"),
        ({"metrics": {"frechet": {}}}, "metrics.frechet.title is missing"),
        ({"model": {}}, "model.name is missing"),
        ({"reference": {"images": 3}}, "reference.name is missing"),
        ({"paired": {"images": 3, "metrics": {}}}, "paired.against is missing"),
        ({"paired": {"images": 3, "against": {}, "metrics": {"mse": 1}}}, "paired.metrics.mse"),
        ({"sqnr": {"times": [1, 2], "decibels": [3]}}, "different lengths"),
        ({"cost": {"images_per_second": "fast"}}, "cost.images_per_second"),
    ],
)
def test_other_files_are_refused(whole, tmp_path, change, word):
    file = tmp_path / "record.json"
    file.write_text(json.dumps(whole[1].to_dict() | change))
    with pytest.raises(StorageError, match=word):
        Record.read(tmp_path)


def test_damaged_and_lacking_records(whole, tmp_path):
    text = json.dumps(whole[1].to_dict())
    (tmp_path / "cut.json").write_text(text[: len(text) // 2])
    with pytest.raises(StorageError, match="damaged"):
        Record.read(tmp_path / "cut.json")
    spec = whole[1].to_dict()
    del spec["cost"]
    (tmp_path / "lacks.json").write_text(json.dumps(spec))
    with pytest.raises(StorageError, match="cost"):
        Record.read(tmp_path / "lacks.json")
    with pytest.raises(StorageError, match="no record"):
        Record.read(tmp_path)


def test_a_run_still_being_written_is_told(tmp_path):
    state = {"stage": "sampling", "done": 3, "of": 12, "updated": "2026-01-01"}
    (tmp_path / "progress.json").write_text(json.dumps(state))
    with pytest.raises(StorageError, match="still being written") as caught:
        Record.read(tmp_path)
    assert "sampling: 3 of 12" in str(caught.value)


def test_the_cost_of_images_survives_an_interruption(tmp_path):
    state = Progress(tmp_path)
    state.cost = SamplingCost(seconds=2.5, made=7)
    state.update("sampling", 7, 12)
    written = json.loads((tmp_path / "progress.json").read_text())
    assert (written["format"], written["version"]) == ("tdquant-progress", 1)
    assert Progress(tmp_path).cost == state.cost
    before = {key: written[key] for key in ("stage", "done", "of", "updated", "facts")}
    (tmp_path / "progress.json").write_text(json.dumps(before | {"facts": {}}))  # as 0.1 wrote it
    assert Progress(tmp_path).cost == SamplingCost()
    (tmp_path / "progress.json").write_text(json.dumps(before))
    assert Progress(tmp_path).cost == state.cost
    (tmp_path / "progress.json").write_text("half")
    assert Progress(tmp_path).cost == SamplingCost()


def changed(record, section, **fields):
    return replace(record, **{section: {**getattr(record, section), **fields}})


@pytest.mark.parametrize(
    ("section", "fields", "word"),
    [
        ("network", {"digest": "0"}, "networks"),
        ("reference", {"digest": "0"}, "reference digest"),
        ("reference", {"preprocessing": "resized"}, "preprocessing"),
        ("sampling", {"images": 5}, "12 and 5 images"),
        ("sampling", {"seed": 5}, "seeds"),
        ("sampling", {"size": [8, 8]}, r"images of [16, 16] and [8, 8]"),
        ("sampling", {"call": {"class_labels": [7]}}, "class_labels None and [7]"),
        ("paired", {"images": 5}, "paired"),
    ],
)
def test_what_must_not_be_compared(whole, section, fields, word):
    a = whole[1]
    b = changed(a, section, **fields)
    reasons = incomparable(a, b)
    assert len(reasons) == 1
    assert word in reasons[0]
    assert not reasons[0].startswith(WARNING)
    assert "not comparable: a and b: " + reasons[0] in comparison_table([a, b], ["a", "b"])


def test_another_sampler_is_a_warning_and_equals_are_comparable(whole):
    a = whole[1]
    assert incomparable(a, a) == []
    b = changed(a, "sampling", steps=7)
    assert incomparable(a, b) == [f"{WARNING}sampler steps 2 and 7"]
    table = comparison_table([a, b], ["a", "b"])
    assert "with care: a and b: sampler steps 2 and 7" in table
    assert "not comparable" not in table
    for part, other, words in (
        ("sampling", {"call": {"guidance_scale": 5}}, "guidance_scale None and 5"),
        ("sampling", {"batch": 7}, "speeds in batches of 4 and 7"),
        ("sampling", {"preprocessing": "resized"}, "images RGB 16x16, as they are and resized"),
        ("machine", {"device": "H100"}, "speeds on two machines"),
    ):
        assert incomparable(a, changed(a, part, **other)) == [WARNING + words]
    c = replace(a, reference=None)
    assert incomparable(a, c) == ["one has no reference set"]


def test_tables_show_every_metric_with_its_interval(whole):
    text = record_table(whole[1])
    for measured in whole[1].metrics.values():
        assert measured["title"] in text
        assert f"{measured['low']:.4g}, {measured['high']:.4g}" in text
    assert "dB" in text


def test_pixels_and_not_latents_say_what_size_images_have(whole):
    a = whole[1]
    assert incomparable(a, changed(a, "sampling", shape=[4, 4, 4])) == []
    before = [changed(a, "sampling", size=None, shape=shape) for shape in ([3, 16, 16], [4, 4, 4])]
    assert "images of" in incomparable(*before)[0]


def test_clip_scores_of_two_models_are_not_compared(whole):
    a, b = (
        changed(whole[1], "metrics", clip={"title": "CLIP score", "value": 20.0, "network": name})
        for name in "xy"
    )
    assert incomparable(a, b) == ["CLIP score by two networks"]


def lpips(record, network=None):
    value = {"title": "LPIPS", "value": 0.1} | ({"network": network} if network else {})
    return changed(record, "paired", metrics={"lpips": value})


def test_lpips_by_other_weights_is_not_compared(whole):
    a, b, old = (lpips(whole[1], name) for name in ("x", "y", None))
    assert incomparable(a, b) == ["LPIPS by two networks"]
    assert incomparable(a, old) == ["LPIPS by an unknown network"]
    assert incomparable(a, a) == incomparable(old, old) == []
