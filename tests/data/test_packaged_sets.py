from __future__ import annotations

import ast
import gzip
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcompress import discovery
from kdcompress.data import cifar as cifar_file
from kdcompress.data import fetch as fetch_file
from kdcompress.data import idx as idx_file
from kdcompress.data.dataset import open_data
from kdcompress.data.datasets import cifar10, cifar100, fashion_mnist, mnist
from kdcompress.errors import DataError, DownloadError
from kdcompress.recipe import DataSection

FOLDER = "cifar-10-batches-py"
SYSTEM = Path("/usr/share/datasets/fashion-mnist")


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx_set(folder, *, train=60, test=20, zipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        arrays = {
            f"{part}-images-idx3-ubyte": generator.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            f"{part}-labels-idx1-ubyte": (np.arange(count) % 10).astype(np.uint8),
        }
        for name, array in arrays.items():
            content = gzip.compress(idx(array)) if zipped else idx(array)
            (folder / (f"{name}.gz" if zipped else name)).write_bytes(content)


def batch(count, key, classes, start=0):
    pixels = (np.arange(count * 3072) % 251).astype(np.uint8).reshape(count, 3072)
    return {"data": pixels, key: [(start + i) % classes for i in range(count)], "batch_label": "a batch"}


def write_cifar10(folder):
    folder.mkdir(parents=True)
    for number, name in enumerate((*cifar10.WHERE.train, cifar10.WHERE.test)):
        (folder / name).write_bytes(pickle.dumps(batch(20, "labels", 10, number), protocol=2))


def opened(name, root=None, **more):
    return open_data(DataSection(dataset=name, root=None if root is None else str(root), **more))


@pytest.fixture
def no_network(downloads, monkeypatch):
    def refused(request, timeout):
        raise OSError(111, "Connection refused")

    monkeypatch.setattr(fetch_file.urllib.request, "urlopen", refused)
    for plugin in (fashion_mnist, mnist):
        monkeypatch.setattr(plugin, "WHERE", type(plugin.WHERE)(
            plugin.WHERE.name, plugin.WHERE.below, plugin.WHERE.mirrors, plugin.WHERE.md5, ()
        ))  # fmt: skip


def test_every_data_set_says_what_it_is_before_it_is_imported():
    own = ["imagefolder", "imageshards", "imagetable"]
    expected = ["cifar10", "cifar100", "digits", "fashion-mnist", *own, "mnist"]
    assert discovery.names("dataset") == expected
    for name in expected:
        header = discovery.header("dataset", name)
        assert header.summary
        assert {"SIZE", "CHANNELS"} <= header.constants.keys()
        if name not in own:
            assert {"CLASSES", "IMAGES"} <= header.constants.keys()


def test_digits_come_cut_and_measured():
    data = opened("digits")
    assert data.counts == {"train": 1437, "held_out": 180, "test": 180, "broken": 0}
    assert data.class_names == tuple("0123456789")
    assert (data.channels, data.image_size, data.augment, data.train.pad) == (1, (8, 8), "crop", 1)
    assert data.train.images.max() == 255
    assert data.train.labels.bincount().min() >= 138
    pixels = data.train.images.double() / 255
    assert data.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-6)
    assert data.std[0] == pytest.approx(float(pixels.std(correction=0)), abs=1e-6)


def test_digits_have_no_use_for_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"leave data\.root and --data out"):
        opened("digits", tmp_path)


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist_is_read_from_a_folder_plain_or_zipped(tmp_path, place, zipped):
    write_idx_set(tmp_path / place, zipped=zipped)
    data = opened("fashion-mnist", tmp_path)
    assert data.counts == {"train": 54, "held_out": 6, "test": 20, "broken": 0}
    assert data.class_names[9] == "Ankle boot"
    assert data.test.labels[:3].tolist() == [0, 1, 2]
    assert (data.license, data.augment, data.input_spec().resize) == ("MIT", "crop_flip", None)


@pytest.mark.skipif(not SYSTEM.is_dir(), reason="the real Fashion-MNIST is not installed")
def test_the_real_fashion_mnist_is_read():
    data = opened("fashion-mnist", SYSTEM)
    assert data.counts == {"train": 54_000, "held_out": 6_000, "test": 10_000, "broken": 0}
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.test.labels[:5].tolist() == [9, 2, 1, 1, 6]
    assert data.mean[0] == pytest.approx(0.2860, abs=5e-4)
    assert data.std[0] == pytest.approx(0.3530, abs=5e-4)


def test_the_cache_is_looked_at_before_the_network(tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path))
    write_idx_set(tmp_path / "datasets" / "mnist", zipped=True)
    data = opened("mnist")
    assert data.counts["test"] == 20
    assert (data.augment, data.train.pad) == ("crop", 2)


@pytest.fixture(params=["mnist", "cifar10"])
def damaged_download(request, tmp_path, monkeypatch):
    """Puts a set with a damaged file into the cache; returns its name and the sound files."""
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path))
    folder = tmp_path / "datasets" / request.param
    if request.param == "mnist":
        write_idx_set(folder, zipped=True)
    else:
        write_cifar10(tmp_path / FOLDER)
        folder.mkdir(parents=True)
        with tarfile.open(folder / cifar10.WHERE.archive, "w:gz") as archive:
            archive.add(tmp_path / FOLDER, FOLDER)
    sound = {path.name: path.read_bytes() for path in folder.iterdir()}
    path = max(folder.iterdir(), key=lambda file: file.stat().st_size)
    path.write_bytes(sound[path.name][:-100])
    return request.param, sound


def test_a_damaged_download_in_the_cache_costs_a_notice_and_a_download(damaged_download, monkeypatch, capsys):
    name, sound = damaged_download

    def fetched(urls, path, *, replace, **_):
        assert replace
        path.write_bytes(sound[path.name])
        return path

    monkeypatch.setattr(idx_file if name == "mnist" else cifar_file, "fetch", fetched)
    assert opened(name).counts["test"] == 20
    assert "cannot be read" in (notice := capsys.readouterr().err)
    assert "it is downloaded again" in notice


def test_a_damaged_download_is_named_where_there_is_no_network(damaged_download, no_network):
    with pytest.raises(DataError, match="cannot be read"):
        opened(damaged_download[0])


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_without_network_the_message_says_which_files_to_put_where(name, no_network):
    with pytest.raises(DownloadError, match=r"Connection refused\); put .* --data DIR") as caught:
        opened(name)
    expected = "t10k-labels-idx1-ubyte" if "mnist" in name else f"{name[:5]}-{name[5:]}-python.tar.gz"
    assert expected in str(caught.value)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_wrong_folder_is_one_clear_sentence(tmp_path, name):
    with pytest.raises(DataError, match="no such folder"):
        opened(name, tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file, not a folder"):
        opened(name, tmp_path / "file")
    with pytest.raises(DataError, match=name):
        opened(name, tmp_path)


def test_only_the_missing_files_are_asked_for(tmp_path):
    write_idx_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="mnist needs t10k-labels-idx1-ubyte "):
        opened("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("train-images-idx3-ubyte", lambda b: b"\x00\x00\x08\x01" + b[4:], "not an IDX file"),
        ("train-images-idx3-ubyte", lambda b: b[:-1], "cut short or damaged"),
        ("train-images-idx3-ubyte", lambda b: b"", "not an IDX file"),
        ("t10k-labels-idx1-ubyte", lambda b: b + b"\0", "the file holds 21"),
        ("t10k-labels-idx1-ubyte", lambda b: b[:-1] + b"\x0a", "label 10"),
        ("t10k-labels-idx1-ubyte", lambda b: idx(np.zeros(3, np.uint8)), "3 labels for the 20 images"),
        ("t10k-images-idx3-ubyte", lambda b: idx(np.zeros((20, 32, 32), np.uint8)), "28 × 28"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, change, sentence):
    write_idx_set(tmp_path)
    path = tmp_path / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=sentence) as caught:
        opened("mnist", tmp_path)
    assert name in str(caught.value)


def test_a_truncated_gzip_file_is_named(tmp_path):
    write_idx_set(tmp_path, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        opened("mnist", tmp_path)


def test_cifar10_is_read_from_folder_and_archive(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar10(folder)
    data = opened("cifar10", tmp_path)
    assert data.counts == {"train": 90, "held_out": 10, "test": 20, "broken": 0}
    assert (data.channels, data.image_size, data.augment) == (3, (32, 32), "crop_flip")
    expected = torch.from_numpy(batch(20, "labels", 10, 5)["data"]).view(20, 3, 32, 32)
    assert torch.equal(data.test.images, expected)
    assert data.test.labels[0] == 5
    assert opened("cifar10", folder).listing_sha256 == data.listing_sha256

    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")
    assert opened("cifar10", tmp_path / "packed").listing_sha256 == data.listing_sha256


def test_cifar100_uses_the_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, count in (("train", 300), ("test", 100)):
        document = {**batch(count, "fine_labels", 100), "coarse_labels": [0] * count}
        (folder / name).write_bytes(pickle.dumps(document, protocol=2))
    data = opened("cifar100", tmp_path, held_out=0.0)
    assert (data.num_classes, data.class_names[0], data.class_names[99]) == (100, "apple", "worm")
    assert len(set(cifar100.NAMES)) == 100
    assert sorted(cifar100.NAMES) == list(cifar100.NAMES)
    assert data.test.labels.tolist() == list(range(100))
    assert data.held_out is None


class Runs:
    """What a hostile batch may hold."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


@pytest.mark.parametrize("content", [pickle.dumps(Runs(), protocol=2), b"", b"text", pickle.dumps([1, 2])])
def test_a_batch_that_is_none_is_refused_and_not_run(tmp_path, content):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar10(folder)
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match="data_batch_3: not a CIFAR batch"):
        opened("cifar10", tmp_path)


def test_a_batch_of_the_wrong_shape_is_named(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar10(folder)
    short = {**batch(20, "labels", 10), "labels": [0] * 3}
    (folder / "data_batch_2").write_bytes(pickle.dumps(short, protocol=2))
    with pytest.raises(DataError, match="data_batch_2: expected 'labels' with a label for each of the 20"):
        opened("cifar10", tmp_path)


@pytest.mark.parametrize("kind", ["(1,i4", "i4,(", "(", "V99999999999999999999"])
def test_a_kind_of_array_that_is_none_is_no_traceback(tmp_path, kind):
    write_cifar10(tmp_path / FOLDER)
    text = kind.encode()
    # What pickle writes for numpy.dtype(kind).
    content = b"\x80\x02cnumpy\ndtype\nX" + len(text).to_bytes(4, "little") + text + b"\x85R."
    (tmp_path / FOLDER / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match="data_batch_3: not a CIFAR batch"):
        opened("cifar10", tmp_path)


def test_a_pipe_in_place_of_an_archive_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(DataError, match="not a regular file"):
        opened("cifar10", tmp_path)


def test_an_archive_whose_batch_is_a_link_to_nothing_is_named(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo(f"{FOLDER}/test_batch")
        member.type, member.linkname = tarfile.SYMTYPE, "nothing"
        archive.addfile(member)
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz: cannot be read"):
        opened("cifar10", tmp_path)


def test_a_file_that_unpacks_to_more_than_any_set_has_is_refused(tmp_path, monkeypatch):
    write_idx_set(tmp_path, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(10**6)))
    monkeypatch.setattr(idx_file, "_MOST_BYTES", 50_000)
    with pytest.raises(DataError, match=r"ubyte\.gz: cannot be read: it unpacks to more than"):
        opened("mnist", tmp_path)


def test_an_archive_cut_short_is_named(tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        info.size = 100_000
        archive.addfile(info, io.BytesIO(np.random.default_rng(0).bytes(100_000)))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(content.getvalue()[:-1000])
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz: "):
        opened("cifar10", tmp_path)


def test_the_constants_of_the_listing_are_literals():
    for plugin in (cifar10, cifar100, fashion_mnist, mnist):
        tree = ast.parse(Path(plugin.__file__).read_text(encoding="utf-8"))
        assert ast.get_docstring(tree).splitlines()[0].endswith(".")
        assert len(plugin.NAMES if hasattr(plugin, "NAMES") else range(10)) == plugin.CLASSES
