"""Commands that run in a process of the user's, as in a notebook, leave it as it was, whether they
work or fail.
"""

import contextlib
import io

import pytest
import torch

from tdquant.cli import main
from tdquant.lab.metrics import NETWORKS
from tests.cli.test_bench import Pretended
from tests.contracts.politeness import difference, of_process
from tests.lab.bench.saved import saved_unet
from tests.lab.evaluation import small
from tests.lab.runs.tiny import workspace

EVALUATE = ["--resamples", "2", "--network", "random", "--seed", "5", "--metrics", "frechet"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(autouse=True)
def _networks_and_workers(tmp_path_factory, monkeypatch):
    monkeypatch.setitem(NETWORKS, "random", lambda weights, download: small.Random())
    monkeypatch.setenv("TDQUANT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr("tdquant.lab.bench.run.Worker", Pretended)


def words(name, place, number):
    """The words of a command whose output is of this number."""
    out = str(place / f"{name} {number}")
    if name == "evaluate":
        saved = str(small.saved())
    else:
        saved = str(place / "saved" if (place / "saved").exists() else saved_unet(place / "saved"))
    pictures = str(small.reference())
    if name in ("train", "quantize") and not (place / "config.yaml").exists():
        workspace(place)
    return {
        "inspect": ["inspect", saved],
        "bench": [
            "bench", "--model", saved, "--backends", "float,auto", "--checked", "1",
            "--quiet", "--out", f"{out}.json",
        ],
        "evaluate": [
            "evaluate", saved, "--images", "4", "--steps", "2", "--paired", "2", "--backend",
            "simulated", "--reference", pictures, "--quiet", "--out", out, *EVALUATE,
        ],
        "evaluate images": [
            "evaluate", "--images", pictures, "--reference", pictures, "--resamples", "2",
            "--network", "random", "--metrics", "frechet", "--quiet", "--out", out,
        ],
        "export": ["export", "--model", saved, "--out", f"{out}.xml"],
        "quantize": [
            "quantize", "--model", str(place / "model.safetensors"), "--config",
            str(place / "config.yaml"), "--out", out, "--steps", "4", "--seed", "3", "--quiet",
        ],
        "train": [
            "train", "--base", str(place / "config.yaml"), "--ckpt",
            str(place / "model.safetensors"), "--n_bit_w", "4", "--n_bit_a", "4", "--out", out,
            "--seed", "3", "--quiet",
        ],
    }[name]  # fmt: skip


NAMES = ("inspect", "bench", "evaluate images")
SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("evaluate", "export", "quantize", "train")
]


def run(given):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as e:
        return main(given), e.getvalue()


@pytest.mark.parametrize("name", [*NAMES, *SLOW])
def test_a_command_leaves_the_process(name, place):
    status, said = run(words(name, place, 1))  # imports what it needs, which may leave traces
    assert status == 0, said
    process = of_process()
    status, said = run(words(name, place, 2))
    assert status == 0, said
    assert difference(process, of_process()) == []


FAILING = {
    "no model": (["inspect", "no such model"], 1),
    "an unknown backend": (["bench", "--backends", "no", "--threads", "2"], 1),
    "no device": (["bench", "--device", "no", "--threads", "2"], 1),
    "contradicting devices": (
        ["evaluate", "tiny", "--gpus", "0", "--device", "cpu", "--threads", "2", "--out", "o"], 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILING)
def test_a_command_that_fails_leaves_the_process(case):
    given, status = FAILING[case]
    process = of_process()
    assert run(given)[0] == status
    assert difference(process, of_process()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("of an engine")], ids=type)
def test_an_exception_in_the_middle_leaves_the_process(error, place, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    run(words("evaluate images", place, 3))
    process = of_process()
    monkeypatch.setattr("tests.lab.evaluation.small.Random.run", fail)
    given = words("evaluate images", place, 4)
    if isinstance(error, KeyboardInterrupt):
        assert run(given)[0] == 130
    else:
        with pytest.raises(RuntimeError, match="of an engine"):
            run(given)
    assert difference(process, of_process()) == []
    assert torch.is_grad_enabled()
