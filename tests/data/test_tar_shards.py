from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import tarfile
import time

import numpy as np
import pytest
import torch
from PIL import Image

from kdcompress.data import tar_index
from kdcompress.data.dataset import data_set_name, open_data
from kdcompress.data.datasets import imageshards
from kdcompress.data.decode import open_image
from kdcompress.data.pixel_cache import PictureFormat, PixelCache
from kdcompress.data.shard_member import ShardMember
from kdcompress.errors import DataError, UnreadableImage
from kdcompress.recipe import DataSection


def png(number, side=20):
    """A distinct image, of noise."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (side + 4, side, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pack(path, members):
    """Writes {name: bytes} or a list of (name or TarInfo, bytes) into a tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_folder(folder, members):
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def special(name, kind, **fields):
    member = tarfile.TarInfo(name)
    member.type = kind
    for key, value in fields.items():
        setattr(member, key, value)
    return member


def by_folders(start=0, count=12):
    return {
        f"{name}/{number}.png": png(start + number + 100 * label)
        for label, name in enumerate(("cat", "dog"))
        for number in range(count)
    }


def by_keys(start=0, count=24, classes=2):
    members = {}
    for number in range(start, start + count):
        members[f"{number:06d}.png"] = png(number)
        members[f"{number:06d}.cls"] = str(number % classes).encode()
    return members


def opened(root, **more):
    return open_data(DataSection(root=str(root), image_size=16, **more))


def refusal(root, **more):
    with pytest.raises(DataError) as caught:
        opened(root, **more)
    return str(caught.value)


def test_a_folder_and_its_shards_give_the_same_images_labels_and_ids(tmp_path):
    folder, members = tmp_path / "folder", by_folders()
    write_folder(folder, members)
    names = sorted(members, key=lambda name: name[::-1])  # neither by class nor by name
    for number in range(3):
        part = {name: members[name] for name in names[number::3]}
        pack(tmp_path / "shards" / f"{number:04d}.tar", part)
    one, other = opened(folder), opened(tmp_path / "shards")
    assert other.name == "imageshards"
    assert other.class_names == one.class_names == ("cat", "dog")
    assert other.counts == one.counts
    assert other.input_spec() == one.input_spec()
    for a, b in ((one.train, other.train), (one.held_out, other.held_out), (one.test, other.test)):
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.labels, b.labels)
        order = torch.randperm(len(a))
        assert torch.equal(a.training_images(order, 3, 7), b.training_images(order, 3, 7))
        assert torch.equal(a.evaluation_images(order), b.evaluation_images(order))


def test_what_tar_makes_of_a_folder_is_read(tmp_path):
    folder = tmp_path / "images"
    for split, start in (("train", 0), ("val", 40)):
        write_folder(folder / split, by_folders(start))
    for arguments in (["-C", tmp_path, "images"], ["-C", folder, "."], ["-C", folder, "train", "val"]):
        packed = tmp_path / "packed.tar"
        subprocess.run(["tar", "-cf", packed, *arguments], check=True)
        data = opened(packed)
        assert data.class_names == ("cat", "dog")
        assert (data.counts["test"], data.test_name) == (24, "val")
    for split in ("train", "val"):
        subprocess.run(["tar", "-cf", tmp_path / f"{split}.tar", "-C", folder, split], check=True)
    assert opened(tmp_path / "[tv]*.tar").counts["test"] == 24


def test_webdataset_shards_have_their_class_beside_each_image(tmp_path):
    for number in range(3):
        pack(tmp_path / f"train-{number:04d}.tar", by_keys(100 * number, 24, 12))
    pack(tmp_path / "set-test-0.tar", by_keys(900, 24, 12))
    data = opened(tmp_path)
    assert data.class_names == tuple(map(str, range(12)))  # by number: the label is the class index
    assert (data.counts["test"], data.counts["train"] + data.counts["held_out"]) == (24, 72)
    for name, label in zip(data.test.files, data.test.labels.tolist(), strict=True):
        assert int(name.rpartition("/")[2][:6]) % 12 == label


@pytest.mark.parametrize("label", ["7", "scratch", "très bien"])
def test_a_class_may_be_a_number_or_a_name(tmp_path, label):
    pack(tmp_path / "a.tar", {**by_keys(), "x.left.png": png(99), "x.cls": label.encode() + b"\n"})
    data = opened(tmp_path, held_out=0)
    assert data.class_names == ("0", "1", label)


def test_keys_may_repeat_in_another_shard(tmp_path):
    pack(tmp_path / "a.tar", by_keys())
    pack(tmp_path / "b.tar", by_keys())
    assert sum(opened(tmp_path).counts.values()) == 48


def test_links_to_shards_and_folders_are_followed_as_those_to_images_are(tmp_path):
    shard = pack(tmp_path / "elsewhere" / "train-0.tar", by_folders())
    (tmp_path / "folder").symlink_to(shard.parent)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train-0.tar").symlink_to(shard)
    expected = opened(shard.parent).counts
    assert opened(tmp_path / "folder").counts == expected
    for name in ("", "train-0.tar", "train-{0..0}.tar", "*.tar"):
        assert opened(tmp_path / "own" / name).counts == expected


def test_split_folders_hold_shards(tmp_path):
    for split, start in (("train", 0), ("validation", 40), ("test", 80)):
        pack(tmp_path / split / "0.tar", by_folders(start))
        pack(tmp_path / split / "1.tar", by_folders(start + 12))
    data = opened(tmp_path)
    assert data.counts == {"train": 48, "held_out": 48, "test": 48, "broken": 0}
    assert all(name.startswith("validation/") for name in data.held_out.files)
    (tmp_path / "test" / "0.tar").unlink()
    (tmp_path / "test" / "1.tar").unlink()
    assert "'train', 'validation' holds tar shards and 'test' does not" in refusal(tmp_path)


def test_a_pattern_names_shards_and_each_number_of_a_range_must_be_there(tmp_path):
    for number in range(12):
        pack(tmp_path / f"part-{number:03d}.tar", by_folders(20 * number, 4))
    assert sum(opened(tmp_path / "part-{008..011}.tar").counts.values()) == 32
    assert sum(opened(tmp_path / "part-00*.tar").counts.values()) == 80
    message = refusal(tmp_path / "part-{008..013}.tar")
    assert message == f"data.root: {tmp_path}: no such shard: 'part-012.tar', 'part-013.tar'"
    assert "is no range" in refusal(tmp_path / "part-{9..1}.tar")
    assert "is no range" in refusal(tmp_path / "part-{0..99999999}.tar")


def test_images_beside_tar_files_remain_an_image_folder(tmp_path):
    pack(tmp_path / "backup.tar", by_folders())
    write_folder(tmp_path, by_folders())
    assert opened(tmp_path).name == "imagefolder"
    assert data_set_name(DataSection(dataset="digits", root=str(tmp_path))) == "digits"


def test_without_labels_all_images_are_taken(tmp_path):
    pack(tmp_path / "a.tar", by_keys())
    data = opened(tmp_path, labels="none")
    assert data.class_names == ()
    assert (sum(data.counts.values()), data.labelled) == (24, 0)
    pack(tmp_path / "a.tar", {f"{number}.png": png(number) for number in range(24)})
    assert opened(tmp_path).class_names == ()
    assert imageshards.class_names(DataSection(root=str(tmp_path))) == ()


def test_some_labels_may_be_hidden(tmp_path):
    pack(tmp_path / "a.tar", by_folders())
    assert opened(tmp_path, labels=6).labelled == 6


def test_an_index_is_made_once_and_again_when_the_shard_has_changed(tmp_path, monkeypatch):
    scans = []
    scan = tar_index._scanned
    monkeypatch.setattr(tar_index, "_scanned", lambda *them: (scans.append(them), scan(*them))[1])
    first, second = pack(tmp_path / "a.tar", by_folders()), pack(tmp_path / "b.tar", by_folders(40))
    opened(tmp_path)
    opened(tmp_path)
    assert len(scans) == 2
    pack(second, by_folders(40, 20))
    assert sum(opened(tmp_path).counts.values()) == 64
    assert [path for path, _ in scans[2:]] == [second]
    os.utime(first, ns=(1, 1))
    opened(tmp_path)
    assert [path for path, _ in scans[3:]] == [first]


DAMAGES = [lambda b: b[:-1] + b"x", lambda b: b[:50], lambda b: b"", lambda b: b + b"x"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_made_again(tmp_path, damage):
    shard = pack(tmp_path / "a.tar", by_folders())
    index = tar_index.index_shard(shard)
    stored = tar_index._stored_at(shard)
    stored.write_bytes(damage(stored.read_bytes()))
    assert tar_index.index_shard(shard) == index


ODD = [
    lambda size, images, labels: (size, [[7, *images[0][1:]], *images[1:]], labels),
    lambda size, images, labels: (size, [[images[0][0], "0", *images[0][2:]], *images[1:]], labels),
    lambda size, images, labels: (size, [[images[0][0], -1, *images[0][2:]], *images[1:]], labels),
    lambda size, images, labels: (size, [[*images[0][:2], 2**63, ""], *images[1:]], labels),
    lambda size, images, labels: (size, [[*images[0][:2], size, ""], *images[1:]], labels),
    lambda size, images, labels: (size, [[*images[0][:2], True, ""], *images[1:]], labels),
    lambda size, images, labels: (size, [[*images[0][:3], None], *images[1:]], labels),
    lambda size, images, labels: (size, images, labels | {"x": ["cat"]}),
    lambda size, images, labels: (size, images, labels | {"x": "\x1b[2J"}),
    lambda size, images, labels: (size, images, [labels]),
    lambda size, images, labels: (size, {"a": 1}, labels),
]


@pytest.mark.parametrize("change", ODD)
def test_an_index_with_values_of_another_kind_is_made_again(tmp_path, change):
    shard = pack(tmp_path / "a.tar", by_folders())
    index = tar_index.index_shard(shard)
    stored = tar_index._stored_at(shard)
    start = len(tar_index._MAGIC) + 32
    size, mtime_ns, images, labels = json.loads(stored.read_bytes()[start:])
    size, images, labels = change(size, images, labels)
    content = json.dumps([size, mtime_ns, images, labels]).encode()
    stored.write_bytes(tar_index._MAGIC + hashlib.sha256(content).digest() + content)
    assert tar_index.index_shard(shard) == index


def test_a_shard_that_changes_during_a_run_is_named_and_not_read(tmp_path):
    shard = pack(tmp_path / "a.tar", by_folders())
    data = opened(tmp_path)
    os.utime(shard, ns=(time.time_ns(), time.time_ns()))
    with pytest.raises(UnreadableImage, match=r"a\.tar: (cat|dog)/\d+\.png: the shard was changed"):
        data.train.evaluation_images(torch.tensor([0]))


def test_the_pixel_cache_and_worker_processes_read_shards_like_a_folder(tmp_path):
    write_folder(tmp_path / "folder", by_folders())
    shard = pack(tmp_path / "shards" / "a.tar", by_folders())
    positions, pixels = torch.tensor([3, 0, 5]), []
    for root in (tmp_path / "folder", tmp_path / "shards"):
        source = pickle.loads(pickle.dumps(opened(root).train))
        cache = PixelCache(source, PictureFormat.of(source, "raw"))
        cache.fill(cache.open().store.missing, lambda *_: None)
        cached = cache.open()
        assert cached.store.missing == []
        pixels.append([part.training_images(positions, 2, 1) for part in (cached, source)])
    assert torch.equal(pixels[0][0], pixels[1][0])
    assert torch.equal(pixels[0][1], pixels[1][1])
    assert not torch.equal(pixels[0][0], pixels[0][1])
    os.utime(shard, ns=(1, 1))
    assert len(cache.open().store.missing) == 0  # by the listing of this run
    with pytest.raises(DataError, match="was changed"):
        cache.form.picture(source.root, source.file_list.file(source.root, 0))


@pytest.mark.parametrize("cut", [1, 512, 700, 1024, 1025, 5000])
def test_a_truncated_shard_is_named(tmp_path, cut):
    shard = pack(tmp_path / "a.tar", by_folders())
    with tarfile.open(shard) as tar:
        tar.getmembers()
        end = tar.offset
    shard.write_bytes(shard.read_bytes()[: end + 512 - cut])  # 512: only the mark of the end is gone
    message = refusal(tmp_path)
    assert str(shard) in message
    assert "truncated" in message


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b\x08\0" + bytes(2000)])
def test_what_is_no_tar_is_named(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    assert f"{tmp_path / 'a.tar'}: cannot be read as a plain tar file" in refusal(tmp_path)


@pytest.mark.parametrize("size", [1, 600, 100_000, 10**9, 8**11 - 1])
def test_a_size_that_is_a_lie_is_a_damaged_shard(tmp_path, size):
    shard = pack(tmp_path / "a.tar", by_folders())
    with tarfile.open(shard) as tar:
        victim = tar.getmembers()[3]
    true_size = (victim.size + 511) // 512
    victim.size = size
    content = bytearray(shard.read_bytes())
    header = victim.tobuf(tarfile.USTAR_FORMAT)
    content[victim.offset : victim.offset + 512] = header[:512]
    shard.write_bytes(content)
    if (size + 511) // 512 == true_size:  # the same number of blocks: the image itself is cut short
        assert "cat/3.png" in opened(tmp_path).warnings[0]
    else:
        message = refusal(tmp_path)
        assert str(shard) in message
        assert "'cat/3.png'" in message or "after" in message


def test_a_negative_size_ends_at_once(tmp_path):
    shard = pack(tmp_path / "a.tar", by_folders())
    with tarfile.open(shard) as tar:
        victim = tar.getmembers()[3]
    victim.size = -1024
    content = bytearray(shard.read_bytes())
    content[victim.offset : victim.offset + 512] = victim.tobuf(tarfile.GNU_FORMAT)[:512]
    shard.write_bytes(content)
    assert str(shard) in refusal(tmp_path)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (tarfile.SYMTYPE, "is a link in the shard"),
        (tarfile.LNKTYPE, "is a link in the shard"),
        (tarfile.CHRTYPE, "is no regular member"),
        (tarfile.FIFOTYPE, "is no regular member"),
    ],
)
def test_links_and_devices_are_not_read_but_count_as_broken(tmp_path, kind, why):
    link = special("cat/link.png", kind, linkname="/etc/passwd")
    pack(tmp_path / "a.tar", [*by_folders().items(), (link, b"")])
    data = opened(tmp_path)
    assert data.counts["broken"] == 1
    assert f"a.tar/cat/link.png ({why}" in data.warnings[0]
    assert "link.png" in refusal(tmp_path, max_broken=0)


def test_broken_images_are_left_out_named_and_counted(tmp_path):
    pack(tmp_path / "a.tar", {**by_folders(), "cat/bad.jpg": b"no image", "cat/._1.png": b"a Mac was here"})
    data = opened(tmp_path)
    assert data.counts["broken"] == 1
    assert "1 of 25 image files cannot be read: a.tar/cat/bad.jpg (not an image" in data.warnings[0]


def test_a_path_with_dots_is_only_a_name(tmp_path):
    outside = tmp_path / "x.png"
    outside.write_bytes(png(255, 40))
    keyed = {"../../x.png": png(7), "../../x.cls": b"1", "/etc/y.png": png(8), "/etc/y.cls": b"0"}
    pack(tmp_path / "in" / "a.tar", {**by_keys(), **keyed})
    data = opened(tmp_path / "in", held_out=0)
    names = [*data.train.files, *data.test.files]
    assert {"a.tar/../../x.png", "a.tar/etc/y.png"} <= {name.replace("a.tar//", "a.tar/") for name in names}
    pack(tmp_path / "in" / "a.tar", {**by_folders(), "../x.png": png(7)})
    message = refusal(tmp_path / "in")
    assert "a.tar: '../x.png': a path with '..' names no class" in message


def test_two_members_of_one_name_are_an_error(tmp_path):
    pack(tmp_path / "a.tar", [*by_keys().items(), ("000003.png", png(3))])
    assert refusal(tmp_path) == f"{tmp_path / 'a.tar'}: two members are named '000003.png'; keep one"


def test_two_images_of_one_key_are_an_error(tmp_path):
    pack(tmp_path / "a.tar", {**by_keys(), "000003.seg.png": png(3)})
    assert "'000003.seg.png': has the same label '000003.cls' as '000003.png'" in refusal(tmp_path)


def test_an_image_without_a_label_is_an_error(tmp_path):
    pack(tmp_path / "a.tar", {**by_keys(), "x.png": png(99)})
    assert f"{tmp_path / 'a.tar'}: 'x.png': has no label" in refusal(tmp_path)
    pack(tmp_path / "a.tar", {**by_folders(), "x.png": png(99)})
    assert "'x.png': has no label: it lies in no class's folder" in refusal(tmp_path)


@pytest.mark.parametrize("label", [b"", b"\xff", b"a\nb", b"a" * 2000, b"\x1b[2J"])
def test_a_label_that_is_no_line_of_text_is_an_error(tmp_path, label):
    pack(tmp_path / "a.tar", {**by_keys(), "x.png": png(99), "x.cls": label})
    assert "a.tar: 'x.cls' holds no label" in refusal(tmp_path)


def test_shards_without_a_split_beside_shards_with_one_are_an_error(tmp_path):
    pack(tmp_path / "train-0.tar", by_folders())
    pack(tmp_path / "more.tar", by_folders())
    assert "'more.tar' named for no split beside shards that are" in refusal(tmp_path)
    (tmp_path / "train-0.tar").rename(tmp_path / "test-0.tar")
    (tmp_path / "more.tar").unlink()
    assert "shards of 'test' but none of train" in refusal(tmp_path)


def test_shards_of_nothing_are_an_error(tmp_path):
    pack(tmp_path / "a.tar", {"notes.txt": b"none"})
    assert "no images in the 1 tar shards" in refusal(tmp_path)
    assert "no tar shards" in refusal(tmp_path / "none", dataset="imageshards")


def test_a_pipe_named_like_a_shard_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    assert "the folder is empty" in refusal(tmp_path)
    member = ShardMember(tmp_path / "a.tar", "x.png", 0, 10, os.stat(tmp_path / "a.tar").st_mtime_ns)
    with pytest.raises(UnreadableImage, match=r"a\.tar: x\.png"), open_image(member):
        pass
