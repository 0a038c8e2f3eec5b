"""Generated images: what is read, what is refused, and how they stand beside the real ones."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from kdcompress.data import extra as extra_file
from kdcompress.data.dataset import open_data
from kdcompress.data.extra import open_extra
from kdcompress.data.joined import JoinedSource
from kdcompress.data.loader import TrainingLoader
from kdcompress.data.orders import batch_order
from kdcompress.data.source import FolderSource, MemorySource
from kdcompress.errors import DataError
from kdcompress.recipe import DataSection, ExtraSection

NAMES = ("cat", "dog", "eel")
REAL = MemorySource(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 3, pad=2)
GREY = MemorySource(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4) % 3)


def opened(root, like=REAL, names=NAMES, **more):
    return open_extra(DataSection(extra=ExtraSection(root=str(root)), **more), names, like)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def all_of(source):
    return source.evaluation_images(torch.arange(len(source)))


# ---- .npz files


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("arr_0", "arr_1")])
@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
def test_an_npz_file_gives_its_pixels_and_labels(tmp_path, names, first):
    images, labels = drawn(5, 8, 8, 3), np.array([2, 0, -1, 1, 1], dtype=np.int16)
    stored = images.transpose(0, 3, 1, 2) if first else images
    np.savez_compressed(tmp_path / "made.npz", **dict(zip(names, (stored, labels), strict=True)))
    extra = opened(tmp_path / "made.npz")
    assert torch.equal(all_of(extra.source), torch.from_numpy(images).permute(0, 3, 1, 2))
    assert extra.source.labels.tolist() == [2, 0, -1, 1, 1]
    assert extra.source.pad == REAL.pad
    assert extra.counts == {"images": 5, "labelled": 4, "broken": 0}
    assert extra.name == "made.npz"


def test_arrays_that_nobody_named_are_read_in_their_order(tmp_path):
    np.savez(tmp_path / "made.npz", drawn(2, 8, 8, 3), np.array([1, 2]))
    assert opened(tmp_path / "made.npz").source.labels.tolist() == [1, 2]


def test_without_labels_there_are_none_and_without_known_classes_they_are_not_looked_at(tmp_path):
    np.savez(tmp_path / "alone.npz", images=drawn(3, 8, 8, 3))
    assert opened(tmp_path / "alone.npz").source.labels.tolist() == [-1] * 3
    np.savez(tmp_path / "both.npz", images=drawn(3, 8, 8, 3), labels=np.array([100, 200, 300]))
    assert opened(tmp_path / "both.npz", names=()).source.labels.tolist() == [-1] * 3


def test_size_and_channels_become_those_of_the_data(tmp_path):
    flat = np.repeat(np.array([10, 250], dtype=np.uint8), 32 * 32).reshape(2, 32, 32)
    np.savez(tmp_path / "grey.npz", images=flat)
    source = opened(tmp_path / "grey.npz").source
    assert (source.channels, source.image_size) == (3, (8, 8))
    assert all_of(source).shape == (2, 3, 8, 8)
    assert all_of(source).unique().tolist() == [10, 250]
    assert opened(tmp_path / "grey.npz", GREY).source.channels == 1


def float_pixels():
    return {"images": np.zeros((2, 8, 8, 3), dtype=np.float32)}


def object_labels():
    return {"images": drawn(2, 8, 8, 3), "labels": np.array([{}, {}], dtype=object)}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (float_pixels(), "the images are float32, whose range nobody knows; save them as uint8, 0 to 255"),
        ({"images": drawn(2, 8, 8, 4)}, r"1 or 3 channels, got \[2, 8, 8, 4\]"),
        ({"images": drawn(2, 8)}, r"\[N, H, W, C\] or \[N, C, H, W\]"),
        ({"images": drawn(0, 8, 8, 3)}, "no images"),
        ({"pictures": drawn(2, 8, 8, 3)}, "holds 'pictures'; expected an array 'images'"),
        (
            {"images": drawn(2, 8, 8, 3), "labels": np.array([0, 3])},
            r"a label of 3; .* numbered 0 to 2, in the",
        ),
        ({"images": drawn(2, 8, 8, 3), "labels": np.array([0, -2])}, "a label of -2"),
        ({"images": drawn(2, 8, 8, 3), "labels": np.array([0, 3], dtype=np.uint64)}, "a label of 3"),
        ({"images": drawn(2, 8, 8, 3), "labels": np.array([0])}, r"expected 2 labels.* got int64 \[1\]"),
        (
            {"images": drawn(2, 8, 8, 3), "labels": np.eye(2)},
            r"one whole number per image, got float64 \[2, 2\]",
        ),
        (object_labels(), "cannot be read: Object arrays cannot be loaded"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:20],
)
def test_arrays_that_cannot_be_used_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "made.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path / "made.npz")
    assert str(caught.value).startswith(f"data.extra.root: {tmp_path / 'made.npz'}: ")


@pytest.mark.parametrize("shape", [(10**6, 1000, 1000, 3), (2**62, 8, 8, 3), (3, 8, 8, 3)])
def test_an_array_that_is_not_as_large_as_it_declares_takes_no_memory(tmp_path, shape):
    header = io.BytesIO()
    declared = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, declared)
    with zipfile.ZipFile(tmp_path / "made.npz", "w") as file:
        file.writestr("images.npy", header.getvalue() + bytes(64))
    expected = r"cannot be read: images\.npy: declares .*(which it does not hold|of which .* fit)"
    with pytest.raises(DataError, match=expected):
        opened(tmp_path / "made.npz")


@pytest.mark.parametrize(("change", "reason"), [
    (lambda content: content.replace(b"{'descr'", b"{'descr(", 1), "cannot be read: "),
    (lambda content: flagged(content, 0x01), "cannot be read: .*encrypted"),
    (lambda content: flagged(content, 0, method=14), "cannot be read: "),
])  # fmt: skip
def test_an_odd_archive_is_one_sentence(tmp_path, change, reason):
    np.savez(tmp_path / "whole.npz", images=drawn(3, 8, 8, 3))
    (tmp_path / "made.npz").write_bytes(change((tmp_path / "whole.npz").read_bytes()))
    with pytest.raises(DataError, match=rf"made\.npz: {reason}"):
        opened(tmp_path / "made.npz")


def flagged(content, flag, method=None):
    """Sets a flag of the first member, and its kind of packing, in both places where an archive has them."""
    content = bytearray(content)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.index(mark) + at
        content[place] |= flag
        if method is not None:
            content[place + 2 : place + 4] = method.to_bytes(2, "little")
    return bytes(content)


def test_an_archive_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "made.npz", images=np.zeros((2000, 8, 8, 3), np.uint8))
    monkeypatch.setattr(extra_file, "virtual_memory", lambda: SimpleNamespace(available=100_000))
    with pytest.raises(DataError, match=r"images\.npy: declares 384,000 values, of which 100,000 fit"):
        opened(tmp_path / "made.npz")


def test_colour_is_not_thrown_away_silently(tmp_path):
    np.savez(tmp_path / "made.npz", images=drawn(2, 8, 8, 3))
    with pytest.raises(
        DataError, match="images of 3 channels, but those of the data have 1; save them in grey"
    ):
        opened(tmp_path / "made.npz", GREY)


def test_what_is_no_npz_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder or file"):
        opened(tmp_path / "made.npz")
    (tmp_path / "text.npz").write_text("images")
    with pytest.raises(DataError, match=r"neither a folder nor an \.npz file"):
        opened(tmp_path / "text.npz")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("images", b"no array")
    with pytest.raises(DataError, match="holds 'images'; expected an array"):
        opened(tmp_path / "other.zip")
    np.savez(tmp_path / "whole.npz", images=drawn(50, 8, 8, 3))
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "damaged.npz").write_bytes(whole[:200] + b"x" * 100 + whole[300:])
    with pytest.raises(DataError, match="cannot be read: Bad CRC-32"):
        opened(tmp_path / "damaged.npz")


# ---- folders


def test_class_folders_are_labelled_by_the_names_of_the_data_and_read_whole(tmp_path):
    pictures = {"eel/1.png": drawn(8, 8, 3, seed=1), "cat/deep/2.png": drawn(8, 8, 3, seed=2)}
    for name, array in pictures.items():
        picture(tmp_path / "made" / name, array)
    (tmp_path / "made" / "cat" / "notes.txt").write_text("no image")
    extra = opened(tmp_path / "made")
    assert extra.source.files == ("cat/deep/2.png", "eel/1.png")
    assert extra.source.labels.tolist() == [0, 2]
    # Beside a set of small images nothing is cut off: a generated image has the size of the set's.
    expected = torch.from_numpy(np.stack([pictures["cat/deep/2.png"], pictures["eel/1.png"]]))
    assert torch.equal(all_of(extra.source), expected.permute(0, 3, 1, 2))
    assert extra.warnings == (f"{tmp_path / 'made'}: no generated images of the classes 'dog'",)
    assert opened(tmp_path / "made", names=()).source.labels.tolist() == [-1, -1]


def test_images_alone_have_no_labels(tmp_path):
    for number in range(3):
        picture(tmp_path / f"{number}.png", drawn(10, 10, 3, seed=number))
    extra = opened(tmp_path, GREY)
    assert extra.source.labels.tolist() == [-1] * 3
    assert all_of(extra.source).shape == (3, 1, 8, 8)
    assert extra.counts == {"images": 3, "labelled": 0, "broken": 0}


def test_beside_image_files_they_are_cut_as_those_are(tmp_path):
    picture(tmp_path / "made" / "1.png", drawn(64, 48, 3))
    like = FolderSource(tmp_path, (), torch.tensor([], dtype=torch.int64), side=32)
    source = opened(tmp_path / "made", like).source
    again = replace(like, root=tmp_path / "made", files=("1.png",), labels=torch.tensor([0]))
    assert torch.equal(all_of(source), all_of(again))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: picture(root / "cow" / "1.png", drawn(8, 8, 3)), "'cow' not among the classes of the"),
        (lambda root: (root / "cat").mkdir(parents=True), "no images; a folder per class of the data"),
        (lambda root: root.mkdir(), "no images; a folder per class of the data"),
    ],
    ids=["unknown class", "empty class", "empty"],
)
def test_folders_that_cannot_be_used_are_named(tmp_path, make, message):
    make(tmp_path / "made")
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path / "made")
    assert str(caught.value).startswith(f"data.extra.root: {tmp_path / 'made'}: ")


def test_broken_files_are_left_out_and_counted_or_too_many(tmp_path):
    for number in range(4):
        picture(tmp_path / "cat" / f"{number}.png", drawn(8, 8, 3, seed=number))
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "bad.png").write_bytes(b"no image")
    extra = opened(tmp_path, max_broken=0.5)
    assert len(extra.source) == 4
    assert extra.counts == {"images": 4, "labelled": 4, "broken": 1}
    assert any("1 of 5 image files cannot be read: dog/bad.png" in warning for warning in extra.warnings)
    with pytest.raises(DataError, match=r"data\.extra\.root.*data\.max_broken allows 0"):
        opened(tmp_path, max_broken=0)


def test_the_hash_follows_what_is_there(tmp_path):
    picture(tmp_path / "cat" / "1.png", drawn(8, 8, 3))
    before = opened(tmp_path).sha256
    assert opened(tmp_path).sha256 == before
    picture(tmp_path / "cat" / "2.png", drawn(8, 8, 3))
    assert opened(tmp_path).sha256 != before


# ---- beside the real images


def digits(tmp_path, labels=None, share=0.25, **more):
    """Digits, and 50 generated ones: noise, each of one grey that no two share with a real image's batch."""
    arrays = {"images": drawn(50, 8, 8), **({} if labels is None else {"labels": np.array(labels)})}
    np.savez(tmp_path / "made.npz", **arrays)
    section = DataSection(
        dataset="digits", extra=ExtraSection(root=str(tmp_path / "made.npz"), share=share), **more
    )
    data = open_data(section)
    return replace(data, extra=open_extra(section, data.class_names, data.train))


def test_each_batch_holds_its_share_of_them_and_an_epoch_is_one_pass_through_the_real_images(tmp_path):
    data = digits(tmp_path, labels=[3] * 50)
    taught = data.for_method(labels=True, unlabelled=True)
    real, count = len(data.train), len(data.train) + 50
    assert isinstance(taught.train, JoinedSource)
    assert {part.preset for part in taught.train.parts} == {data.augment}
    assert len(taught.train) == count
    assert taught.extra is None
    loader = TrainingLoader(
        taught.train,
        batch_size=64,
        seed=0,
        augment="none",
        device="cpu",
        order=batch_order("shuffled", taught.train.labels, batch_size=64, seed=0, pools=taught.pools),
    )
    assert loader.steps == real // 48
    pixels = all_of(taught.train).float() / 255
    seen = []
    for batch in loader.epoch(0):
        made = batch.indices >= real
        assert int(made.sum()) == 16
        assert (batch.labels[made] == 3).all()
        assert torch.equal(batch.images, pixels[batch.indices])
        seen.append(batch.indices[~made])
    assert len(torch.cat(seen).unique()) == loader.steps * 48


def test_who_learns_from_labels_alone_is_given_those_that_have_one(tmp_path):
    data = digits(tmp_path, labels=[3, -1] * 25)
    taught = data.for_method(labels=True, unlabelled=False)
    assert len(taught.train) == len(data.train) + 25
    assert (taught.train.labels >= 0).all()
    everything = data.for_method(labels=True, unlabelled=True)
    assert int((everything.train.labels < 0).sum()) == 25
    with pytest.raises(DataError, match=r"no generated image has one; sort them .*data\.extra\.relabel"):
        digits(tmp_path).for_method(labels=True, unlabelled=False)


def test_they_stand_beside_unlabelled_real_images_as_a_third_kind(tmp_path):
    data = digits(tmp_path, share=0.2)
    data = replace(data, train=replace(data.train, labels=data.train.labels.where(data.train.labels > 4, -1)))
    taught = data.for_method(labels=True, unlabelled=True)
    assert [pool.name for pool in taught.pools] == ["labelled", "unlabelled", "generated"]
    assert sum(pool.share for pool in taught.pools) == pytest.approx(1)
    assert taught.pools[2].share == 0.2
    positions = torch.cat([pool.indices for pool in taught.pools])
    assert sorted(positions.tolist()) == list(range(len(taught.train)))


def test_nothing_else_of_the_data_changes(tmp_path):
    data, plain = digits(tmp_path, labels=[3] * 50), open_data(DataSection(dataset="digits"))
    taught = data.for_method(labels=True, unlabelled=True)
    for key in ("mean", "std", "listing_sha256", "counts", "class_names", "channels", "image_size"):
        assert getattr(taught, key) == getattr(data, key) == getattr(plain, key)
    assert torch.equal(taught.test.images, plain.test.images)
    assert torch.equal(taught.held_out.images, plain.held_out.images)
    info = taught.info()
    assert torch.equal(info.labels, torch.cat([plain.train.labels, torch.full((50,), 3)]))


def test_balanced_weights_count_how_often_a_class_is_met(tmp_path):
    taught = digits(tmp_path, labels=[3] * 50, share=0.5).for_method(labels=True, unlabelled=True)
    weights = taught.info("balanced").class_weights
    # Half of every batch are generated threes, the other half the real digits.
    real = open_data(DataSection(dataset="digits")).train.labels.bincount().double()
    met = 0.5 * real / real.sum()
    met[3] += 0.5
    expected = 1 / met / 10
    assert torch.allclose(weights.double(), expected)
