import pytest
import torch

from tdquant.diffusion.pictures import grid, save_png, to_uint8
from tdquant.errors import ModelError


def test_bytes_cover_the_range_and_clip():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 7.0]).view(1, 1, 5)
    assert to_uint8(x).flatten().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_has_no_bytes(value):
    x = torch.zeros(3, 1, 2, 2)
    x[1, 0, 1, 1] = value
    with pytest.raises(ModelError, match="1 of 3 images have NaN"):
        to_uint8(x)


@pytest.mark.parametrize(("count", "size"), [(1, (8, 8)), (4, (14, 14)), (5, (14, 20))])
def test_a_grid_is_nearly_square(count, size):
    picture = grid(torch.zeros(count, 1, 4, 4))
    assert picture.shape == (3, *size)
    assert picture.dtype == torch.uint8


def test_a_png_holds_the_very_bytes_and_no_temporary_file_stays(tmp_path):
    import numpy as np
    from PIL import Image

    picture = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    save_png(picture, tmp_path / "a" / "x.png")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x.png"]
    assert (
        np.asarray(Image.open(tmp_path / "a" / "x.png")) == picture.permute(1, 2, 0).numpy()
    ).all()
    save_png(picture[:1], tmp_path / "grey.png")
    assert Image.open(tmp_path / "grey.png").mode == "L"
