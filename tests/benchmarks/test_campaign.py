"""A short form of the campaign: see docs/reliability.md for the long one."""

import json
import sys
import tempfile
import time
from pathlib import Path

import pytest
from benchmarks.campaign import __main__ as command
from benchmarks.campaign import files, kills, mutations

QUICK = ("saved model", "recorded calls", "job folder", "training checkpoint")


@pytest.fixture
def open_folder():
    """A folder that another user may look into, whom root becomes for unreadable files."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_damaged_files_are_errors_or_what_was_there(open_folder):
    said = []
    options = {"formats": QUICK, "say": said.append}
    run = files.run(open_folder, range(40), 0, (0, 1), time.monotonic() + 60, **options)
    table = files.counted(run)
    assert not said
    assert set(table) == set(QUICK)
    assert all("refused" in outcomes for outcomes in table.values())


def test_damage_is_a_function_of_its_seed(tmp_path):
    found = []
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.json").write_text('{"a": [1, 2, {"b": "text"}]}')
        done = [mutations.mutate(tmp_path / name, seed) for seed in range(5, 7)]
        found.append((done, (tmp_path / name / "x.json").read_bytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("writer", ["save"])
def test_killed_writers_go_on(writer, tmp_path):
    said = []
    run = kills.run(tmp_path, 3, 0, (0, 1), time.monotonic() + 60, [writer], say=said.append)
    found = list(run)
    assert not said
    assert {case["at"] for case in found} == {"moment", "rename"}


def test_killed_writers_that_failed_are_tried_again(tmp_path, monkeypatch):
    tried, failing = [], {1, 2}

    def run(*args, passed):
        for case in sorted(set(range(4)) - passed):
            tried.append(case)
            outcome = "litter" if case in failing else "the same"
            yield {"case": case, "writer": "save", "at": "moment", "outcome": outcome}

    monkeypatch.setattr(kills, "run", run)
    monkeypatch.setattr(sys, "argv", ["campaign", "kills", "--out", str(tmp_path)])

    def table():
        command.main()
        results = json.loads((tmp_path / "results.json").read_text())["kills"]
        return results["table"]["save, at a moment"], [one["case"] for one in results["failures"]]

    assert table() == ({"the same": 2, "litter": 2}, [1, 2])
    failing.remove(1)
    assert table() == ({"the same": 3, "litter": 1}, [2])
    assert tried == [0, 1, 2, 3, 1, 2]


def test_damaged_files_that_failed_are_tried_again(tmp_path, monkeypatch):
    tried, failing = [], {1, 2}

    def run(out, numbers, seed, share, deadline):
        for number in numbers:
            tried.append(number)
            outcome = "another exception" if number in failing else "refused"
            yield {"format": "calls", "seed": f"{seed}-{number}", "outcome": outcome}

    monkeypatch.setattr(files, "run", run)
    monkeypatch.setattr(sys, "argv", ["campaign", "files", "--cases", "4", "--out", str(tmp_path)])

    def table():
        command.main()
        return json.loads((tmp_path / "results.json").read_text())["files"]["table"]["calls"]

    assert table() == {"refused": 2, "another exception": 2}
    failing.remove(1)
    assert table() == {"refused": 3, "another exception": 1}
    failing.clear()
    assert table() == {"refused": 4}
    assert tried == [0, 1, 2, 3, 1, 2, 2]
