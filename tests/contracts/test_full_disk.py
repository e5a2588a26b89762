"""Every public writer on a full disk: an error that names the file, and what was there before."""

import errno
import os

import pytest
import torch

import tdquant as tdq
from tdquant.calls.shards import write_shards
from tdquant.errors import StorageError
from tests.flow.models import BatchSecond

TIMES = [0.0, 333.0, 666.0, 999.0]


@pytest.fixture(scope="module")
def calls():
    return [BatchSecond.call(2, torch.tensor(t), seed=i) for i, t in enumerate(TIMES)]


@pytest.fixture(scope="module")
def frozen(calls):
    model = tdq.quantize(BatchSecond().eval(), tdq.Recipe(8, 8, scale="static"))
    return tdq.freeze(tdq.calibrate(model, calls, progress=False))


def save(frozen, calls, place):
    tdq.save(frozen, place)


def export(frozen, calls, place):
    pytest.importorskip("openvino")
    tdq.export(frozen, place.with_suffix(".xml"), example=calls[0])


def record(frozen, calls, place):
    write_shards(place, [{"unet": [{"x": x, "t": t} for x, t in calls]}], ["unet"], {})


def contents(folder):
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("write", [save, export, record])
def test_a_full_disk_is_named_and_leaves_the_old_files(
    write, frozen, calls, tmp_path, monkeypatch
):
    write(frozen, calls, tmp_path / "out")
    before = contents(tmp_path)

    def refuse(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StorageError, match="No space left") as caught:
            write(frozen, calls, tmp_path / "out")
    assert str(tmp_path / "out") in caught.value.where
    assert contents(tmp_path) == before
