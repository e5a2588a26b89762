import pytest
import torch

from tdquant.errors import DataError
from tdquant.lab.data import StoredImages


def test_bytes_span_the_range_exactly():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    item = StoredImages(images, None, "x")[0].flatten()
    assert item[0] == -1
    assert item[-1] == 1
    assert torch.allclose((item + 1) * 127.5, torch.arange(256.0), atol=1e-4)


def test_resizing_keeps_the_range_and_the_mean():
    images = (torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.5) * 255
    stored = StoredImages(images.to(torch.uint8), None, "x", size=48)
    assert stored[0].shape == (3, 48, 48)
    assert stored[0].abs().max() <= 1
    flat = StoredImages(torch.full((1, 3, 32, 32), 200, dtype=torch.uint8), None, "x", size=16)
    assert torch.allclose(flat[0], torch.tensor(200 / 127.5 - 1), atol=1e-6)


@pytest.mark.parametrize(
    ("images", "labels", "size"),
    [
        (torch.zeros(2, 3, 4, 4), None, None),
        (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), None, None),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), None, None),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), None, None),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3), None),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), None, 0),
    ],
)
def test_what_is_no_set_of_images(images, labels, size):
    with pytest.raises(DataError):
        StoredImages(images, labels, "x", size)
