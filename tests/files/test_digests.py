import hashlib

import pytest
import torch
from PIL import Image

from tdquant.files.digests import add_value, file_digest, hash_tensors, tensor_bytes


def test_a_files_digest_is_its_sha256(tmp_path):
    content = bytes(range(256)) * 40_000  # more than a block
    (tmp_path / "a").write_bytes(content)
    assert file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_tensors_are_told_apart_by_name_type_shape_and_bytes():
    def digest(**state):
        return hash_tensors(state).hexdigest()

    x = torch.arange(4.0)
    same = digest(a=x, b=x)
    assert digest(b=x.clone(), a=x) == same
    others = [
        digest(a=x),
        digest(a=x, c=x),
        digest(a=x, b=x.reshape(2, 2)),
        digest(a=x, b=x.view(torch.int32)),
        digest(a=x, b=x + 1),
        digest(a=x, b=x.bfloat16()),
    ]
    assert len({same, *others}) == 7


@pytest.mark.parametrize("kind", [torch.Tensor.clone, torch.Tensor.numpy, Image.fromarray])
def test_values_that_differ_in_the_middle_have_other_digests(kind):
    """``repr`` leaves out the middle of long tensors and arrays."""

    def digest(value):
        found = hashlib.sha256()
        given = kind(value) if kind is not Image.fromarray else kind(value.numpy())
        add_value(found, ({"prompt_embeds": [given], "steps": 5},))
        return found.hexdigest()

    x = torch.zeros(64, 64, dtype=torch.uint8)
    other = x.clone()
    other[32, 32] = 1
    assert digest(x) == digest(x.clone()) != digest(other)


def test_views_have_the_digest_of_their_numbers():
    x = torch.arange(6).reshape(2, 3)
    for view in (x.T, x[:, 1:], torch.tensor([7]).expand(1, 5)[:, :1], x[:0], torch.tensor(3)):
        assert hash_tensors({"a": view}).digest() == hash_tensors({"a": view.clone()}).digest()
        assert bytes(tensor_bytes(view)) == view.numpy().tobytes()
