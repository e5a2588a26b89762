import json
import os
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tdquant.diffusion.pictures import save_png
from tdquant.errors import DataError, StorageError
from tdquant.lab.data import Cats
from tdquant.lab.data.folder import picture_files
from tdquant.lab.evaluation import (
    Record,
    evaluate_images,
    open_reference,
    picture_sets,
    references,
)
from tdquant.lab.evaluation.image_files import read_pictures
from tdquant.lab.metrics import Statistics
from tests.lab.evaluation.small import OPTIONS, Random

GIVEN = {key: OPTIONS[key] for key in ("resamples", "device", "progress")}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TDQUANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "references"


def folder_of(path, sides, mode="RGB", seed=0):
    path.mkdir()
    rng = np.random.default_rng(seed)
    for i, (height, width) in enumerate(sides):
        pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        image = Image.fromarray(pixels if mode == "RGBA" else pixels[..., :3]).convert(mode)
        image.save(path / f"{i}.png")
    return path


def reference(spec, **options):
    return open_reference(spec, Random(), ("pooled",), progress=False, **options)


def test_features_are_those_of_the_set(cache):
    found = reference("cats:heldout:12", size=(16, 16))
    images = Cats("heldout", 12, 16).images
    assert torch.equal(found.features["pooled"], Random()(images))
    assert (found.name, found.images) == ("cats:heldout:12", 12)
    assert reference("cats:heldout:13", size=(16, 16)).digest != found.digest


def test_the_cache_is_used(cache, monkeypatch):
    found = reference("cats:heldout:12", size=(16, 16))
    assert len(list(cache.glob("*.safetensors"))) == 1
    monkeypatch.setattr(Random, "run", None)
    again = reference("cats:heldout:12", size=(16, 16))
    assert torch.equal(again.features["pooled"], found.features["pooled"])


def test_a_cache_of_another_network_or_set_is_not_used(cache, tmp_path):
    mine = folder_of(tmp_path / "mine", [(8, 8)] * 6)
    first = reference(mine)
    other = open_reference(mine, Random(seed=1), ("pooled",), progress=False)
    assert not torch.equal(first.features["pooled"], other.features["pooled"])
    assert torch.equal(reference(mine).features["pooled"], first.features["pooled"])
    # Another network's features under this one's name, as after a careless copy.
    theirs, own = sorted(cache.glob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns)[::-1]
    own.write_bytes(theirs.read_bytes())
    with pytest.warns(UserWarning, match="of something else: network"):
        again = reference(mine)
    assert torch.equal(again.features["pooled"], first.features["pooled"])
    (mine / "0.png").write_bytes((mine / "1.png").read_bytes())  # same names, another picture
    with pytest.warns(UserWarning, match="digest .* computed again"):
        changed = reference(mine)
    assert not torch.equal(changed.features["pooled"], first.features["pooled"])
    assert changed.digest != first.digest


def test_a_damaged_cache_is_not_used(cache):
    good = reference("cats:heldout:12", size=(16, 16))
    (file,) = cache.glob("*.safetensors")
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 0x40  # one bit of one number
    file.write_bytes(whole)
    with pytest.warns(UserWarning, match="damaged"):
        again = reference("cats:heldout:12", size=(16, 16))
    assert torch.equal(again.features["pooled"], good.features["pooled"])
    file.write_bytes(b"not safetensors")
    with pytest.warns(UserWarning, match="damaged"):
        reference("cats:heldout:12", size=(16, 16))
    save_file({"pooled": torch.zeros(12, 6)}, file, metadata={"facts": json.dumps({})})
    with pytest.warns(UserWarning, match="something else"):
        reference("cats:heldout:12", size=(16, 16))


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("dogs", "no reference set"),
        ("dogs:heldout:4", "no reference set"),
        ("cats:heldout:0", "NAME:SPLIT:COUNT"),
        ("cats:a:b", "NAME:SPLIT:COUNT"),
        ("cats:nowhere:4", "split"),
        ("nofile.npz", "no such file"),
        ("lsun:10", "lsun does not say where it lies(?s:.)*FOLDER:COUNT"),
        ("folder:10", "folder does not say where it lies(?s:.)*FOLDER:COUNT"),
    ],
)
def test_what_is_no_reference_set(spec, word):
    with pytest.raises(DataError, match=word):
        reference(spec, size=(16, 16))


def test_the_shipped_statistics_are_of_32_pixels():
    with pytest.raises(DataError, match="32x32 for images of 16x16"):
        reference("cats-heldout", size=(16, 16))


def test_the_shipped_statistics_are_of_one_network_and_not_of_its_name(cache, monkeypatch):
    class Renamed(Random):
        name = "efficientnet-lite0"

    monkeypatch.setattr(picture_sets, "CATS_HELDOUT", 12)
    found = open_reference("cats-heldout", Renamed(), ("pooled",), progress=False)
    assert found.statistics == {}
    assert found.of("pooled", False).shape == (12, 6)
    monkeypatch.setattr(references, "HELDOUT_NETWORK", Renamed().digest)
    found = open_reference("cats-heldout", Renamed(), ("pooled",), progress=False)
    assert found.of("pooled", False).count == 5000


def test_a_set_that_is_cut_says_so(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(picture_sets, "KEPT", 4)
    given = folder_of(tmp_path / "in", [(8, 8)] * 6)
    with pytest.warns(UserWarning, match=r"the first 4 of 6 images are taken; .*in:6 takes all"):
        assert reference(given).images == 4
    with pytest.warns(UserWarning, match=r"the first 4 of 5000 .*cats:heldout:5000 takes all"):
        assert reference("cats:heldout", size=(16, 16)).images == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        every = reference(f"{given}:6")
        assert (every.name, every.images) == ("in", 6)
        assert torch.equal(
            reference(f"{given}:2").features["pooled"], every.features["pooled"][:2]
        )
    for count in (0, 7):
        with pytest.raises(DataError, match=f"6 images, {count} asked for"):
            reference(f"{given}:{count}")


def test_statistics_from_files(tmp_path):
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    found = Statistics.of(features)
    np.savez(tmp_path / "a.npz", mu=found.mean.numpy(), sigma=found.covariance.numpy(), count=40)
    (tmp_path / "b.safetensors").write_bytes(found.to_bytes())
    for name in ("a.npz", "b.safetensors"):
        read = reference(tmp_path / name)
        assert read.images == 40
        assert torch.allclose(read.of("pooled", False).mean, found.mean, atol=1e-6)
        with pytest.raises(DataError, match="statistics"):
            read.of("pooled", True)
    np.savez(tmp_path / "c.npz", mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(DataError, match="7 features for a network with 6"):
        reference(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", mu=np.zeros(7), sigma=np.eye(6))
    with pytest.raises(DataError, match="shape"):
        reference(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", mu=np.array([None]), sigma=np.eye(6))  # a pickle inside
    with pytest.raises(DataError, match="no feature statistics"):
        reference(tmp_path / "e.npz")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_both_kinds_of_statistics_are_held_to_the_same(tmp_path, suffix):
    file = tmp_path / f"set.{suffix}"

    def write(mean, covariance, **count):
        if suffix == "npz":
            np.savez(file, mu=mean, sigma=covariance, **count)
        else:
            half = covariance[np.tril_indices(len(covariance))]
            arrays = {"mean": mean, "covariance": half, "count": np.array(9), **count}
            save_file({k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}, file)

    write(np.zeros(6), np.eye(6))
    assert reference(file).of("pooled", False).covariance.equal(torch.eye(6).double())
    mistaken = {
        "no number": (np.array(1.0), np.eye(6)),
        "of another shape": (np.zeros(6), np.eye(5)),
        "NaN": (np.full(6, np.nan), np.eye(6)),
        "infinite": (np.zeros(6), np.full((6, 6), np.inf)),
        "of another network": (np.zeros(5), np.eye(5)),
        "of negative variance": (np.zeros(6), np.diag([1.0, 1, 1, 1, 1, -0.5])),
    }
    for name, numbers in mistaken.items():
        write(*numbers)
        with pytest.raises(DataError) as caught:
            reference(file)
        assert caught.value.where == str(file), name
        assert caught.value.fix
        assert "delete" not in caught.value.fix
    for count in (np.array([3, 4]), np.array(np.inf), np.array(-2)):
        write(np.zeros(6), np.eye(6), count=count)
        with pytest.raises(DataError) as caught:
            reference(file)
        assert caught.value.where == str(file)


def test_an_array_is_no_archive(tmp_path):
    file = tmp_path / "set.npz"
    with file.open("wb") as opened:
        np.save(opened, np.zeros(6))
    with pytest.raises(DataError, match="no feature statistics"):
        reference(file)


def test_given_images_are_judged(tmp_path, cache):
    images = Cats("heldout", 16, 16).images
    for i, image in enumerate(images):
        save_png(image, tmp_path / "in" / f"{i}.png")
    options = {"reference": "cats:heldout:16", "network": Random(), **GIVEN}
    record = evaluate_images(tmp_path / "in", tmp_path / "out", **options)
    assert record.metrics["frechet"]["value"] == pytest.approx(0, abs=1e-6)
    assert record.metrics["precision"]["value"] == 1
    assert record.sampling["images"] == 16
    assert record.paired is None
    assert (tmp_path / "out" / "grid.png").exists()
    # Changed images are seen.
    save_png(images[3], tmp_path / "in" / "0.png")
    again = evaluate_images(tmp_path / "in", tmp_path / "out", **options)
    assert again.metrics["frechet"]["value"] > 1e-6
    assert record.cost["seconds"] > 0
    assert [r.cost["resumed"] for r in (record, again)] == [False, True]


@pytest.mark.parametrize(
    ("sides", "mode", "word"),
    [
        ([(8, 8), (8, 8), (9, 9)], "RGB", "2 sizes: 2 of 8x8, 1 of 9x9"),
        ([(8, 12)] * 3, "RGB", "12x8"),
        ([(8, 8)] * 3, "RGBA", "transparency"),
    ],
)
def test_images_that_cannot_be_judged_as_they_are(tmp_path, cache, sides, mode, word):
    given = folder_of(tmp_path / "in", sides, mode)
    with pytest.raises(DataError, match=word):
        evaluate_images(given, tmp_path / "out", network=Random(), **GIVEN)


def test_resizing_cuts_squares_and_says_so(tmp_path, cache):
    given = folder_of(tmp_path / "in", [(8, 8), (8, 12), (20, 16), (16, 16)])
    record = evaluate_images(
        given, tmp_path / "out", reference=given, resize=8, network=Random(), **GIVEN
    )
    assert record.reference["preprocessing"] == "RGB 8x8, centred squares resized, bicubic"
    assert record.metrics["frechet"]["value"] == pytest.approx(0, abs=1e-6)


def test_grey_images_are_their_channel_three_times(tmp_path, cache):
    grey = folder_of(tmp_path / "grey", [(8, 8)] * 6, "L")
    colour = tmp_path / "colour"
    colour.mkdir()
    from PIL import Image

    for file in grey.iterdir():
        Image.open(file).convert("RGB").save(colour / file.name)
    found = [reference(folder).features["pooled"] for folder in (grey, colour)]
    assert torch.equal(*found)


def test_grey_images_of_sixteen_bits_are_scaled(tmp_path, cache):
    from PIL import Image

    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray((ramp >> 8).astype(np.uint8)).save(tmp_path / "flat.png")
    deep, flat = (read_pictures([tmp_path / name]) for name in ("deep.png", "flat.png"))
    assert torch.equal(deep, flat)


def test_a_folder_is_known_again_wherever_it_lies(tmp_path, cache):
    here = folder_of(tmp_path / "here", [(8, 8)] * 6)
    (tmp_path / "copies").mkdir()
    there = shutil.copytree(here, tmp_path / "copies" / "here", copy_function=shutil.copy)
    assert reference(here).digest == reference(there).digest


def test_hidden_files_are_left_out_and_linked_folders_entered(tmp_path):
    root = folder_of(tmp_path / "set", [(8, 8)] * 2)
    for hidden in (".ipynb_checkpoints", ".Trash-0"):
        folder_of(root / hidden, [(8, 8)])
    shutil.copy(root / "0.png", root / ".x.png")
    away = folder_of(tmp_path / "away", [(8, 8)])
    (root / "linked").symlink_to(away)
    (away / "back").symlink_to(root)  # a circle
    Image.open(root / "0.png").save(root / "2.tiff")
    names = [str(path.relative_to(root)) for path in picture_files(root)]
    assert names == ["0.png", "1.png", "2.tiff", "linked/0.png"]


def test_names_that_are_not_utf_8_are_told(tmp_path):
    root = folder_of(tmp_path / "set", [(8, 8)])
    os.rename(root / "0.png", os.path.join(os.fsencode(root), b"caf\xe9.png"))
    with pytest.raises(DataError, match="1 names of images cannot be printed") as caught:
        picture_files(root)
    print(caught.value)


@pytest.mark.parametrize("place", ["read-only", "a file"])
def test_without_a_writable_cache_features_are_computed_and_it_is_said(
    tmp_path, monkeypatch, place
):
    given = folder_of(tmp_path / "set", [(8, 8)] * 6)
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv(
        "TDQUANT_CACHE", "/proc/no" if place == "read-only" else str(tmp_path / "cache")
    )
    with pytest.warns(UserWarning, match="cannot be written(.|\n)*computes these features again"):
        assert len(reference(given).features["pooled"]) == 6


def test_damaged_few_and_no_images(tmp_path, cache):
    given = folder_of(tmp_path / "in", [(8, 8)] * 3)
    options = {"network": Random(), "reference": "cats:heldout:16", **GIVEN}
    with pytest.raises(DataError, match="precision: 3 images, and 4 are needed"):
        evaluate_images(given, tmp_path / "out", **options)
    (given / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 cannot be read: 1"):
        evaluate_images(given, tmp_path / "out", **options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        evaluate_images(tmp_path / "empty", tmp_path / "out", **options)
    with pytest.raises(DataError, match="no such folder"):
        evaluate_images(tmp_path / "nowhere", tmp_path / "out", **options)


def test_a_mistaken_reference_leaves_the_record_where_it_is(tmp_path, cache):
    given = folder_of(tmp_path / "in", [(8, 8)] * 6)
    options = {"metrics": ["frechet"], "network": Random(), **GIVEN}
    record = evaluate_images(given, tmp_path / "out", reference=given, **options)
    with pytest.raises(DataError, match="no reference set"):
        evaluate_images(given, tmp_path / "out", reference="dogs", **options)
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"record.json", "features"}
    assert Record.read(tmp_path / "out") == record


def test_given_images_do_not_go_into_the_run_of_a_model(whole, tmp_path, cache):
    given = folder_of(tmp_path / "in", [(8, 8)] * 6)
    with pytest.raises(StorageError, match="run of a model"):
        evaluate_images(given, whole[0], network=Random(), **GIVEN)
