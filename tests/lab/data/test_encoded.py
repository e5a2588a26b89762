import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from tdquant.errors import DataError
from tdquant.lab.data import make_dataset
from tdquant.lab.data.encoded import INTERPOLATIONS, square
from tests.lab.data.written import encoded, picture, write_images


def folder(root, **options):
    return make_dataset("folder", root=root, size=8, progress=False, **options)


def stream(image, form="png", **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    out.seek(0)
    return out


def pixels(item):
    return ((item + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [(20, 13), (13, 20), (9, 9), (8, 15)])
def test_the_centred_square_is_cut_before_it_is_resized(size):
    image = picture(3, size)
    side = min(size)
    array = np.asarray(image)
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    middle = Image.fromarray(array[top : top + side, left : left + side])
    expected = middle.resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(pixels(square(stream(image), 8)), np.asarray(expected))
    assert np.array_equal(pixels(square(stream(image), side)), np.asarray(middle))


def test_interpolations_differ_and_linear_is_bilinear(tmp_path):
    write_images(tmp_path, 1)
    items = {name: folder(tmp_path, interpolation=name)[0] for name in INTERPOLATIONS}
    assert torch.equal(items["linear"], items["bilinear"])
    assert not torch.equal(items["nearest"], items["bicubic"])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
def test_every_mode_becomes_rgb(mode):
    form = "jpeg" if mode == "CMYK" else "png"
    assert square(stream(picture(1, mode=mode), form), 8).shape == (3, 8, 8)


def test_grey_of_16_bits_is_scaled_and_not_cut_off():
    grey = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    item = square(stream(Image.fromarray(grey)), 8)
    assert np.array_equal(pixels(item)[..., 0], (grey >> 8).astype(np.uint8))
    assert torch.equal(item[0], item[2])


def test_photographs_are_turned_as_their_camera_was():
    image = picture(2, (8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    turned = square(stream(image, exif=exif), 8)
    assert np.array_equal(pixels(turned), np.rot90(np.asarray(image), -1))


def test_folders_are_read_whole_and_in_order(tmp_path):
    write_images(tmp_path / "b")
    write_images(tmp_path / "a" / "deep", 2, "jpeg")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "Z.PNG").write_bytes(encoded(9))
    found = folder(tmp_path)
    names = [name.removeprefix(f"{tmp_path}/") for name in found.source.names]
    assert names == ["Z.PNG", "a/deep/0.jpeg", "a/deep/1.jpeg", *(f"b/{i}.png" for i in range(5))]
    assert torch.equal(found[0], square(io.BytesIO(encoded(9)), 8))


@pytest.mark.parametrize("content", [None, "notes.txt"])
def test_folders_without_images(tmp_path, content):
    if content:
        (tmp_path / content).write_text("x")
    with pytest.raises(DataError, match="no images"):
        folder(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        folder(tmp_path / "none")


def test_wrong_options_are_told_together(tmp_path):
    write_images(tmp_path, 1)
    with pytest.raises(DataError, match=r"size=0(.|\n)*interpolation='cubic'"):
        make_dataset("folder", root=tmp_path, size=0, interpolation="cubic")


def test_unreadable_headers_are_left_out_and_named(tmp_path):
    write_images(tmp_path)
    (tmp_path / "1.png").write_bytes(b"no png")
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"2 of 5 images .*1\.png.*3\.png") as caught:
        found = folder(tmp_path)
    assert len(caught) == 1
    assert found.unreadable == [str(tmp_path / "1.png"), str(tmp_path / "3.png")]
    assert len(found) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(found[1], square(io.BytesIO(encoded(2)), 8))
        assert torch.equal(found[-1], square(io.BytesIO(encoded(4)), 8))


def test_damaged_bodies_are_replaced_by_the_next_with_one_warning(tmp_path):
    write_images(tmp_path)
    for name in ("3.png", "4.png"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    found = folder(tmp_path)
    assert len(found) == 5
    assert found.unreadable == []
    with pytest.warns(UserWarning, match="next image takes its place") as caught:
        item = found[3]
    assert len(caught) == 2
    assert torch.equal(item, found[0])
    assert [name[-5:] for name in found.unreadable] == ["3.png", "4.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(found[3], found[0])
        assert torch.equal(found[4], found[0])
        assert torch.equal(found[-1], found[0])


def test_without_the_check_everything_is_found_while_reading(tmp_path):
    write_images(tmp_path, 2)
    (tmp_path / "0.png").write_bytes(b"no png")
    found = folder(tmp_path, check=False)
    assert len(found) == 2
    with pytest.warns(UserWarning, match=r"0\.png cannot be read"):
        assert torch.equal(found[0], found[1])


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize("check", [True, False])
def test_nothing_readable(tmp_path, check):
    write_images(tmp_path, 3)
    for path in tmp_path.iterdir():
        path.write_bytes(b"no png")
    with pytest.raises(DataError, match="none of 3 images can be read"):
        folder(tmp_path, check=check)[0]


def test_a_file_that_goes_away(tmp_path):
    write_images(tmp_path, 2)
    found = folder(tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.warns(UserWarning, match="No such file"):
        assert torch.equal(found[1], found[0])
