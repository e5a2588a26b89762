import pytest

from tdquant.files.config import check_keys, foreign_keys

KNOWN = ("image_size", "channel_mult", "num_heads")


def test_a_section_in_order():
    assert check_keys({"image_size": 1, "num_heads": 2}, KNOWN, ("image_size",)) == []


def test_misspelt_unknown_and_missing_keys_are_told_with_their_path():
    found = {"chanel_mult": [1], "colour": "red", "image_size": None}
    assert check_keys(found, KNOWN, ("image_size", "num_heads"), "unet.params") == [
        "unet.params.chanel_mult: no such key; nearest: channel_mult",
        "unet.params.colour: no such key; one of image_size, channel_mult, num_heads",
        "unet.params.image_size: missing",
        "unet.params.num_heads: missing",
    ]


def test_a_required_key_is_known():
    assert check_keys({"other": 1}, KNOWN, ("other",)) == []


def test_a_lenient_section_leaves_what_resembles_nothing():
    found = {"chanel_mult": [1], "colour": "red", 7: "seven"}
    mistakes = check_keys(found, KNOWN, where="a", strict=False)
    assert mistakes == ["a.chanel_mult: no such key; nearest: channel_mult"]
    assert foreign_keys(found, KNOWN, "a") == ["a.colour", "a.7"]


@pytest.mark.parametrize("found", [None, [1, 2], "text", 3])
def test_no_section_at_all(found):
    (mistake,) = check_keys(found, KNOWN, ("image_size",), "model")
    assert mistake.startswith("model: a section of keys is needed")
    assert foreign_keys(found, KNOWN) == []
