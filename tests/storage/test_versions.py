"""Models that earlier versions saved load to the same bits."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tdquant as tdq
from tdquant.errors import StorageError
from tdquant.files.digests import add_tensor
from tdquant.numerics.packing import aligned_bits, pack, unpack
from tdquant.storage.description import describe
from tdquant.storage.files import INDEX, TENSORS
from tdquant.storage.stored import stored_tensors
from tests.conftest import quantized
from tests.denoisers import Mixed


def as_version_1(folder):
    """Rewrites a saved model as tdquant 0.1 saved it: codes of 2, 4, 8 or 16 bits."""
    index, tensors = json.loads((folder / INDEX).read_text()), load_file(folder / TENSORS)
    for path, spec in index["layers"].items():
        weight = spec.get("weight")
        if weight is None:
            continue
        bits, qmin, shape = weight["bits"], -weight["qmax"], weight["shape"]
        codes = unpack(tensors[f"{path}.weight.codes"], shape, qmin, bits)
        tensors[f"{path}.weight.codes"] = pack(codes, qmin, bits, aligned_bits(bits))
        del weight["packed"]
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        add_tensor(digest, name, tensor)
    save_file(tensors, folder / TENSORS, {"format": "pt"})
    index |= {"version": 1, "digest": digest.hexdigest()}
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 11])
def test_codes_with_gaps(bits, tmp_path):
    frozen = tdq.freeze(quantized(weights=bits, edges=bits))
    tdq.save(frozen, tmp_path)
    tight = (tmp_path / TENSORS).stat().st_size
    as_version_1(tmp_path)
    assert (tight < (tmp_path / TENSORS).stat().st_size) == (bits in (3, 5, 6, 7))
    before, x = frozen.state_dict(), torch.randn(2, 6, 8, 8)
    after = tdq.load(tmp_path, model=Mixed(seed=1)).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    back = tdq.load(tmp_path, model=Mixed(seed=1), compact=True)
    assert torch.equal(back(x, 3), frozen(x, 3))


def test_an_old_description_is_followed(frozen):
    # As diffusers has it, which saves a model again with the description that it loaded.
    description = describe(frozen)
    for spec in description["layers"].values():
        del spec["weight"]["packed"]
        spec["weight"]["bits"] = 5
    stored = stored_tensors(frozen.state_dict(), description)
    codes = stored["linear.weight.codes"]
    assert codes.load().shape == codes.shape == (frozen.linear.weight.numel(),)


def test_a_width_that_no_version_wrote(frozen, tmp_path):
    tdq.save(frozen, tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    next(s for s in index["layers"].values() if "weight" in s)["weight"]["packed"] = 11
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(StorageError, match="in 11"):
        tdq.load(tmp_path, model=Mixed())
