import subprocess
import sys

import pytest

import tdquant as tdq
from tdquant.cli import main
from tests.conftest import quantized


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


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "--ckpt", "cats-ddpm", "--custom-steps=3"],
        ["evaluate", "cats-ddpm", "--step=10"],
        ["train", "--n-bit-w=4"],
    ],
)
def test_misspelt_flags_are_no_overrides(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert f"unrecognized arguments: {words[-1]}" in capsys.readouterr().err


def test_embedded_models_have_nothing_to_override(capsys, tmp_path):
    assert main(["sample", "--ckpt", "cats-ddpm", "--logdir", str(tmp_path), "a.b=3"]) == 1
    assert "no configuration to change by a.b=3" in capsys.readouterr().err


def test_what_the_system_refuses_is_a_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--quick", "--out", str(tmp_path / "file")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("tdquant: ")
    assert "Traceback" not in err
