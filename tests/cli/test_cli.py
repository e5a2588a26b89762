import subprocess
import sys

import pytest

import tdquant as tdq
from tdquant.cli import main

from ..conftest import quantized


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert "demo" in out
    assert "inspect" in out


@pytest.mark.parametrize("command", ["demo", "inspect", "bench", "export"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "usage: tdquant" in capsys.readouterr().out


def test_inspect(tmp_path, capsys):
    path = tdq.save(tdq.freeze(quantized(weights=4)), tmp_path / "m")
    assert main(["inspect", str(path)]) == 0
    assert "1000 knots" in capsys.readouterr().out


def test_errors_are_explained_and_not_traced(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "no tdquant.json" in err
    assert "Traceback" not in err


def test_no_command():
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_runs_as_a_program():
    out = subprocess.run(
        [sys.executable, "-m", "tdquant", "--version"], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == f"tdquant {tdq.__version__}"
