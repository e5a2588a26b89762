import io

import pytest
import torch

from tdquant.errors import DataError
from tdquant.lab.data.encoded import square
from tdquant.lab.data.lsun import Lmdb, lsun
from tdquant.training.order import loader
from tests.lab.data.written import encoded, write_images, write_lmdb


@pytest.fixture
def listed(tmp_path):
    """Five images under a root and a list of three of them, not in order."""
    write_images(tmp_path / "images" / "sub", form="webp")
    names = tmp_path / "names.txt"
    names.write_text("sub/4.webp\n\n  sub/0.webp \nsub/2.webp\n")
    return tmp_path / "images", names


@pytest.fixture
def store(tmp_path):
    return write_lmdb(tmp_path / "lmdb", {b"%02d" % i: encoded(i) for i in (3, 1, 2)})


def test_the_list_says_which_and_in_what_order(listed):
    found = lsun(*listed, size=8)
    assert len(found) == 3
    for i, seed in enumerate((4, 0, 2)):
        assert torch.equal(found[i], square(io.BytesIO(encoded(seed, form="webp")), 8))


def test_a_name_without_a_file_is_unreadable(listed):
    root, names = listed
    names.write_text("sub/9.webp\nsub/0.webp\n")
    with pytest.warns(UserWarning, match=r"1 of 2 images.*sub/9\.webp"):
        assert len(lsun(root, names, size=8)) == 1


def test_lmdb_values_come_in_the_order_of_the_keys(store):
    found = lsun(store, size=8)
    assert found.source.names == ["01", "02", "03"]
    for i, seed in enumerate((1, 2, 3)):
        assert torch.equal(found[i], square(io.BytesIO(encoded(seed)), 8))


def test_two_sets_and_forked_workers_share_one_lmdb(store):
    first, second = lsun(store, size=8), lsun(store, size=8)
    assert torch.equal(first[0], second[0])
    batches = [next(iter(loader(data, 3, workers=2))) for data in (first, second)]
    assert torch.equal(*batches)
    assert torch.equal(first[1], second[1])  # still open here


def test_damaged_values_are_left_out(tmp_path):
    store = write_lmdb(tmp_path / "lmdb", {b"a": b"junk", b"b": encoded(1), b"c": b""})
    with pytest.warns(UserWarning, match="2 of 3 images.*a, c"):
        assert len(lsun(store, size=8)) == 1


def test_a_file_that_is_no_lmdb(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"junk" * 100)
    with pytest.raises(DataError, match="no readable LMDB"):
        lsun(tmp_path)
    with pytest.raises(DataError, match="no readable LMDB"):
        Lmdb(tmp_path / "none")


def test_an_empty_lmdb(tmp_path):
    with pytest.raises(DataError, match="no images"):
        lsun(write_lmdb(tmp_path / "lmdb", {}))


def test_a_list_does_not_go_with_an_lmdb(store, listed):
    with pytest.raises(DataError, match="leave txt_file out"):
        lsun(store, listed[1])


def test_absent_files_say_what_is_needed(listed):
    root, names = listed
    with pytest.raises(DataError, match=r"txt_file is not given .*and no data\.mdb"):
        lsun(root)
    with pytest.raises(DataError, match=r"no file .*none\.txt"):
        lsun(root, root / "none.txt")
    with pytest.raises(DataError, match=r"no folder .*none"):
        lsun(root / "none", names)
    names.write_text("\n \n")
    with pytest.raises(DataError, match="no names"):
        lsun(root, names)
    names.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no text of names"):
        lsun(root, names)
