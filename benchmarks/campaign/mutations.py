"""Damage to the files of a folder, each a function of a random generator."""

import json
import shutil
import struct
from random import Random

import yaml

NAMES = ["../../outside", "/tmp/outside", "..", "", ".", "a/../../b", "x" * 5000, "a\0b", "\ud800"]
NUMBERS = [0, -1, 1, 2**31, 2**63, 2**70, -(2**70), 1e308, 1e-320, 0.5, float("inf"),
           float("nan"), True]  # fmt: skip
OTHERS = [None, [], {}, "", "text", [[]], {"": None}, [None], False]
DTYPES = ["F32", "F16", "BF16", "I8", "U8", "I64", "BOOL", "F8_E4M3", "F64", "X9"]


def truncated(data, random):
    return data[: random.randrange(len(data) + 1)]


def flipped(data, random):
    data = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 8, 64])):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def flipped_early(data, random):
    """Bits of the first bytes, where formats have lengths and types."""
    return flipped(data[:256], random) + data[256:]


def zeroed(data, random):
    start, length = random.randrange(len(data)), random.choice([1, 8, 64, 512, 4096])
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def overwritten(data, random):
    start, length = random.randrange(len(data)), random.choice([1, 8, 64, 512])
    return data[:start] + random.randbytes(length) + data[start + length :]


def cut_out(data, random):
    start, length = random.randrange(len(data)), random.choice([1, 2, 8, 64, 512])
    return data[:start] + data[start + length :]


def inserted(data, random):
    start = random.randrange(len(data) + 1)
    return data[:start] + random.randbytes(random.choice([1, 8, 64, 4096])) + data[start:]


def repeated(data, random):
    start, length = random.randrange(len(data)), random.choice([8, 64, 512, 4096])
    return data[: start + length] + data[start : start + length] + data[start + length :]


def lengths(data, random):
    """The first eight bytes, a length in several formats, swapped or replaced."""
    head = data[:8].ljust(8, b"\0")
    return random.choice([
        head[::-1],
        struct.pack("<Q", random.choice([0, 1, len(data), len(data) // 2, 2**62, 2**64 - 1])),
        struct.pack(">I", random.randrange(2**32)) + head[4:],
    ]) + data[8:]  # fmt: skip


def swapped(data, random):
    """Two ranges of the file change places."""
    length = min(random.choice([4, 8, 64]), len(data) // 2)
    one, other = sorted(random.randrange(len(data) - length + 1) for _ in range(2))
    other = max(other, one + length)
    if other + length > len(data):
        return data[::-1]
    a, b = data[one : one + length], data[other : other + length]
    return data[:one] + b + data[one + length : other] + a + data[other + length :]


def other_words(data, random):
    """Another text altogether."""
    return random.choice([
        b"", b"<html>404</html>", b"\x80\x04N.", b"PK\x03\x04", b"null", b"[]", b"\xff\xfe", b"{",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", b"\0" * 4096,
        b"\x89PNG\r\n\x1a\n", b"[" * 100_000, b'{"a":' * 50_000, b"nan", b"\n" * 10,
    ])  # fmt: skip


BYTES = [truncated, flipped, flipped_early, zeroed, overwritten, cut_out, inserted, repeated,
         lengths, swapped, other_words]  # fmt: skip


def places(tree, found=()):
    """The paths of all entries of a tree of lists and dictionaries."""
    pairs = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in pairs:
        yield (*found, key)
        yield from places(value, (*found, key))


def changed_tree(tree, random):
    """A tree with one entry removed, repeated, or of another type, size or depth."""
    found = list(places(tree))
    if not found:
        return random.choice(OTHERS)
    *above, key = random.choice(found)
    parent = tree
    for name in above:
        parent = parent[name]
    value = parent[key]
    act = random.randrange(9)
    if act == 0:
        del parent[key]
    elif act == 1:
        parent[key] = random.choice(OTHERS)
    elif act == 2:
        parent[key] = random.choice(NUMBERS)
    elif act == 3:
        parent[key] = random.choice(NAMES)
    elif act == 4:
        deep = value
        for _ in range(random.choice([1, 30, 900])):
            deep = [deep] if random.randrange(2) else {"a": deep}
        parent[key] = deep
    elif act == 5 and isinstance(value, int | float) and not isinstance(value, bool):
        parent[key] = random.choice([value + 1, -value, value * 1000, str(value), value + 0.5])
    elif act == 5 and isinstance(value, str):
        at = random.randrange(len(value) + 1)
        parent[key] = value[:at] + random.choice(["/", "..", "\0", "é", "9", ""]) + value[at + 1 :]
    elif act == 6 and isinstance(parent, dict):
        parent[random.choice(NAMES)] = value
    elif act == 7 and isinstance(parent, dict):
        parent[random.choice(list(parent))] = value
    elif act == 8 and isinstance(parent, list):
        parent.extend([value] * random.choice([1, 1000]))
    else:
        parent[key] = [value] * random.choice([2, 100])
    return tree


def changed_json(data, random):
    tree = changed_tree(json.loads(data), random)
    text = json.dumps(tree)
    if not random.randrange(8) and isinstance(tree, dict) and tree:
        text = text[:-1] + ", " + json.dumps(dict([random.choice(list(tree.items()))]))[1:]
    if not random.randrange(12):
        text = text.replace(random.choice("0123456789") + "}", "9" * 5000 + "}")
    return text.encode("utf-8", "surrogatepass")


def changed_yaml(data, random):
    if not random.randrange(6):
        return data + random.choice([
            b"\na: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
            b"\n" + b"".join(b"k%d: &k%d [%s]\n" % (i, i, b",".join([b"*k%d" % (i - 1)] * 9)
                             if i else b"x") for i in range(9)),
            b"\nz: !!python/object/apply:os.system ['touch ran']\n", b"\n\t- :\n", b"\nq: ${q}\n",
            b"\nq: ${oc.env:HOME}\n", b"\n? [a]\n: b\n",
        ])  # fmt: skip
    tree = changed_tree(yaml.safe_load(data), random)
    try:
        return yaml.safe_dump(tree, sort_keys=False).encode("utf-8", "surrogatepass")
    except (RecursionError, yaml.YAMLError):
        return json.dumps(tree).encode("utf-8", "surrogatepass")


def changed_header(data, random):
    """The JSON in front of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    tensors = [name for name in header if name != "__metadata__"]
    name = random.choice(tensors) if tensors else None
    act = random.randrange(8)
    if act == 0 or name is None:
        header = changed_tree(header, random)
    elif act == 1:
        header[name]["dtype"] = random.choice(DTYPES)
    elif act == 2:
        header[name]["shape"] = random.choice(
            [
                [],
                [0],
                header[name]["shape"][::-1],
                [2**40],
                [-1],
                [1, *header[name]["shape"]],
                [2**62, 4],
            ]
        )
    elif act == 3:  # two names for the same bytes
        header[random.choice(tensors)] = dict(header[name])
    elif act == 4:
        header[name + ".x"] = header.pop(name)
    elif act == 5:
        del header[name]
    elif act == 6:
        start, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = random.choice(
            [[end, start], [start, end + 1], [0, 2**60], [start + 4, end + 4]]
        )
    else:
        header.setdefault("__metadata__", {})[
            random.choice(["format", "calls", "facts", "job"])
        ] = random.choice(["", "[]", "{", "null", "[" * 10_000, "tf"])
    text = json.dumps(header)
    if not random.randrange(10) and name is not None:  # a name twice
        text = text[:-1] + ", " + json.dumps({name: header.get(name)})[1:]
    text = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + rest


def changed_text(data, random):
    """Numbers and names between quotes of XML."""
    pieces = data.split(b'"')
    if len(pieces) < 3 or not random.randrange(8):
        bomb = (
            b'<!DOCTYPE a [<!ENTITY b "bbbbbbbb">'
            + b"".join(
                b'<!ENTITY c%d "%s">' % (i, b"&b;" * 8 if not i else b"&c%d;" % (i - 1) * 8)
                for i in range(9)
            )
            + b"]>"
        )
        end = data.find(b"?>")
        return data[: end + 2] + bomb + data[end + 2 :]
    at = 2 * random.randrange(len(pieces) // 2) + 1
    pieces[at] = random.choice([
        b"", b"-1", b"0", b"99999999999999999999", b"x", b"f64", pieces[at] * 2, b"../../outside",
        b"1,2,3", pieces[random.randrange(len(pieces))].replace(b'"', b""), b"&c8;", b"nan",
    ])  # fmt: skip
    return b'"'.join(pieces)


BY_SUFFIX = {
    ".json": changed_json, ".jsonl": changed_json, ".yaml": changed_yaml, ".xml": changed_text,
    ".safetensors": changed_header,
}  # fmt: skip


def as_folder(file, random):
    file.unlink()
    file.mkdir()


def as_link_to_itself(file, random):
    file.unlink()
    file.symlink_to(file.name)


def as_link_to_nothing(file, random):
    file.unlink()
    file.symlink_to("/nowhere/at/all")


def missing(file, random):
    file.unlink()


def unreadable(file, random):
    file.chmod(0)


def named_otherwise(file, random):
    file.rename(file.with_name(random.choice(["other" + file.suffix, file.name + ".1", "é.bin"])))


def exchanged(file, random):
    """The content of another file of the folder."""
    others = [f for f in file.parent.rglob("*") if f.is_file() and f != file]
    shutil.copy(random.choice(others or [file]), file.with_name("exchanged"))
    file.with_name("exchanged").replace(file)


PLACES = [as_folder, as_link_to_itself, as_link_to_nothing, missing, unreadable, named_otherwise,
          exchanged]  # fmt: skip


def mutate(folder, seed):
    """Damages one file of a folder, a function of the seed; what was done, in words."""
    random = Random(seed)
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.stat().st_size)
    suffix = random.choice(sorted({f.suffix for f in files}))  # many pictures, and one index
    file = random.choice([f for f in files if f.suffix == suffix])
    name = file.relative_to(folder).as_posix()
    if not random.randrange(8):
        act = random.choice(PLACES)
        act(file, random)
        return f"{act.__name__} {name}"
    own = BY_SUFFIX.get(file.suffix)
    act = own if own is not None and random.randrange(2) else random.choice(BYTES)
    data = file.read_bytes()
    try:
        new = act(data, random)
    except Exception:  # a file of another content
        act, new = flipped, flipped(data, random)
    file.unlink()  # the original may be a link
    file.write_bytes(new)
    return f"{act.__name__} {name}"
