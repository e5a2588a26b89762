"""``tdquant report``."""

import webbrowser

from tdquant.cli import main
from tests.lab.report.made_up import write_progress, write_run


def test_report_writes_a_page_and_opens_it(tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    write_run(tmp_path / "run", pictures=1, with_layers=False)
    write_progress(tmp_path / "other")
    out = tmp_path / "page.html"
    words = [str(tmp_path / "run"), str(tmp_path / "other"), "-o", str(out), "--title", "Mine"]
    assert main(["report", *words]) == 0
    assert "<title>Mine</title>" in out.read_text()
    assert f"wrote {out}" in capsys.readouterr().out
    assert opened == []
    assert main(["report", *words, "--open"]) == 0
    assert opened == [out.as_uri()]


def test_report_names_what_it_cannot_show(tmp_path, capsys):
    (tmp_path / "x.json").write_text("{")
    assert main(["report", str(tmp_path / "x.json"), "-o", str(tmp_path / "page.html")]) == 1
    assert "x.json" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
