import json

import pytest

from tdquant.cli import main
from tdquant.lab.demo import Settings
from tdquant.lab.demo import run as demo_run
from tdquant.lab.demo.run import DemoRow
from tdquant.lab.demo.table import cells, text_table
from tdquant.models import load_embedded


@pytest.mark.parametrize(
    ("model", "share"), [("tiny", 0.6), pytest.param("cats-ddpm", 0.25, marks=pytest.mark.slow)]
)
def test_smallest_run_writes_table_picture_and_record(model, share, tmp_path, capsys, monkeypatch):
    small = Settings(images=12, steps=4, calibration=2, judged=4, trial=(2, 2))
    monkeypatch.setattr(demo_run, "load_embedded", lambda name: load_embedded(model))
    monkeypatch.setattr(Settings, "quick", classmethod(lambda cls, seed=0: small))
    monkeypatch.setattr(demo_run, "WIDTHS", ((4, 4),))
    arms = {name: demo_run.ARMS[name] for name in ("temporal", "default")}
    monkeypatch.setattr(demo_run, "ARMS", arms)
    monkeypatch.setattr("tdquant.lab.demo.picture.ROWS", (("float", ""), ("W4A4", "temporal")))
    assert main(["demo", "--quick", "--quiet", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    for word in ("float", "W4A4", "temporal", "default"):
        assert word in out
    assert (tmp_path / "out" / "demo.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "out" / "demo.json").read_text()
    record = json.loads(text, parse_constant=pytest.fail)  # no Infinity, which is no JSON
    assert len(record["rows"]) == 3
    assert record["machine"]["cores"] >= 1
    rows = {(r["bits"], r["scale"]): r for r in record["rows"]}
    assert rows["W4A4", "default"]["sqnr"] > rows["W4A4", "temporal"]["sqnr"]
    assert rows["W4A4", "temporal"]["megabytes"] < share * rows["float", ""]["megabytes"]


ROWS = [
    DemoRow("float", "", 10.0, 0.0, 0.0, float("inf"), 9.6),
    DemoRow("W4A4", "static", 55.5, 0.061, 0.0042, 9.3, 1.9),
]


def test_tables():
    text = text_table(ROWS)
    assert len({len(line) for line in text.splitlines() if not line.startswith("-")}) == 1
    assert "55.50" in text
    assert cells(ROWS[0])[:6] == ("float", "-", "10.00", "-", "-", "-")
    assert cells(ROWS[1])[3:5] == ("0.06100", "0.004200")
    assert [line.split()[0].strip("-") for line in text.splitlines()] == [
        "bits", "", "float", "", "W4A4",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 5])
def test_quick_is_smaller(seed):
    quick, full = Settings.quick(seed), Settings(seed=seed)
    assert quick.images < full.images
    assert quick.seed == full.seed == seed
