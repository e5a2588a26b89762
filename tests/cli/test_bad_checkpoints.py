"""Every command on files that are no checkpoints, or not the configuration's: one clear error, and
nothing written.
"""

import json
import pickle
import warnings

import pytest
import torch

from tdquant.cli import main
from tests.cli.test_published_commands import write_lightning
from tests.files.checkpoints.test_unpickling import BOMBS, Calls, archive
from tests.lab.runs.tiny import CONFIG, workspace
from tests.models.compvis.examples import checkpoint, read, stage, weights, write

UNET = CONFIG["model"]["params"]["unet_config"]["params"]
STAGE = CONFIG["model"]["params"]["first_stage_config"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return workspace(tmp_path_factory.mktemp("workspace"))


def parts(place, *prefixes):
    """The tensors of the good checkpoint without those below some prefixes."""
    return {
        k: v for k, v in read(place / "model.safetensors").items() if not k.startswith(prefixes)
    }


def truncated(place, file):
    write_lightning(file, parts(place, "none"))
    file.write_bytes(file.read_bytes()[:-3000])


def other_unet(place, file):
    unet = weights({**UNET, "model_channels": 64})
    write_lightning(file, parts(place, "model.diffusion_model.") | checkpoint(unet))


def other_stage(place, file):
    ddconfig = {**STAGE["params"]["ddconfig"], "double_z": False}
    node = {"target": "x.VQModel", "params": {"ddconfig": ddconfig, "embed_dim": 4, "n_embed": 8}}
    state = parts(place, "first_stage_model.")
    write_lightning(file, state | checkpoint({}, stage(node)))


CASES = {
    "empty": (lambda place, file: file.write_bytes(b""), "cannot be read"),
    "text": (lambda place, file: file.write_text("<html>404</html>"), "cannot be read"),
    "half written": (truncated, "cannot be read"),
    "an attack": (
        lambda place, file: torch.save(
            {"state_dict": parts(place, "none"), "x": Calls(exec, "open('ran', 'w')")}, file
        ),
        "no file of data needs",
    ),
    "a bare attack": (
        lambda place, file: file.write_bytes(pickle.dumps(Calls(exec, "open('ran', 'w')"))),
        "cannot be read",
    ),
    "a bomb": (
        lambda place, file: archive(file, BOMBS["text of 4 GB"]),
        "cannot be read",
    ),
    "another model": (
        lambda place, file: write(file, {"lm_head.weight": torch.zeros(2)}),
        "no tensors named model.diffusion_model.",
    ),
    "no UNet": (
        lambda place, file: write_lightning(file, parts(place, "model.diffusion_model.")),
        "no tensors named model.diffusion_model.",
    ),
    "another UNet": (other_unet, "does not fit the UNet"),
    "no first stage": (
        lambda place, file: write_lightning(file, parts(place, "first_stage_model.")),
        "no first stage",
    ),
    "another first stage": (other_stage, "first stage in the checkpoint is a VQ model"),
    "no factor": (
        lambda place, file: write_lightning(file, parts(place, "scale_factor")),
        "0.2458",
    ),
    "missing": (lambda place, file: None, "no such"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_error_and_nothing_written(place, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    make, words = CASES[name]
    file, config = tmp_path / "model.ckpt", str(place / "config.yaml")
    make(place, file)
    before = sorted(tmp_path.iterdir())
    commands = [
        ["train", "--base", config, "--ckpt", str(file), "--quiet"],
        ["sample", "--config", config, "--ckpt", str(file), "--quiet"],
        ["evaluate", str(file), "--config", config, "--out", "judged", "--images", "4", "--quiet"],
    ]
    if name != "missing":  # a name without a file may be one on the hub
        commands.append(
            ["quantize", "--model", str(file), "--config", config, "--out", "out", "--quiet"]
        )
    for command in commands:
        assert main(command) == 1
        said = capsys.readouterr().err
        assert words in said, said
        assert "Traceback" not in said
        assert sorted(tmp_path.iterdir()) == before


def test_data_that_is_missing(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = json.loads((place / "config.yaml").read_text())
    config["data"]["params"]["train"] = {"target": "ldm.data.lsun.LSUNChurchesTrain"}
    (tmp_path / "lsun.yaml").write_text(json.dumps(config))
    words = ["train", "--base", "lsun.yaml", "--ckpt", str(place / "model.safetensors")]
    assert main([*words, "--quiet"]) == 1
    said = capsys.readouterr().err
    for told in ("data/lsun/churches", str(tmp_path), "data_root/NAME", "txt_file"):
        assert told in said
    assert [p.name for p in tmp_path.iterdir()] == ["lsun.yaml"]
