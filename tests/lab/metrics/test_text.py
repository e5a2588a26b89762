import pytest
import torch

from tdquant.errors import DataError
from tdquant.lab.metrics import ClipScore, clip_score
from tests.clip import save_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def metric(folder):
    return ClipScore(folder)


IMAGES = torch.randint(0, 256, (20, 3, 40, 30), generator=torch.Generator().manual_seed(0)).byte()
TEXTS = [f"{chr(97 + i)} cat" for i in range(20)]


def test_the_score_is_the_cosine_of_the_embeddings(metric):
    from PIL import Image

    found = metric(IMAGES, TEXTS)
    for i in (0, 17):
        picture = Image.fromarray(IMAGES[i].permute(1, 2, 0).numpy())
        inputs = metric.processor(images=picture, text=TEXTS[i], return_tensors="pt")
        with torch.no_grad():
            image = metric.model.get_image_features(inputs["pixel_values"]).pooler_output
            text = metric.model.get_text_features(inputs["input_ids"]).pooler_output
        cosine = torch.cosine_similarity(image, text).clamp_min(0)
        assert float(found[i]) == pytest.approx(100 * float(cosine), abs=1e-3)
    assert found.shape == (20,)
    assert found.min() >= 0
    assert found.max() > 0


def test_an_image_of_the_opposite_scores_nothing(folder):
    opposite = ClipScore(folder)
    opposite.model.text_projection.weight.neg_()
    assert opposite(IMAGES[:3], TEXTS[:3]).tolist() == [0, 0, 0]


def test_values_in_the_range_of_samplers_and_grey_images(metric):
    floats = IMAGES.float() / 127.5 - 1
    assert torch.allclose(metric(floats, TEXTS), metric(IMAGES, TEXTS), atol=1e-3)
    grey = IMAGES[:2, :1]
    assert torch.equal(metric(grey, TEXTS[:2]), metric(grey.repeat(1, 3, 1, 1), TEXTS[:2]))


def test_long_texts_are_cut(metric):
    long = metric(IMAGES[:1], ["a b c d e f g h i j k l"])
    assert torch.allclose(long, metric(IMAGES[:1], ["a b c d e f"]), atol=1e-3)


def test_images_and_texts_that_do_not_pair(metric):
    with pytest.raises(DataError, match="20 images and 2 texts"):
        metric(IMAGES, ["a", "b"])
    with pytest.raises(DataError, match="one text"):
        metric(IMAGES, "a" * 20)


def test_folders_that_hold_no_clip(folder, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        clip_score(IMAGES, TEXTS, tmp_path / "none")
    with pytest.raises(DataError, match="no CLIP model"):
        ClipScore(tmp_path)
    assert torch.equal(
        clip_score(IMAGES[:2], TEXTS[:2], folder), ClipScore(folder)(IMAGES[:2], TEXTS[:2])
    )
