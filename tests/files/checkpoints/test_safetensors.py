import errno

import pytest
import torch
from safetensors.torch import load_file, save_file

from tdquant.files.checkpoints import LazyTensor, open_checkpoint
from tdquant.files.checkpoints.safetensors_format import write_safetensors
from tests.live import LiveBytes

TENSORS = {
    "b.codes": torch.arange(7, dtype=torch.uint8),
    "a.weight": torch.randn(3, 5),
    "a.half": torch.randn(3).bfloat16(),
    "\u00fc.scalar": torch.tensor(2.5, dtype=torch.float64),
    "nothing": torch.empty(0, 4),
    "truth": torch.tensor([True, False]),
}


def lazily(tensors):
    return {n: LazyTensor(t.shape, t.dtype, lambda t=t: t) for n, t in tensors.items()}


def test_the_file_is_what_the_library_writes(tmp_path):
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    order = []
    write_safetensors(
        lazily(TENSORS), ours, {"format": "pt"}, written=lambda name, _: order.append(name)
    )
    save_file(TENSORS, theirs, metadata={"format": "pt"})
    assert ours.read_bytes() == theirs.read_bytes()
    assert order == sorted(TENSORS)
    found = load_file(ours)
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in TENSORS.items())
    with open_checkpoint(ours) as read:
        assert all(torch.equal(read[n].load(), t) for n, t in TENSORS.items())


def test_one_tensor_at_a_time(tmp_path):
    tensors = {
        f"{i}": LazyTensor(torch.Size([1000]), torch.float32, lambda i=i: torch.full((1000,), i))
        for i in map(float, range(20))
    }
    with LiveBytes() as live:
        write_safetensors(tensors, tmp_path / "m.safetensors", {})
    assert live.peak < 4 * 4000
    assert load_file(tmp_path / "m.safetensors")["7.0"].eq(7).all()


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="large") as info:
            write_safetensors(lazily(TENSORS), tmp_path / "m.safetensors", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert info.value.errno == errno.EFBIG
