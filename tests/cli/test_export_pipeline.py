"""``tdquant export --pipeline``: from a quantized pipeline in a folder to a folder of graphs."""

import pytest

import tdquant as tdq
from tdquant.cli import main
from tests.integrations.pipelines.whole import assert_close, quantized
from tests.pipelines import PIPELINES, sample


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A quantized pipeline, saved, and what ``quantized`` gives."""
    folder = tmp_path_factory.mktemp("saved")
    made = quantized("ddim")
    made[0].save_pretrained(folder / "ddim")
    PIPELINES["ddim"]()[0].save_pretrained(folder / "float")
    return folder, made


def run(source, name, out, *words):
    words = ["export", "--pipeline", str(source[0] / name), "--out", str(out), *words]
    return main(words)


def test_a_saved_pipeline_to_a_folder_that_draws_the_same(source, tmp_path, capsys):
    assert run(source, "ddim", tmp_path / "out", "--quiet", "batch_size=2") == 0
    size = sum(file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert f"wrote {tmp_path / 'out'}, {size / 1e6:.2f} MB" in capsys.readouterr().out
    pipe, call, exact = source[1]
    assert_close(sample(tdq.open_pipeline(tmp_path / "out"), call), sample(pipe, call), exact)


def test_what_cannot_be_exported_is_explained(source, tmp_path, capsys):
    out = tmp_path / "out"
    for name, words, said in (
        ("nowhere", (), "no such model"),
        ("float", (), "unet is not quantized"),
        ("ddim", ("depth=3",), "takes no depth"),
        ("ddim", ("--portable",), "--portable with a diffusers pipeline"),
    ):
        assert run(source, name, out, *words) == 1
        assert said in capsys.readouterr().err
    unet = str(source[0] / "ddim" / "unet")
    assert main(["export", "--model", unet, "--out", f"{out}.xml", "height=8"]) == 1
    assert "no configuration to change by height=8" in capsys.readouterr().err
    assert main(["export", "--model", unet, "--out", f"{out}.xml", "--weights-8bit"]) == 1
    assert "--weights-8bit with a folder of tdq.save" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", "--out", str(out)])
    assert not list(tmp_path.iterdir())


def test_places_and_formats_are_looked_at_before_a_model_is_opened(
    source, tmp_path, monkeypatch, capsys
):
    def opened(*_arguments, **_options):
        raise AssertionError("opened")

    monkeypatch.setattr("tdquant.lab.opening.open_model", opened)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    unet = "ddim/unet"
    for name, out, said in (
        ("ddim", tmp_path / "mine", "there is something already"),
        ("ddim", tmp_path / "mine" / "file" / "out", "cannot be written"),
        (unet, tmp_path / "mine", "no exporter"),
        (unet, tmp_path / "mine" / "file" / "out.xml", "cannot be written"),
    ):
        assert run(source, name, out) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["bench", "export"])
def test_a_denoiser_that_takes_more_than_a_sample_and_a_time(command, tmp_path, capsys):
    pipe = quantized("stable_diffusion_1")[0]
    pipe.unet.save_pretrained(tmp_path / "unet")
    words = ["--out", str(tmp_path / "out.onnx"), "--quiet", "--model", str(tmp_path / "unet")]
    assert main([command, *words]) == 1
    error = capsys.readouterr().err
    assert "a sample and a timestep alone" in error
    assert "encoder_hidden_states" in error
    assert ("--pipeline" if command == "export" else "tdquant evaluate") in error
