"""Parts of claims: rules, comparisons, and that what is committed follows from the runs."""

import json
import math
from pathlib import Path

import pytest
import torch

from tdquant.lab.report.formats import StudyFile
from tests.studies.test_studies import STUDIES, studies

__all__ = ["studies"]


@pytest.fixture
def rules(studies):
    return studies("claim_rules")


@pytest.mark.parametrize(
    ("low", "high", "below", "above"),
    [
        (0.2, 0.4, "holds", "does not hold"),
        (0.6, 0.8, "does not hold", "holds"),
        (0.4, 0.6, "not decided", "not decided"),
        (math.nan, math.nan, "not decided", "not decided"),
    ],
)
def test_the_whole_interval_decides(rules, low, high, below, above):
    value = (low + high) / 2
    assert rules.Evidence("x", value, low, high, 0.5).verdict == below
    assert rules.Evidence("x", value, low, high, 0.5, above=True).verdict == above


def test_one_comparison_against_a_part_decides_it_and_is_named(rules):
    good = rules.Evidence("good", 0.2, 0.1, 0.3, 0.5)
    bad = rules.Evidence("bad", 0.8, 0.6, 1.0, 0.5)
    worse = rules.Evidence("worse", 0.9, 0.8, 1.0, 0.5)
    wide = rules.Evidence("wide", 0.5, 0.1, 0.9, 0.5)
    once = rules.Evidence("once", 9.0, math.nan, math.nan, 0.5)
    assert rules.decided([good, bad, once, worse]) == ("does not hold", worse)
    assert rules.decided([good, wide]) == ("not decided", wide)
    assert rules.decided([good, once])[0] == "not decided"
    assert rules.decided([good]) == ("holds", good)
    # Above a bound the other end is the near one.
    low, high = (rules.Evidence(str(v), v, v - 0.1, v + 0.1, 0.5, above=True) for v in (0.7, 0.9))
    assert rules.decided([high, low]) == ("holds", low)


def test_intervals_over_seeds_hold_the_truth_as_often_as_they_say(rules):
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(2000, 3, generator=rng, dtype=torch.float64)
    found = [rules.over_seeds("", row.tolist(), 0.0) for row in values]
    missed = sum(each.verdict != "not decided" for each in found) / len(found)
    assert 0.035 < missed < 0.065
    ratio = rules.over_seeds("", [0.5, 0.5, 0.5], 0.9, ratio=True)
    assert (ratio.value, ratio.verdict) == (pytest.approx(0.5), "holds")
    assert rules.over_seeds("", [0.5, 0.5], 0.9, ratio=True).verdict == "not decided"


def test_intervals_of_shares_are_those_of_the_literature(rules):
    # Newcombe's example of 1998: 56 of 70 and 48 of 80.
    assert rules.wilson(56, 70) == pytest.approx((0.6917, 0.8767), abs=1e-3)
    assert rules.wilson(0, 5)[0] == pytest.approx(0, abs=1e-9)
    a, b = ([i < n for i in range(of)] for n, of in ((56, 70), (48, 80)))
    found = rules.lead("", a, b)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-3)


def write(folder, name, runs, **settings):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"runs": runs, "settings": settings}))


def test_training_is_compared_by_excess_at_the_chosen_rate(studies, tmp_path):
    evidence = studies("claim_evidence")
    base = {"model": "m", "bits": "W4A4"}
    runs = [{"model": "m", "bits": "float", "method": "float", "rate": None, "seed": 0,
             "frechet": 50.0}]  # fmt: skip
    for seed in range(3):
        for method, rate, frechet, loss in (
            ("TDQ", 1, 60.0, 0.1), ("LSQ", 1, 70.0, 0.2), ("LSQ", 2, 10.0, 0.3)
        ):  # fmt: skip
            runs.append(base | {"method": method, "rate": rate, "seed": seed, "loss": loss,
                                "frechet": frechet + seed})  # fmt: skip
    write(tmp_path, "qat", runs)
    (found,) = evidence.trained("TDQ", ("LSQ", "PACT"), ("W4A4",))("m")
    assert found.value == pytest.approx(-10 / 50)
    assert found.verdict == "holds"
    assert evidence.trained("TDQ", ("LSQ",), ("W4A4",))("other") == []


def test_distances_are_told_in_shares_of_the_float_models(studies, tmp_path):
    evidence = studies("claim_evidence")
    runs = []
    for arm, value in (("float", 20.0), ("static", 30.0), (evidence.DEFAULT, 22.0)):
        draws = " ".join(str(value + x) for x in (-0.1, 0.1, 0.0))
        runs.append({"model": "m", "bits": "W8A5" if arm != "float" else arm, "arm": arm,
                     "seed": 0, "net frechet": value, "net frechet draws": draws})  # fmt: skip
    write(tmp_path, "distances", runs, images=100)
    (found,) = evidence.judged(("frechet",))("m")
    assert found.what == "W8A5, frechet by net"
    assert (found.value, found.verdict) == (pytest.approx(-8 / 20), "holds")
    assert evidence.judged(("kid",))("m") == []


def test_calls_are_compared_pair_by_pair(studies, tmp_path):
    evidence = studies("claim_evidence")
    runs = [
        {"model": "m", "work": "call", "bits": "W8A8", "batch": batch, "backend": "openvino",
         "scale": scale, "milliseconds": batch * (slower if scale == "temporal" else 1)}
        for batch, slower in enumerate([0.9, *[1.0] * 14, 1.3], 1)
        for scale in ("static", "temporal")
    ]  # fmt: skip
    write(tmp_path, "cost", runs)
    (found,) = evidence.called("m")
    assert (found.value, found.low, found.high, found.verdict) == (1.0, 1.0, 1.0, "holds")


def test_nothing_is_claimed_before_there_are_runs(studies, tmp_path):
    claims = studies("claims")
    assert all(models == {} for _, models in claims.judge())
    assert claims.told(claims.judge()) == [
        f"{sum(len(part.models) for part in claims.PARTS)} not run"
    ]


def test_what_is_committed_follows_from_the_committed_runs(studies, monkeypatch):
    claims, ledger = studies("claims"), studies("ledger")
    results = Path(STUDIES) / "results"
    monkeypatch.setattr(ledger, "RESULTS", results)
    study = StudyFile.read(results / "claims.json", "the file")
    found = claims.judge()
    assert study.measured == claims.sentence(claims.told(found)), "python studies/claims.py"
    told = [row.model_dump(exclude_unset=True) for row in study.matrix.rows]
    assert told == [claims.row(*each) for each in found], "python studies/claims.py"
