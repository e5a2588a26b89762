"""Tiny data sets in the published formats, written by hand."""

import gzip
import io
import struct

import lmdb
import numpy as np
from PIL import Image

PLANE = 32 * 32


def picture(seed=0, size=(12, 10), mode="RGB"):
    """A smooth picture, which lossy codecs keep."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR).convert(mode)


def encoded(seed=0, size=(12, 10), form="png"):
    stream = io.BytesIO()
    picture(seed, size).save(stream, form)
    return stream.getvalue()


def records(seed, count=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count).tolist()
    return rng.integers(0, 256, (count, 3 * PLANE), dtype=np.uint8), labels


def python2_pickle(data, labels):
    """The bytes that Python 2 wrote for {"data": array, "labels": list}, opcode by opcode."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def whole(value):
        return b"J" + struct.pack("<i", value)

    dtype = (
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01" + whole(data.shape[0]) + whole(data.shape[1]) + b"\x86" + dtype + b"\x89"
        b"T" + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    )
    classes = b"](" + b"".join(whole(label) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + classes + b"u."


def write_cifar10(root, form="py"):
    """Both splits; batch b holds ``records(b)``, the test batch ``records(6)``."""
    folder = root / f"cifar-10-batches-{form}"
    folder.mkdir(parents=True)
    for seed in range(1, 7):
        data, labels = records(seed)
        name = f"data_batch_{seed}" if seed < 6 else "test_batch"
        if form == "py":
            (folder / name).write_bytes(python2_pickle(data, labels))
        else:
            (folder / f"{name}.bin").write_bytes(
                b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, data))  # noqa: B905
            )
    return folder


def idx(values):
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


def write_fashion_mnist(root, compressed=True, count=5):
    """Both splits; returns the training images and labels."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    out = {}
    for prefix in ("t10k", "train"):
        out["images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        out["labels-idx1-ubyte"] = rng.integers(0, 10, count, dtype=np.uint8)
        for name, values in out.items():
            path = root / f"{prefix}-{name}{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(idx(values)) if compressed else idx(values))
    return out["images-idx3-ubyte"], out["labels-idx1-ubyte"]


def write_images(root, count=5, form="png"):
    root.mkdir(parents=True, exist_ok=True)
    names = [f"{i}.{form}" for i in range(count)]
    for i, name in enumerate(names):
        (root / name).write_bytes(encoded(i, form=form))
    return names


def write_lmdb(root, values):
    with lmdb.open(str(root), map_size=1 << 22) as environment, environment.begin(write=True) as t:
        for key, value in values.items():
            t.put(key, value)
    return root
