import subprocess
import sys

import pytest

import tdquant as tdq
from tdquant.cli import main
from tdquant.cli import sample as cli_sample
from tdquant.cli import train as cli_train
from tdquant.cli.options import _OPTIONS, call_arguments
from tdquant.errors import TDQError
from tests.conftest import quantized


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert "demo" in out
    assert "inspect" in out


def test_every_command_has_help_without_importing_torch():
    program = """
import contextlib, io, sys
from tdquant.cli import main, published_main
from tdquant.cli.main import build_parser
(group,) = build_parser()._subparsers._group_actions
calls = [(main, [[name, "--help"]]) for name in group.choices] + [
    (main, [["--help"]]),
    (published_main, ["train", ["--help"]]),
    (published_main, ["sample", ["--help"]]),
]
for run, words in calls:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            run(*words)
        except SystemExit as end:
            assert end.code == 0, words
    assert out.getvalue().startswith("usage: "), words
heavy = {"torch", "numpy", "diffusers", "pydantic", "safetensors"} & set(sys.modules)
print(len(calls), *sorted(heavy))
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert out.stderr == ""
    assert out.stdout.split() == ["12"]


def test_shared_options_are_spelled_alike_in_every_command():
    from tdquant.cli.main import build_parser

    (group,) = build_parser()._subparsers._group_actions
    flags = {}
    for parser in group.choices.values():
        for action in parser._actions:
            shown = action.help != "==SUPPRESS=="
            if shown and action.dest in _OPTIONS and action.option_strings:
                flags.setdefault(action.dest, set()).add(tuple(action.option_strings))
    assert flags.pop("steps") >= {("--steps",)}
    assert all(len(spellings) == 1 for spellings in flags.values()), flags


def test_the_published_flags_mean_the_same_as_ours():
    train, sample = (module.published_parser() for module in (cli_train, cli_sample))
    words = ["--n_bit_w", "4", "--n_bit_a", "3", "--use_dynamic", "--max_steps", "7"]
    found = train.parse_args([*words, "--scale_lr", "False", "--base", "a", "b"])
    assert (found.weights, found.activations, found.scale, found.steps) == (4, 3, "temporal", 7)
    assert (found.scale_lr, found.base, found.train) == (False, ["a", "b"], False)
    usual = train.parse_args([])
    assert (usual.weights, usual.activations, usual.scale, usual.steps) == (8, 8, None, None)
    words = ["--ckpt", "c", "--n_samples", "3", "--custom_steps", "9", "--batch_size", "100"]
    found = sample.parse_args([*words, "-v", "--n_bit_w", "4", "--name", "x"])
    assert (found.model, found.images, found.steps, found.batch) == ("c", 3, 9, 100)
    assert (found.vanilla, found.n_bit_w, found.n_bit_a, found.name) == (True, 4, None, "x")
    usual = sample.parse_args(["--ckpt", "c"])
    assert (usual.images, usual.steps, usual.batch, usual.seed) == (5, 200, 32, 23)


def test_bytes_that_are_no_text_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["sample", "--model", "tiny", "--prompt", "caf\udce9"])
    assert "not UTF-8" in capsys.readouterr().err
    with pytest.raises(TDQError, match="not UTF-8"):
        call_arguments(["prompt=caf\udce9"])


def test_values_of_arguments_are_json_or_text():
    words = ["guidance_scale=5", "prompt=a=b", "sizes=[1, 2]", "--height=8"]
    expected = {"guidance_scale": 5, "prompt": "a=b", "sizes": [1, 2], "height": 8}
    assert call_arguments(words) == expected


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
