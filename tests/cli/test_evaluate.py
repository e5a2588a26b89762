import json
import shutil
from importlib import import_module

import pytest
import torch

import tdquant as tdq
from tdquant.cli import main
from tdquant.diffusion.pictures import save_png
from tdquant.errors import ModelError, StorageError
from tdquant.lab.evaluation import Record
from tdquant.lab.metrics import NETWORKS
from tdquant.lab.opening import Opened, open_model
from tests.conftest import quantized
from tests.lab.evaluation import small


@pytest.fixture(autouse=True)
def _random_network(tmp_path_factory, monkeypatch):
    monkeypatch.setitem(NETWORKS, "random", lambda weights, download: small.Random())
    monkeypatch.setenv("TDQUANT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def saved():
    return small.saved()


def evaluate(*words):
    given = ["--resamples", "8", "--reference", str(small.reference()), "--network", "random"]
    if words[0] != "--images":
        given += ["--steps", "2", "--batch", "4", "--paired", "6"]
    given += ["--quiet"] if "--images" in words else ["--quiet", "--images", "12"]
    return main(["evaluate", *given, *map(str, words)])


def test_a_saved_model_finds_its_float_twin(saved, tmp_path, capsys):
    assert evaluate(saved, "--out", tmp_path / "run", "--backend", "simulated") == 0
    out = capsys.readouterr().out
    record = Record.read(tmp_path / "run")
    by_hand = small.run(tmp_path / "by-hand")
    assert record.metrics == by_hand.metrics
    assert record.paired == by_hand.paired
    assert record.model["name"] == "tiny-w4a4"
    assert record.model["source"] == str(saved)
    assert record.command.startswith("tdquant evaluate ")
    assert "Frechet Random distance" in out
    assert str(tmp_path / "run" / "record.json") in out


def test_flags_reach_the_record(saved, tmp_path):
    flags = ["--metrics", "frechet, recall,", "--no-paired", "--seed", "3", "--scheduler", "euler"]
    assert evaluate(saved, "--out", tmp_path / "run", *flags) == 0
    record = Record.read(tmp_path / "run")
    assert list(record.metrics) == ["frechet", "recall"]
    assert record.paired is None
    assert record.sampling["seed"] == 3
    assert record.sampling["scheduler"]["name"] == "EulerDiscreteScheduler"
    assert record.sampling["backend"] == "openvino"  # auto


def test_several_models_and_comparing(saved, tmp_path, capsys):
    assert evaluate("tiny", saved, "--out", tmp_path, "--backend", "auto") == 0
    assert "run " in capsys.readouterr().out
    runs = [str(tmp_path / name) for name in ("tiny", "tiny-w4a4")]
    assert main(["evaluate", "--compare", *runs]) == 0
    out = capsys.readouterr().out
    assert all(run in out for run in runs)
    assert "not comparable" not in out
    file = tmp_path / "tiny" / "record.json"
    spec = json.loads(file.read_text())
    spec["network"]["digest"] = "0"
    file.write_text(json.dumps(spec))
    assert main(["evaluate", "--compare", *runs]) == 0
    assert f"not comparable: {runs[0]} and {runs[1]}: feature networks" in capsys.readouterr().out


def test_a_folder_of_images(tmp_path):
    reference = small.reference()
    assert evaluate("--images", reference, "--out", tmp_path / "run") == 0
    record = Record.read(tmp_path / "run")
    assert record.sampling["images"] == 16
    assert record.metrics["frechet"]["value"] == pytest.approx(0, abs=1e-6)


def test_the_first_of_a_folder_of_images(tmp_path, capsys):
    given = f"{small.reference()}:6"
    assert evaluate("--images", given, "--out", tmp_path / "run", "--metrics", "frechet") == 0
    record = Record.read(tmp_path / "run")
    assert record.sampling["images"] == record.metrics["frechet"]["images"] == 6
    assert record.model["source"] == str(small.reference().resolve())
    assert evaluate("--images", f"{small.reference()}:17", "--out", tmp_path / "more") == 1
    assert "17 images of 16" in capsys.readouterr().err


def test_a_shape_is_also_that_of_the_model_to_compare_with(monkeypatch, tmp_path, capsys):
    opened = []

    def open_one(source, **options):
        opened.append((source, options["shape"]))
        if len(opened) == 2:
            raise ModelError("both are open")
        return Opened("saved", source, None)

    opening = import_module("tdquant.lab.opening")
    monkeypatch.setattr(opening, "open_model", open_one)
    words = ["tiny", "--against", "b", "--shape", "3,8,8", "--out", tmp_path / "run"]
    assert evaluate(*words) == 1
    assert "both are open" in capsys.readouterr().err
    assert opened == [("tiny", (3, 8, 8)), ("b", (3, 8, 8))]


def test_damaged_records_are_not_compared(saved, tmp_path, capsys):
    options = ["--metrics", "frechet", "--no-paired", "--backend", "simulated"]
    assert evaluate(saved, "--out", tmp_path / "run", *options) == 0
    file = tmp_path / "run" / "record.json"
    whole = json.loads(file.read_text())
    for change, words in (
        ({"sampling": {}}, "sampling.images is missing"),
        ({"metrics": {"frechet": {}}}, "metrics.frechet.title is missing"),
    ):
        file.write_text(json.dumps(whole | change))
        assert main(["evaluate", "--compare", str(tmp_path / "run")]) == 1
        told = capsys.readouterr().err
        assert words in told
        assert str(file) in told


@pytest.mark.parametrize(
    "words",
    [
        ["MODEL", "a=5", "--out", "r"],
        ["a=5", "MODEL", "--out", "r"],
        ["a=5", "--out", "r", "MODEL"],
        ["MODEL", "--out", "r", "a=5"],
        ["--out", "r", "MODEL", "a=5"],
    ],
)
def test_a_word_with_an_equals_sign_is_an_override_wherever_it_stands(words, monkeypatch):
    seen = []
    monkeypatch.setattr(
        import_module("tdquant.cli.evaluate"), "_check", lambda o, g: seen.append(o)
    )
    monkeypatch.setattr(import_module("tdquant.cli.evaluate"), "spread", lambda gpus, words: 0)
    assert main(["evaluate", *words]) == 0
    assert (seen[0].models, seen[0].overrides) == (["MODEL"], ["a=5"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to evaluate"),
        (["--out", "r", "--lpips", "tiny"], "--lpips took tiny for the file of its weights"),
        (["tiny"], "no folder to write"),
        (["tiny", "--images", "somewhere", "--out", "r"], "one of them"),
        (["tiny", "--compare", "r"], "--compare"),
        (["nomodel", "--out", "r", "--network", "random"], "no such model"),
        (["tiny", "--out", "r", "--network", "vgg"], "no feature network"),
        (["tiny", "--out", "r", "--network", "random", "--metrics", "fud"], "no metric 'fud'"),
        (["tiny", "tiny", "--out", "r", "--network", "random"], "models of one name"),
        (["tiny", "--out", "r", "--prompts", "nofile"], "prompts cannot be read"),
        (["--compare", "nowhere"], "no record here"),
        (["--images", ".", "--out", "r", "--steps", "3", "--seed", "1"], "with --steps, --seed"),
        (["--images", ".", "--out", "r", "--no-paired"], "with --no-paired"),
    ],
)
def test_mistakes_are_explained(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *words]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.png"))


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "--help"])
    out = capsys.readouterr().out
    assert "--reference" in out
    assert "subsets of the images" in " ".join(out.split())
    assert "Traceback" not in out


def test_a_saved_model_takes_the_parts_of_its_pipe(saved):
    opened = open_model(saved)
    assert (opened.kind, opened.twin) == ("saved", "tiny")
    assert (opened.model.name, opened.model.shape) == ("tiny-w4a4", (3, 16, 16))
    with pytest.raises(ModelError, match="--pipe"):
        open_model(saved, parts="cats-ddpm")


def test_downloading_means_inception(monkeypatch, tmp_path, capsys):
    def load(name, weights, download):
        raise ModelError(f"{name}, {download}")

    monkeypatch.setattr("tdquant.lab.metrics.load_network", load)
    assert main(["evaluate", "tiny", "--out", str(tmp_path / "r"), "--download"]) == 1
    assert "inception, True" in capsys.readouterr().err
    assert main(["evaluate", "tiny", "--out", str(tmp_path / "r")]) == 1
    assert "efficientnet-lite0, False" in capsys.readouterr().err


def test_a_saved_model_of_no_known_architecture(tmp_path):
    path = tdq.save(tdq.freeze(quantized()), tmp_path / "mixed")
    with pytest.raises(ModelError):
        open_model(path)
    with pytest.raises(StorageError, match="nor a run"):
        open_model(tmp_path)


def test_a_diffusers_pipeline_by_its_folder(tmp_path):
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path / "pipe")
    reference = tmp_path / "set"
    for i in range(8):
        save_png(torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8), reference / f"{i}.png")
    words = [tmp_path / "pipe", "--out", tmp_path / "run", "--reference", reference]
    words += ["--against", tmp_path / "pipe", "--images", "6"]
    assert evaluate(*words) == 0
    record = Record.read(tmp_path / "run")
    assert record.model["name"] == "pipe"
    assert record.paired["metrics"]["mse"]["value"] == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "run" / "images").glob("*.png")}
    for name in ("000002.png", "000005.png"):
        (tmp_path / "run" / "images" / name).unlink()
    shutil.rmtree(tmp_path / "run" / "features")
    (tmp_path / "run" / "record.json").unlink()
    assert evaluate(*words) == 0
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "run/images").glob("*.png")}
