import contextlib
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from tdquant.errors import StorageError, TDQError
from tdquant.files.checkpoints import open_checkpoint
from tests.files.checkpoints.lightning import write_lightning

FORMATS = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    "protocol 4": {"pickle_protocol": 4},
    "legacy, protocol 5": {"pickle_protocol": 5, "_use_new_zipfile_serialization": False},
}


def tensors():
    """Tensors of many kinds, some of them views of one storage."""
    torch.manual_seed(0)
    whole = torch.randn(4, 6)
    out = {
        "float": torch.randn(3, 4),
        "half": torch.randn(5).half(),
        "bfloat16": torch.randn(2, 2).bfloat16(),
        "double": torch.randn(2).double(),
        "long": torch.arange(4),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64),
        "scalar": torch.tensor(0.2458),
        "empty": torch.empty(0, 3),
        "expanded": torch.zeros(1).expand(10),
        "parameter": nn.Parameter(torch.randn(2)),
        "whole": whole,
        "row": whole[1],
        "transposed": whole.t()[1:],
    }
    return OrderedDict(out)


def read(path):
    with open_checkpoint(path) as found:
        return {name: tensor.load() for name, tensor in found.items()}


def repack(source, target, change, method=zipfile.ZIP_DEFLATED):
    """Another archive with the entries of one, compressed and changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))


def same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", FORMATS)
def test_every_tensor_comes_back_to_the_bit(tmp_path, name):
    torch.save({"state_dict": tensors()}, tmp_path / "m.ckpt", **FORMATS[name])
    same(read(tmp_path / "m.ckpt"), tensors())


@pytest.mark.parametrize("name", FORMATS)
def test_lightning_files_without_lightning(tmp_path, name):
    file = write_lightning(tmp_path / "m.ckpt", tensors(), **FORMATS[name])
    with pytest.raises(ImportError):
        torch.load(file, weights_only=False)
    same(read(file), tensors())


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_a_state_dict_at_the_top_whatever_the_suffix(tmp_path, suffix):
    torch.save(tensors(), tmp_path / f"m{suffix}")
    same(read(tmp_path / f"m{suffix}"), tensors())


def test_what_is_known_before_reading(tmp_path):
    torch.save(tensors(), tmp_path / "m.pt")
    save_file({"half": torch.ones(5, 2).half()}, tmp_path / "m.safetensors")
    with open_checkpoint(tmp_path / "m.pt") as found:
        half = found["half"]
        assert (half.shape, half.dtype, half.ndim, half.nbytes) == ((5,), torch.float16, 1, 10)
        assert half.read().dtype == torch.float32
        assert found["long"].read().dtype == torch.int64
        assert found["whole"].reshape(24).read().shape == (24,)
    with open_checkpoint(tmp_path / "m.safetensors") as found:
        assert (found["half"].shape, found["half"].dtype) == ((5, 2), torch.float16)
        assert torch.equal(found["half"].read(), torch.ones(5, 2))


@pytest.mark.parametrize("write", [torch.save, lambda t, p: save_file(dict(t), p)])
def test_the_prefix_of_parallel_training(tmp_path, write):
    file = tmp_path / ("m.pt" if write is torch.save else "m.safetensors")
    write(OrderedDict({"module.a": torch.ones(2), "module.b.c": torch.zeros(3)}), file)
    assert set(read(file)) == {"a", "b.c"}
    write(OrderedDict({"module.a": torch.ones(2), "b": torch.zeros(3)}), file)
    assert set(read(file)) == {"module.a", "b"}


def test_an_archive_that_somebody_packed_again(tmp_path):
    torch.save({"state_dict": tensors()}, tmp_path / "m.ckpt")
    repack(tmp_path / "m.ckpt", tmp_path / "n.ckpt", lambda name, content: content)
    same(read(tmp_path / "n.ckpt"), tensors())


def test_numbers_of_the_other_byte_order(tmp_path):
    torch.save({"a": torch.arange(5, dtype=torch.int32)}, tmp_path / "m.pt")

    def swap(name, content):
        if name.endswith("byteorder"):
            return b"big"
        if "/data/" in name:
            return torch.arange(5, dtype=torch.int32).numpy().byteswap().tobytes()
        return content

    repack(tmp_path / "m.pt", tmp_path / "n.pt", swap)
    assert read(tmp_path / "n.pt")["a"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read peaks from")
def test_memory_while_a_module_is_filled(tmp_path):
    """Peak below 1.1 times the file, the file's tensors being all that is wanted."""
    code = (
        "import re, sys, torch\n"
        "from pathlib import Path\n"
        "from torch import nn\n"
        "from tdquant.files.checkpoints import open_checkpoint\n"
        "from tdquant.files.checkpoints.tensors import fill_module\n"
        "def peak():\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    return 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', status)[1])\n"
        "layers = [nn.Linear(1024, 1024, device='meta') for _ in range(64)]\n"
        "nn.Linear(1024, 1024)(torch.ones(1, 1024))\n"
        "before = peak()\n"
        "with open_checkpoint(sys.argv[1]) as found:\n"
        "    fill_module(model := nn.Sequential(*layers), found)\n"
        "after = peak()\n"
        "assert model(torch.ones(1, 1024)).isfinite().all()\n"
        "print(after - before)\n"
    )
    state = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(64)]).state_dict()
    for name, write in (("m.pt", torch.save), ("m.safetensors", save_file)):
        file = tmp_path / name
        write(state, file)
        command = [sys.executable, "-c", code, str(file)]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert peak < 1.1 * file.stat().st_size, (name, peak)
        assert peak > 0.9 * file.stat().st_size, (name, peak)


def test_what_is_no_checkpoint_says_what_it_is(tmp_path):
    cases = {
        "absent.ckpt": (None, "no such file"),
        "text.ckpt": (b"hello", "cannot be read"),
        "empty.ckpt": (b"", "cannot be read"),
        "empty.safetensors": (b"", "cannot be read"),
        "zeros.ckpt": (bytes(5000), "cannot be read"),
    }
    for name, (content, words) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(StorageError, match=words) as error:
            read(tmp_path / name)
        assert name in str(error.value)
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(StorageError, match="a folder, not a checkpoint file"):
        read(tmp_path / "folder.ckpt")
    for thing, words in (
        ([torch.zeros(1)], "it holds a list"),
        ({"epoch": 3}, "no state dict"),
        ({"state_dict": {}}, "no state dict"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (torch.zeros(3), "it holds a LazyTensor"),
    ):
        torch.save(thing, tmp_path / "thing.pt")
        with pytest.raises(StorageError, match=words):
            read(tmp_path / "thing.pt")
    with zipfile.ZipFile(tmp_path / "other.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(StorageError, match=r"none of torch\.save"):
        read(tmp_path / "other.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(StorageError, match=r"a pickle, but none of torch\.save"):
        read(tmp_path / "plain.ckpt")


def test_a_torchscript_program_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as program:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            program.writestr(f"m/{name}", b"N.")
    with pytest.raises(StorageError, match="TorchScript"):
        read(tmp_path / "m.pt")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for name, options in FORMATS.items():
        write_lightning(folder / f"{name}.ckpt", tensors(), **options)
    own = {k: v.detach().clone().contiguous() for k, v in tensors().items() if k != "complex"}
    save_file(own, folder / "m.safetensors")
    return sorted(folder.iterdir())


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files_are_an_error_or_read(files, tmp_path_factory, data):
    """Whatever is cut or changed in a file: tensors, or one error of ours."""
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    harmed = tmp_path_factory.getbasetemp() / f"harmed{file.suffix}"
    harmed.write_bytes(content)
    with contextlib.suppress(TDQError):  # anything else is a failure
        assert all(isinstance(tensor, torch.Tensor) for tensor in read(harmed).values())


def test_bits_that_say_conjugate_or_negative(tmp_path):
    x, y = (torch.randn(3, dtype=torch.complex64) for _ in range(2))
    for state in ({"conjugate": x.conj()}, {"imaginary": y.conj().imag}):
        torch.save(state, tmp_path / "m.pt")
        found = read(tmp_path / "m.pt")
        assert all(torch.equal(found[k], v.resolve_conj().resolve_neg()) for k, v in state.items())


def test_tensors_of_other_kinds_are_left_out(tmp_path):
    state = {
        "a": torch.ones(2),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(2, device="meta"),
    }
    torch.save(state, tmp_path / "m.pt")
    assert set(read(tmp_path / "m.pt")) == {"a"}


def entry(content):
    """Where the numbers of storage 0 lie in an archive."""
    at = content.index(b"/data/0")
    return content.index(torch.ones(4).numpy().tobytes(), at)


def test_a_flipped_bit_is_found(tmp_path):
    torch.save({"a": torch.ones(4)}, tmp_path / "m.pt")
    content = bytearray((tmp_path / "m.pt").read_bytes())
    content[entry(content) + 2] ^= 1
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(StorageError, match="other numbers than written"):
        read(tmp_path / "m.pt")


def test_archives_without_checksums_are_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(4)}, tmp_path / "m.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read(tmp_path / "m.pt")["a"], torch.ones(4))


@pytest.mark.parametrize("order", [b"little\n", b"LITTLE", b""])
def test_an_unknown_order_of_bytes(tmp_path, order):
    torch.save({"a": torch.ones(4)}, tmp_path / "m.pt")

    def change(name, content):
        return order if name.endswith("byteorder") else content

    repack(tmp_path / "m.pt", tmp_path / "n.pt", change)
    with pytest.raises(StorageError, match="order of bytes"):
        read(tmp_path / "n.pt")


def test_entries_that_point_elsewhere(tmp_path):
    torch.save({"a": torch.ones(4), "b": torch.zeros(4)}, tmp_path / "m.pt")
    content = (tmp_path / "m.pt").read_bytes()
    local = content.index(b"m/data/1")
    (tmp_path / "m.pt").write_bytes(content[:local] + b"m/data/0" + content[local + 8 :])
    with pytest.raises(StorageError, match="not where it should be"):
        read(tmp_path / "m.pt")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_damaged_compressed_archives(tmp_path, method):
    exact = torch.randn(500)
    torch.save({"a": exact}, tmp_path / "m.pt")
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as old,
        zipfile.ZipFile(tmp_path / "n.pt", "w", method) as new,
    ):
        for one in old.infolist():
            new.writestr(one.filename, old.read(one))
    content, refused = (tmp_path / "n.pt").read_bytes(), 0
    for place in range(40, len(content), 41):
        harmed = bytearray(content)
        harmed[place] ^= 0x55
        (tmp_path / "h.pt").write_bytes(harmed)
        try:
            found = read(tmp_path / "h.pt")
        except TDQError:
            refused += 1
        else:  # damage to what nobody reads
            assert torch.equal(found["a"], exact)
    assert refused


def test_names_that_would_write_to_a_terminal(tmp_path):
    torch.save({"\x1b]0;owned\x07": torch.ones(2)}, tmp_path / "m.pt")
    with pytest.raises(StorageError, match="control characters"):
        read(tmp_path / "m.pt")


def test_names_too_long_for_a_file(tmp_path):
    with pytest.raises(StorageError):
        read(tmp_path / ("x" * 5000 + ".pt"))


def test_a_file_that_is_replaced_while_it_is_read(tmp_path):
    file = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, file)
    with open_checkpoint(file) as found:
        assert torch.equal(found["a"].load(), torch.ones(4))
        save_file({"a": torch.zeros(4), "b": torch.zeros(4)}, tmp_path / "new.safetensors")
        (tmp_path / "new.safetensors").replace(file)
        assert torch.equal(found["b"].load(), torch.ones(4))
