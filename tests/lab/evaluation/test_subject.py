"""What a record says of a model."""

import copy

from tdquant.calibration.record import RemedyRecord
from tdquant.calibration.report import RemedyTrial
from tdquant.lab.evaluation.subject import describe_model, digest_of


def described(model):
    return describe_model(model, "tiny", "here", digest_of(model))


def test_remedies_are_told_without_their_layers(frozen):
    trial = RemedyTrial("rounding", True, 0.2, 0.1, "codes")
    plain = described(frozen)
    changed = copy.deepcopy(frozen)
    changed.tdq.remedies = RemedyRecord("single calls", (trial,), layers={"linear": ("rounding",)})
    told = described(changed)
    assert told["remedies"]["trials"][0]["after"] == 0.1
    assert not {"layers", "macs"} & set(told["remedies"])
    assert told["bits"] == plain["bits"] == "W4A6"
    assert told["digest"] == plain["digest"]


def test_bits_that_a_budget_chose_are_mixed(frozen):
    trial = RemedyTrial("bits", True, 0.2, 0.1, "bits of 3 weights")
    frozen.tdq.remedies = RemedyRecord("single calls", (trial,))
    assert described(frozen)["bits"] == "mixed"


def test_models_without_a_record(frozen):
    frozen.tdq.remedies = None
    assert described(frozen)["remedies"] is None
