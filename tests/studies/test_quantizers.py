"""The page of other quantizers: which rows are compared, and what is said of them."""

import json
from pathlib import Path

import pytest

from tests.studies.test_studies import STUDIES, studies

__all__ = ["studies"]


def row(project, median, weights=1.0, inputs=1.0, setting="W8A8", model="m", size=100):
    return {
        "model": model, "setting": setting, "project": project, "median": median, "bytes": size,
        "weights": weights, "inputs": inputs,
    }  # fmt: skip


def test_ours_is_compared_with_those_that_quantize_as_much(studies):
    module = studies("quantizers")
    ours, edges = row("tdquant, default", 2.0, weights=0.8), row("tdquant, edges of 8 bits", 5.0)
    static, few = row("tdquant, static", 9.0), row("torchao", 0.1, inputs=0.2)
    alike, whole = row("SDNQ", 4.0, weights=0.8), row("NNCF", 1.0)
    failed = {"model": "m", "setting": "W8A8", "project": "SDNQ, Hadamard", "failed": "no"}
    rows = [ours, edges, static, few, alike, whole, failed, row("SDNQ", 1.0, setting="W4A8")]
    assert module.pairs(rows) == [(ours, alike), (edges, whole)]
    verdict, clauses = module.told(rows)
    assert verdict == "holds in part"
    assert clauses[0] == "In 1 of 2 pairs the other's median error is smaller"
    assert clauses[1].startswith("strongest counter-example: NNCF on m at W8A8, where ours is 5 ")


@pytest.mark.parametrize(("other", "verdict"), [(4.0, "holds"), (1.0, "does not hold")])
def test_verdicts(studies, other, verdict):
    module = studies("quantizers")
    found, clauses = module.told([row("tdquant, default", 2.0), row("SDNQ", other)])
    assert found == verdict
    assert clauses[-1] == "one seed of calibration: no interval"
    assert module.told([]) == ("not finished", [])


def test_what_is_committed_follows_from_the_committed_rows(studies):
    module = studies("quantizers")
    study = json.loads((Path(STUDIES) / "results" / "quantizers.json").read_text())
    rows = json.loads(module.PEERS.read_text())["rows"]
    verdict, clauses = module.told(rows)
    assert (study["verdict"], study["measured"]) == (verdict, module.sentence(clauses))
    assert study["tables"][0]["rows"] == [module.shown(each) for each in rows]
