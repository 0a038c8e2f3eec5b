"""Sets that are stored as arrays: MNIST's IDX files, CIFAR's pickled batches, generated images in .npz."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile

import numpy as np

from hostile import damage, forked
from kdcompress.data.dataset import open_data
from kdcompress.data.datasets.cifar10 import WHERE
from kdcompress.data.extra import open_extra
from kdcompress.data.idx import FILES
from kdcompress.recipe import DataSection

LENGTHS = [0, 1, 7, 27, 29, 255, 2**16, 2**31, 2**32 - 1]


class Runs:
    """Unpickles to a call of a function, which an honest batch never does."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def array_sets(rng, folder):
    """A set of any of the three kinds with one damaged file, as a whole or in what it declares."""
    root = folder / "arrays"
    root.mkdir()
    rng.choice([idx, cifar, generated])(rng, root)


def idx(rng, root, *, sound=False):
    """Opens MNIST's files, one of them damaged unless `sound`."""
    damaged = None if sound else rng.choice(FILES)
    for name in FILES:
        shape = [12, 28, 28] if "images" in name else [12]
        values = rng.randbytes(12 * 784) if "images" in name else bytes(range(10)) + bytes(2)
        magic = bytes([0, 0, 8, len(shape)])
        if name == damaged and rng.random() < 0.6:
            shape[rng.randrange(len(shape))] = rng.choice(LENGTHS)
            if rng.random() < 0.2:
                magic = bytes([0, 0, rng.choice([8, 9, 13, 14]), rng.choice([0, 1, 2, 3, 255])])
            if "labels" in name:
                values = bytes(rng.randrange(256) for _ in range(12))
        content = magic + struct.pack(f">{len(shape)}I", *shape) + values
        packed = rng.random() < 0.5
        content = gzip.compress(content) if packed else content
        if name == damaged and rng.random() < 0.5:
            content = damage.of_bytes(rng, content)
        (root / f"{name}{'.gz' if packed else ''}").write_bytes(content)
    forked.note_inputs()
    open_data(DataSection(dataset="mnist", root=str(root)))


def cifar(rng, root, *, sound=False):
    """Opens CIFAR's batches, in a folder or an archive, damaged unless `sound`."""
    names, batches = (*WHERE.train, WHERE.test), {}
    damaged = None if sound else rng.choice(names)
    for name in names:
        pixels = np.frombuffer(rng.randbytes(10 * 3072), np.uint8).reshape(10, 3072)
        batch = {"data": pixels, "labels": list(range(10)), "batch_label": name}
        if name == damaged and rng.random() < 0.6:
            key = rng.choice(["data", "labels"])
            batch[key] = rng.choice(
                [
                    Runs(os.system, "touch ran"), Runs(open, "ran", "w"), Runs(eval, "1"),
                    Runs(np.ndarray, (10**12, 3072), np.dtype("u1")),
                    Runs(np.ndarray, (2**62,), np.dtype("u1")), np.zeros((10, 3072), np.float32),
                    np.zeros((10, 3071), np.uint8), np.zeros(3072, np.uint8), np.array([None] * 10),
                    [-1] * 10, [10**30] * 10, [True] * 10, [], {}, "x" * 10, None,
                    *map(str, damage.NASTY_TEXT),
                ]
            )  # fmt: skip
        content = pickle.dumps(batch, protocol=2 if sound else rng.choice([0, 2, 4, 5]))
        batches[name] = damage.of_bytes(rng, content) if name == damaged and rng.random() < 0.5 else content
    if rng.random() < 0.3 and not sound:
        del batches[damaged]
    if rng.random() < 0.5:
        (root / WHERE.folder).mkdir()
        for name, content in batches.items():
            (root / WHERE.folder / name).write_bytes(content)
    else:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
            for name, content in batches.items():
                member = tarfile.TarInfo(f"{WHERE.folder}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        content = file.getvalue()
        if rng.random() < 0.5 and not sound:
            content = damage.of_bytes(rng, content)
        (root / WHERE.archive).write_bytes(content)
    forked.note_inputs()
    open_data(DataSection(dataset="cifar10", root=str(root)))


def generated(rng, root, *, sound=False):
    """Opens generated images, damaged unless `sound`."""
    count = 6
    arrays = {
        "images": np.frombuffer(rng.randbytes(count * 64), np.uint8).reshape(count, 8, 8),
        "labels": np.arange(count),
    }
    if rng.random() < 0.5 and not sound:
        key = rng.choice(list(arrays))
        arrays[key] = rng.choice(
            [
                np.zeros(0), np.zeros((2, 3)), np.array("x"), np.array(np.nan), np.full(count, 10**12),
                np.full(count, -7), np.zeros((count, 8, 8, 5), np.uint8), np.zeros((count, 0, 8), np.uint8),
                np.zeros((count, 1, 3000), np.uint8), np.array([None] * count), np.zeros(count, "U70000"),
            ]
        )  # fmt: skip
        if rng.random() < 0.2:
            del arrays[key]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    content = buffer.getvalue()
    if rng.random() < 0.5 and not sound:
        content = damage.of_bytes(rng, content)
    path = root / "generated.npz"
    path.write_bytes(content)
    forked.note_inputs()
    real = open_data(DataSection(dataset="digits"))
    section = DataSection(dataset="digits", extra={"root": str(path)})
    extra = open_extra(section, real.class_names, real.train)
    extra.source.labels.sum()
