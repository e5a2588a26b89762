"""The ledger of the studies, and what was committed with it."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

STUDIES = Path(__file__).parents[2] / "studies"
NAMES = (
    "claims", "qat", "fair_lsq", "ptq", "distances", "fast_forward", "ablations", "movement",
    "gain", "cost",
    "alternatives",
)  # fmt: skip
MODULES = (*(file.stem for file in STUDIES.glob("*.py")), "small_models")
VERDICTS = {"holds", "holds in part", "does not hold", "not finished"}
WORDS = ("title", "question", "claim", "measured", "verdict", "command")


@pytest.fixture
def studies(monkeypatch, tmp_path):
    """Imports a module of the studies, which writes to a folder of the test."""
    monkeypatch.syspath_prepend(str(STUDIES))

    def load(name):
        ledger = importlib.import_module("ledger")
        monkeypatch.setattr(ledger, "RESULTS", tmp_path)
        return importlib.import_module(name)

    yield load
    for name in [n for n in sys.modules if n.partition(".")[0] in MODULES]:
        sys.modules.pop(name)


def test_a_run_is_made_once_and_survives(studies):
    ledger = studies("ledger")
    made = []

    def run():
        made.append(1)
        return {"frechet": 3.0}

    first = ledger.Ledger("some", ("model", "seed"), {"images": 4})
    first.make({"model": "a", "seed": 0}, run)
    again = ledger.Ledger("some", ("model", "seed"), {"images": 4})
    assert again.make({"model": "a", "seed": 0}, run)["frechet"] == 3.0
    assert len(made) == 1
    again.make({"model": "a", "seed": 1}, run)
    assert len(made) == 2
    with pytest.raises(SystemExit, match="other settings"):
        ledger.Ledger("some", ("model", "seed"), {"images": 5})


def test_a_summary_keeps_the_machine_of_the_runs(studies, monkeypatch):
    ledger = studies("ledger")
    monkeypatch.setattr(ledger, "machine", lambda: {"processor": "one", "threads": 2})
    ledger.Ledger("some", ("model", "seed"), {}).make({"model": "a", "seed": 0}, dict)
    monkeypatch.setattr(ledger, "machine", lambda: {"processor": "one", "threads": 1})
    book = ledger.Ledger("some", ("model", "seed"), {})
    book.write()
    assert json.loads(book.file.read_text())["machine"]["threads"] == 2
    book.make({"model": "a", "seed": 1}, dict)
    assert json.loads(book.file.read_text())["machine"]["threads"] == 1


def test_made_again_a_run_is_shown_beside_the_first_and_not_kept(studies, capsys):
    ledger = studies("ledger")
    book = ledger.Ledger("some", ("model", "seed"), {})
    book.make({"model": "a", "seed": 0}, lambda: {"frechet": 3.0})
    book.make_together({"model": "b"}, lambda: [{"seed": s, "frechet": 1.0} for s in (0, 1)])
    book.make_together({"model": "b"}, lambda: pytest.fail("made twice"))
    before = book.file.read_text()
    book.again = True
    assert book.make({"model": "a", "seed": 0}, lambda: {"frechet": 4.0})["frechet"] == 3.0
    book.make_together({"model": "b"}, lambda: [{"seed": 1, "frechet": 2.0}])
    book.write(verdict="other")
    assert book.file.read_text() == before
    said = capsys.readouterr().out
    assert "model=a seed=0 frechet=4" in said
    assert "in the file: frechet=3" in said
    assert "model=b seed=1 frechet=2" in said


def test_a_run_of_another_machine_says_so(studies, monkeypatch):
    ledger = studies("ledger")
    monkeypatch.setattr(ledger, "machine", lambda: {"processor": "one"})
    ledger.Ledger("some", ("model", "seed"), {}).make({"model": "a", "seed": 0}, dict)
    monkeypatch.setattr(ledger, "machine", lambda: {"processor": "two"})
    book = ledger.Ledger("some", ("model", "seed"), {})
    book.make({"model": "a", "seed": 1}, dict)
    study = json.loads(book.file.read_text())
    assert study["machine"] == {"processor": "one"}
    assert [run.get("processor") for run in study["runs"]] == [None, "two"]
    assert book.elsewhere() == " Of 2 runs 1 on two."


def test_two_processes_share_the_runs_and_one_file(studies):
    ledger = studies("ledger")
    books = [ledger.Ledger("some", ("model", "seed"), {}) for _ in range(2)]
    made = []
    for i, book in enumerate(books):
        book.share = (i, 2)
    for seed in range(12):
        for i, book in enumerate(books):
            key = {"model": "a", "seed": seed}
            book.make(key, lambda i=i, seed=seed: made.append((seed, i)) or {"frechet": 1.0})
    assert sorted(seed for seed, _ in made) == list(range(12))
    assert {i for _, i in made} == {0, 1}
    assert {r["seed"] for r in ledger.Ledger("some", ("model", "seed"), {}).runs} == set(range(12))


def test_a_run_that_fails_loses_no_other(studies):
    ledger = studies("ledger")
    book = ledger.Ledger("some", ("model", "seed"), {})
    book.make({"model": "a", "seed": 0}, lambda: {"frechet": 1.0})
    with pytest.raises(ZeroDivisionError):
        book.make({"model": "b", "seed": 0}, lambda: {"frechet": 1 / 0})
    assert [r["model"] for r in ledger.Ledger("some", ("model", "seed"), {}).runs] == ["a"]


def test_rows_over_seeds_and_ratios_on_the_seeds_that_both_have(studies):
    ledger = studies("ledger")
    book = ledger.Ledger("some", ("method", "seed"), {})
    for seed, (a, b) in enumerate([(2.0, 1.0), (4.0, 3.0)]):
        book.make({"method": "LSQ", "seed": seed}, lambda a=a: {"frechet": a})
        book.make({"method": "TDQ", "seed": seed}, lambda b=b: {"frechet": b})
    book.make({"method": "LSQ", "seed": 2}, lambda: {"frechet": 100.0})
    rows = {r["method"]: r for r in book.over_seeds(book.runs, ("frechet",), "python x.py")}
    assert rows["TDQ"]["frechet"] == 2.0
    assert (rows["TDQ"]["frechet_low"], rows["TDQ"]["frechet_high"]) == (1.0, 3.0)
    assert rows["LSQ"]["seeds"] == 3
    assert rows["TDQ"]["command"] == 'python x.py --method "TDQ" --again'
    found = ledger.ratio(book.runs, "frechet", {"method": "LSQ"}, {"method": "TDQ"})
    assert found == pytest.approx(4 / 6)
    assert ledger.ratio(book.runs, "frechet", {"method": "PACT"}, {"method": "TDQ"}) is None


def test_no_infinity_reaches_a_file(studies, tmp_path):
    ledger = studies("ledger")
    book = ledger.Ledger("some", ("model", "seed"), {})
    book.make({"model": "a", "seed": 0}, lambda: {"frechet": float("nan")})
    assert json.loads((tmp_path / "some.json").read_text())["runs"][0]["frechet"] is None


def test_strips_are_told_of_where_they_are(studies, tmp_path):
    made = studies("strips").Strips("some", "Bits", "bits", ["W8A8", "W4A4"], ["float", "A, b"])
    images = torch.zeros(20, 3, 4, 4)
    assert made.told() == []
    made.keep(images, "float")
    (grid,) = made.told()
    files = dict.fromkeys(["W8A8", "W4A4"], "samples/some-float.png")
    assert grid["rows"] == [{"name": "float", "files": files}]
    made.keep(images, "A, b", "W8A8")
    (grid,) = made.told()
    assert grid["rows"][1] == {"name": "A, b", "files": {"W8A8": "samples/some-a-b-W8A8.png"}}
    made.keep(images, "A, b", "W4A4")
    (grid,) = made.told()
    assert grid["rows"][1]["files"]["W4A4"] == "samples/some-a-b-W4A4.png"
    with Image.open(tmp_path / grid["rows"][1]["files"]["W4A4"]) as picture:
        assert picture.size == (16 * 4, 4)


def test_what_keeps_a_strip_keeps_the_float_models_beside_it(studies):
    made = studies("strips").Strips("some", "Bits", "bits", ["W4A4"], ["float", "A"])
    images = torch.zeros(20, 3, 4, 4)
    assert made.keeper("B", "W4A4", images) is None
    assert not made.file("float").exists()
    made.keeper("A", "W4A4", images)(images)
    assert [row["name"] for row in made.told()[0]["rows"]] == ["float", "A"]


@pytest.mark.parametrize("name", NAMES)
def test_a_study_says_what_is_missing_before_it_has_runs(studies, name, monkeypatch, tmp_path):
    module = studies(name)
    monkeypatch.setattr(sys, "argv", [name, "--summary"])
    module.main()
    study = json.loads((tmp_path / f"{name}.json").read_text())
    assert study["verdict"] == "not finished"
    assert study["format"] == "tdquant-study"
    assert all(study[word] for word in WORDS if word != "measured")


@pytest.mark.parametrize(
    ("tdq", "judged", "verdict"),
    [(50.0, 90.0, "holds"), (85.0, 86.0, "does not hold"), (120.0, 90.0, "does not hold")],
)
def test_training_is_compared_with_the_better_lsq(studies, tdq, judged, verdict):
    module, ledger = studies("qat"), studies("ledger")
    distances = dict.fromkeys(module.METHODS, 100.0)
    distances |= {"TDQ": tdq, "LSQ, judged start": judged}
    book = ledger.Ledger("qat", module.KEYS, module.SETTINGS)
    for key in ledger.grid(seed=range(3), bits=module.BITS, model=module.MODELS, method=distances):
        for rate in module.RATES[: 2 if key["seed"] == 0 else 1]:
            values = dict.fromkeys(module.VALUES, 1.0)
            values |= {"frechet": distances[key["method"]], "loss": rate}
            book.make({**key, "rate": rate}, lambda values=values: values)
    module.tell(book)
    assert book.kept["verdict"] == verdict
    assert f"W4A4 {tdq / judged:.2f}x" in book.kept["measured"]
    del book.runs[-1]
    module.tell(book)
    assert book.kept["verdict"] == "not finished"


def told(studies, name, runs):
    """What a study says of made-up runs."""
    module, ledger = studies(name), studies("ledger")
    book = ledger.Ledger(name, module.KEYS, module.SETTINGS)
    book.runs = list(runs(module, ledger))
    module.tell(book)
    return book.kept["verdict"], book.kept["measured"]


def test_training_is_compared_with_every_law_that_the_paper_names(studies):
    def runs(module, ledger):
        distances = dict.fromkeys(module.METHODS, 100.0) | {"TDQ": 50.0, "S1000": 45.0}
        axes = {"seed": range(3), "bits": module.BITS, "model": module.MODELS}
        for key in ledger.grid(**axes, method=distances, rate=module.RATES):
            values = dict.fromkeys(module.VALUES, 1.0)
            yield {**key, **values, "frechet": distances[key["method"]], "loss": key["rate"]}

    verdict, measured = told(studies, "qat", runs)
    assert verdict == "holds in part"
    assert "over that of NIPQ 0.50x, input-dynamic 0.50x, S1000 1.11x" in measured


@pytest.mark.parametrize(
    ("temporal", "verdict"), [(0.5, "holds"), (1.01, "holds"), (1.5, "does not hold")]
)
def test_calibration_holds_where_no_pair_is_worse(studies, temporal, verdict):
    def runs(module, ledger):
        axes = {"model": module.MODELS, "bits": module.BITS, "seed": range(3)}
        for key in ledger.grid(method=module.METHODS, **axes):
            alone = module.ALONE.get(key["method"])
            for scale in [alone] if alone else module.SCALES:
                value = temporal if scale == "temporal" else 1.0
                yield {**key, "scale": scale, **dict.fromkeys(module.VALUES, value)}

    found, measured = told(studies, "ptq", runs)
    assert found == verdict
    assert f"W8A5 {temporal:.2f}x" in measured
    assert told(studies, "ptq", lambda *given: list(runs(*given))[:-1])[0] == "not finished"


@pytest.mark.parametrize(
    ("grown", "lsq", "verdict"),
    [
        ({"TDQ": 1.1, "TDQ, corrected": 1.1}, 1.3, "holds"),
        ({"TDQ": 1.1, "TDQ, corrected": 1.2}, 1.3, "holds in part"),
        ({"TDQ": 1.1, "TDQ, corrected": 1.1}, 1.0, "holds in part"),
        ({"TDQ": 1.3, "TDQ, corrected": 1.1}, 1.4, "does not hold"),
    ],
)
def test_fewer_steps_are_judged_by_how_the_ratio_to_float_grows(studies, grown, lsq, verdict):
    def runs(module, ledger):
        for key in ledger.grid(
            method=module.METHODS, scheduler=module.SCHEDULERS, steps=module.STEPS
        ):
            base = 1.0 if key["method"] == "float" else 2.0
            last = {"float": 1.0, **grown}.get(key["method"], lsq)
            distance = base * (last if key["steps"] == 10 else 1.0) * 1000 / key["steps"]
            errors = {"paired_mse": 0.1, "paired_median": 0.1}
            yield {**key, "seed": 0, "frechet": distance, **errors}

    assert told(studies, "fast_forward", runs)[0] == verdict


@pytest.mark.parametrize(
    ("depth", "table", "verdict"),
    [
        (1.1, 1.1, "holds"), (1.0, 1.1, "holds in part"), (1.1, 1.0, "holds in part"),
        (0.9, 0.9, "does not hold"),
    ],
)  # fmt: skip
def test_four_layers_are_best_if_every_other_depth_is_worse(studies, depth, table, verdict):
    def runs(module, ledger):
        for part, choices in module.CHOICES.items():
            for choice in choices:
                ratio = {"depth": depth, "law": table}.get(part, 1.0)
                values = dict.fromkeys(module.VALUES, ratio)
                for seed in range(3):
                    yield {"part": part, "choice": choice, "seed": seed, **values}

    assert told(studies, "ablations", runs)[0] == verdict


@pytest.mark.parametrize(
    ("pixel", "latent", "verdict"),
    [
        ([0.8] * 39 + [0.6] * 23 + [0.1] * 38, [0.6] * 50 + [0.1] * 50, "holds"),
        ([0.8] * 100, [0.6] * 50 + [0.1] * 50, "holds in part"),
        ([0.8] * 39 + [0.6] * 23 + [0.1] * 38, [0.6] * 90 + [0.1] * 10, "holds in part"),
        ([0.1] * 100, [0.1] * 100, "does not hold"),
    ],
)
def test_movement_is_compared_with_the_reported_shares(studies, pixel, latent, verdict):
    def runs(module, ledger):
        for model, found in zip(module.MODELS, (pixel, latent), strict=True):
            for i, r in enumerate(found):
                numbers = dict.fromkeys(("range4", "range8", "saved4", "saved8"), 0.5)
                numbers |= dict.fromkeys(("error4", "static4"), 0.1)
                about = {"layer": f"mid.{i}", "type": "Conv2d", "times": [0], "steps4": [1.0]}
                yield {"model": model, "seed": 0, "r": -r, **about, **numbers}

    assert told(studies, "movement", runs)[0] == verdict


@pytest.mark.parametrize(
    ("slower", "verdict"), [(1.0, "holds"), (1.03, "holds in part"), (1.2, "does not hold")]
)
def test_cost_is_that_of_temporal_over_static_calls(studies, slower, verdict):
    def runs(module, ledger):
        for model in module.MODELS:
            for work, batch in (("training step", 32), ("call", 1), ("call", 32)):
                key = {"model": model, "work": work, "batch": batch, "seed": 0}
                for scale, value in (("static", 1.0), ("temporal", slower)):
                    for backend in ("reference", "onednn"):
                        numbers = {"milliseconds": value, "ratio": value}
                        yield {
                            **key,
                            "bits": "W4A8",
                            "scale": scale,
                            "backend": backend,
                            **numbers,
                        }

    found, measured = told(studies, "cost", runs)
    assert found == verdict
    assert f"{slower:.3f} in the median" in measured


@pytest.mark.parametrize(
    "file", sorted((STUDIES / "results").glob("*.json")), ids=lambda f: f.stem
)
def test_what_is_committed_can_be_reported(file):
    study = json.loads(file.read_text())
    assert study["verdict"] in VERDICTS
    assert all(study[word] for word in WORDS)
    assert not study["runs"] or study["machine"]["processor"]
    for table in study["tables"]:
        keys = {column["key"] for column in table["columns"]}
        for row in table["rows"]:
            assert set(table["group"]) <= set(row)
            assert keys & set(row)
            assert row.get("command", "python studies/ --again").startswith("python studies/")
            assert row.get("command", " --again").endswith(" --again")
    for strip in study["samples"]:
        for row in strip["rows"]:
            assert row["files"].keys() <= set(map(str, strip["values"]))
            assert all((file.parent / name).exists() for name in row["files"].values())


def test_a_training_that_was_stopped_is_no_result(studies):
    from tdquant.training import Training

    last_losses = studies("protocol").last_losses
    losses = [9.0] * 16 + [1.0, 2.0, 3.0, 4.0]
    done = Training(torch.nn.Identity(), 20, True, losses, 1.0)
    assert last_losses(done) == 2.5
    assert last_losses(Training(torch.nn.Identity(), 1, True, [3.0], 1.0)) == 3.0
    with pytest.raises(SystemExit, match="stopped at step 20"):
        last_losses(Training(torch.nn.Identity(), 20, False, losses, 1.0))
