"""Pickles that do harm where they are run. Here nothing runs."""

import io
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile

import pytest
import torch

from tdquant.errors import StorageError
from tdquant.files.checkpoints import open_checkpoint
from tdquant.files.checkpoints.unpickling import Inert, unpickle


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def load(content, **options):
    return unpickle(io.BytesIO(content), {}, **options)


def archive(path, pickled):
    """A file of torch.save around a pickle."""
    torch.save({"state_dict": {"a": torch.ones(2)}}, path)
    with zipfile.ZipFile(path) as old:
        entries = {e.filename: old.read(e) for e in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            new.writestr(name, pickled if name.endswith("data.pkl") else content)
    return path


VALUES = [
    None, True, 0, -5, 2**40, 2**100, 1.5, float("inf"), "text", "ä\u20ac", b"bytes", bytes(300),
    bytearray(b"ab"), (), (1,), (1, 2), (1, 2, 3), tuple(range(9)), [], [1, [2, []]], {},
    {"a": {"b": [None]}, 3: "x", 2.5: 4}, "x" * 70000, [["shared"]] * 3,
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back(protocol):
    for value in VALUES:
        found = load(pickle.dumps(value, protocol))
        since = {bytes: 3, bytearray: 5}.get(type(value), 0)
        if protocol < since:
            assert isinstance(found, Inert)  # there, a pickle calls something that makes them
        else:
            assert found == value


@pytest.mark.parametrize("protocol", range(6))
def test_globals_are_stand_ins_that_take_what_instances_take(protocol):
    import argparse
    import collections

    content = {
        "namespace": argparse.Namespace(a=1),
        "class": argparse.Namespace,
        "default": collections.defaultdict(list, {"a": [1]}),
        "deque": collections.deque([1, 2]),
        "set": {1, 2},
        "frozen": frozenset([1]),
        argparse.Namespace: 3,
    }
    found = load(pickle.dumps(content, protocol))
    assert isinstance(found["namespace"], Inert)
    assert found["class"].name == "argparse.Namespace"
    assert 3 in found.values()
    assert len(found) == len(content)


def test_a_module_that_fails_to_import_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    content = pickle.dumps({"a": 1}, 2)[:-1]
    assert load(content + b"0ctrap\nClass\n.").name == "trap.Class"
    assert "trap" not in sys.modules


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch ran"),
        (os.mkdir, "ran"),
        (eval, "open('ran', 'w')"),
        (exec, "open('ran', 'w')"),
        (__import__, "os"),
        (open, "ran", "w"),
    ],
    ids=lambda call: call[0].__name__,
)
def test_attacks_are_named_and_not_run(tmp_path, monkeypatch, call, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match=f"it names .*{call[0].__name__}"):
        load(pickle.dumps(Calls(*call), protocol))
    hidden = {"state_dict": {}, "callbacks": [Calls(*call)]}
    archive(tmp_path / "m.ckpt", pickle.dumps(hidden, max(protocol, 2)))
    with pytest.raises(StorageError, match="no file of data needs"), open_checkpoint("m.ckpt"):
        pass
    assert not (tmp_path / "ran").exists()


def test_an_attack_by_other_names_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = b'cbdb\nrun\n(S\'open("ran", "w")\'\ntR.'
    assert load(content).name == "bdb.run()"
    assert not (tmp_path / "ran").exists()
    with pytest.raises(pickle.UnpicklingError, match=r"it names bdb\.run"):
        load(content, strict=True)


def nested(opening, depth):
    """``((), ())`` and so on, doubled ``depth`` times by reference."""
    return b"\x80\x02" + opening + b"".join(b"q\x00h\x00\x86" for _ in range(depth))


STRANGE_KEYS = {
    "a key of tuples, doubled 60 times": b"\x80\x02}" + nested(b")", 60)[2:] + b"K\x01s.",
    "a key of tuples, a million deep": b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.",
    "a key of 100,000 digits": b"\x80\x02}\x8b" + struct.pack("<i", 99_999) + b"\x01" * 99_999
    + b"K\x01s.",
    "a list as a key": b"\x80\x02}]K\x01s.",
}  # fmt: skip

BOMBS = {
    "bytes of an exabyte": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"ab.",
    "text of an exabyte": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"ab.",
    "a bytearray of an exabyte": b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"ab.",
    "text of 4 GB": b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"ab.",
    "a negative length": b"\x80\x02T" + struct.pack("<i", -5) + b"ab.",
    "no end": b"\x80\x02]",
    "nothing": b"",
    "an empty stack": b"\x80\x02.",
    "two results": b"\x80\x02K\x01K\x02.",
    "a mark that is missing": b"\x80\x02K\x01t.",
    "a memo that is missing": b"\x80\x02h\x05.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a call without a tuple": b"\x80\x02ca\nb\nK\x01R.",
    "items for a number": b"\x80\x02K\x01K\x02a.",
    "an odd number of items": b"\x80\x02}(K\x01u.",
    "buffers outside": b"\x80\x05\x97.",
    "an unknown instruction": b"\x80\x02\xff.",
    "a persistent id": b"\x80\x02K\x01Q.",
    "a global without a name": b"\x80\x04K\x01K\x02\x93.",
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE_KEYS)
def test_keys_that_are_costly_to_hash_are_stand_ins(name):
    (key,) = load(STRANGE_KEYS[name])
    assert isinstance(key, Inert)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_at_once(tmp_path, name):
    with pytest.raises(pickle.UnpicklingError):
        load(BOMBS[name])
    for file in (archive(tmp_path / "m.ckpt", BOMBS[name]), tmp_path / "raw.ckpt"):
        if file.name == "raw.ckpt":
            file.write_bytes(BOMBS[name])
        with pytest.raises(StorageError), open_checkpoint(file):
            pass


def test_a_memo_of_any_index_costs_nothing():
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = struct.pack("<I", 2**32 - 1)
    assert load(b"\x80\x02K\x07r" + index + b"0j" + index + b".") == 7
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_references_doubled_60_times_are_harmless():
    found = load(nested(b")", 60) + b".")
    for _ in range(60):
        found = found[0]
    assert found == ()


def test_values_a_million_deep_come_and_go():
    found = load(b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".")
    assert len(found) == 1
    del found


def shared(value, times, call):
    """``times`` calls ``call(value)`` of one value, by reference."""
    return b"\x80\x02" + value + b"q\x000" + (call + b"h\x00\x85R0") * times + b"N."


@pytest.mark.parametrize(
    "content",
    [
        # Items and text that functions of the table would build again and again.
        shared(b"(" + b"]" * 100_000 + b"l", 2000, b"ccollections\nOrderedDict\n"),
        shared(b"X" + struct.pack("<I", 5_000_000) + b"x" * 5_000_000, 200, b"c_codecs\nencode\n"),
    ],
    ids=["items", "text"],
)
def test_what_functions_are_given_is_counted(content):
    functions = {"collections.OrderedDict": lambda x: {}, "_codecs.encode": lambda x: x.encode()}
    began = time.perf_counter()
    with pytest.raises(pickle.UnpicklingError, match="instructions"):
        unpickle(io.BytesIO(content), functions)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "name", ["_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"]
)
def test_doubled_tuples_in_the_place_of_storages_and_types(tmp_path, name):
    doubled = nested(b")", 60)[2:]
    call = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n" + name.encode() + b"\n("
    file = archive(tmp_path / "m.ckpt", call + doubled * 8 + b"tRs.")
    with pytest.raises(StorageError), open_checkpoint(file):
        pass


def test_no_module_is_imported_for_a_dtype(tmp_path):
    code = (
        "import sys\n"
        "from tdquant.files.checkpoints.torch_tensors import _DTYPES\n"
        "assert 'torch.float8_e4m3fn' in _DTYPES and 'torch.onnx' not in _DTYPES\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_number_of_instructions_is_bounded(monkeypatch):
    monkeypatch.setattr("tdquant.files.checkpoints.unpickling.MOST_INSTRUCTIONS", 1000)
    with pytest.raises(pickle.UnpicklingError, match="more than 1,000 instructions"):
        load(b"\x80\x02" + b"]0" * 1000 + b"N.")


def test_lines_end_where_the_limit_is(tmp_path, monkeypatch):
    monkeypatch.setattr("tdquant.files.checkpoints.unpickling.MOST_BYTES", 1000)
    with pytest.raises(pickle.UnpicklingError):
        load(b"V" + b"x" * 5000 + b"\n.")
    with pytest.raises(pickle.UnpicklingError):
        load(b"\x80\x02X" + struct.pack("<I", 3000) + b"x" * 3000 + b".")


def rebuilt(size, stride, offset=0, count=4, kind="FloatStorage", key="0"):
    """The pickle of a state dict of one tensor, as torch writes it but for these numbers."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if isinstance(thing, Storage):
                return "storage", getattr(torch, kind), key, "cpu", count
            return None

    out = io.BytesIO()
    rebuild = torch._utils._rebuild_tensor_v2
    Pickler(out, 2).dump({"a": Calls(rebuild, Storage(), offset, size, stride, False, {})})
    return out.getvalue()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": (2**40,), "stride": (1,)}, "in a storage of"),
        ({"size": (2**40,), "stride": (0,)}, "in a storage of"),
        ({"size": (2, 2), "stride": (1,)}, "without a storage or a shape"),
        ({"size": (-1,), "stride": (1,)}, "negative"),
        ({"size": (1,), "stride": (1,), "offset": 2}, "in a storage of"),
        ({"size": (1,), "stride": (1,), "offset": -1}, "negative"),
        ({"size": (2,), "stride": (2**61,)}, "in a storage of"),
        ({"size": (2.0,), "stride": (1,)}, "negative"),
        ({"size": (2,), "stride": (1,), "count": 2**50}, "cut or damaged at storage"),
        ({"size": (2,), "stride": (1,), "key": "9"}, "cut or damaged at storage"),
        ({"size": (1,) * 65, "stride": (1,) * 65}, "without a storage or a shape"),
    ],
)
def test_tensors_larger_than_their_file(tmp_path, given, words):
    given = {"count": 2, **given}
    file = archive(tmp_path / "m.ckpt", rebuilt(**given))
    with pytest.raises(StorageError, match=words), open_checkpoint(file):
        pass


def test_the_same_by_the_right_numbers(tmp_path):
    file = archive(tmp_path / "m.ckpt", rebuilt((2,), (1,), count=2))
    with open_checkpoint(file) as found:
        assert found["a"].read().tolist() == [1, 1]


def test_a_pickle_that_unpacks_to_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr("tdquant.files.checkpoints.unpickling.MOST_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "m.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("m/data.pkl", bytes(1_000_000))
        bomb.writestr("m/version", "3")
    with pytest.raises(StorageError, match="more than 1,000 bytes"):
        open_checkpoint(tmp_path / "m.ckpt").__enter__()
