from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from kdcompress.data import image_check
from kdcompress.data.dataset import open_data
from kdcompress.data.folder_tree import FolderTree
from kdcompress.data.sound_files import SoundFiles
from kdcompress.errors import DataError
from kdcompress.recipe import DataSection


def write(folder, count, *, start=0, suffix=".png", side=20):
    """Distinct images: the number is in the colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        Image.new("RGB", (side, side + 4), (i % 256, 100, i // 256)).save(folder / f"{i}{suffix}")


def opened(root, **more):
    return open_data(DataSection(dataset="imagefolder", root=str(root), image_size=16, **more))


@pytest.fixture
def two_classes(tmp_path):
    write(tmp_path / "data" / "cat", 20)
    write(tmp_path / "data" / "dog", 30, start=100)
    return tmp_path / "data"


def test_class_folders_are_cut_80_10_10(two_classes):
    data = opened(two_classes)
    assert data.class_names == ("cat", "dog")
    assert data.counts == {"train": 40, "held_out": 5, "test": 5, "broken": 0}
    assert data.train.labels.bincount().tolist() == [16, 24]
    assert data.test.labels.bincount().tolist() == [2, 3]
    files = [set(split.files) for split in (data.train, data.held_out, data.test)]
    assert len(set.union(*files)) == 50
    with pytest.raises(DataError, match="--split val"):
        data.split_called("val")
    assert data.warnings == ()
    assert data.augment == "resized_crop_flip"
    spec = data.input_spec()
    assert (spec.channels, spec.height, spec.width, spec.resize, spec.crop) == (3, 16, 16, 18, 16)
    assert spec.mean == (0.485, 0.456, 0.406)


def test_three_folders_are_taken_as_named(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        for label, name in enumerate(("a", "b")):
            write(tmp_path / split / name, 12, start=100 * number + 30 * label)
    data = opened(tmp_path)
    assert data.counts == {"train": 24, "held_out": 24, "test": 24, "broken": 0}
    assert all(name.startswith("val") for name in data.held_out.files)
    assert all(name.startswith("test") for name in data.test.files)
    assert (data.split_called("val"), data.split_called("test")) == ("held_out", "test")
    without = opened(tmp_path, held_out=0.0)
    with pytest.raises(DataError, match="no test split of that name; expected test, held_out"):
        without.split_called("val")
    assert without.held_out is None
    assert "held_out is 0" in without.warnings[0]


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_val_beside_train_is_the_test_split(tmp_path, val):
    for label, name in enumerate(("a", "b")):
        write(tmp_path / "train" / name, 20, start=40 * label)
        write(tmp_path / val / name, 5, start=100 + 40 * label)
    data = opened(tmp_path)
    assert data.counts == {"train": 36, "held_out": 4, "test": 10, "broken": 0}
    assert all(name.startswith(val) for name in data.test.files)
    assert opened(tmp_path, held_out=10.0).counts["held_out"] == 10
    assert opened(tmp_path, held_out=0.0).counts["train"] == 40


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path / "train" / "steam", 12)
    write(tmp_path / "bus", 12, start=50)
    assert opened(tmp_path).class_names == ("bus", "train")


def test_folders_beside_the_splits_are_said_to_be_left_out(tmp_path):
    for label, name in enumerate(("a", "b")):
        write(tmp_path / "train" / name, 12, start=40 * label)
    (tmp_path / "notes").mkdir()
    assert "'notes' beside train/ left out" in opened(tmp_path).warnings[0]


def test_images_may_lie_deeper_and_hidden_files_are_passed_over(two_classes):
    write(two_classes / "cat" / "indoors" / "kitchen", 3, start=60)
    write(two_classes / ".hidden", 3, start=70)
    (two_classes / "cat" / "._1.png").write_bytes(b"a Mac was here")
    (two_classes / "cat" / "notes.txt").write_text("no image")
    (two_classes / "labels.csv").write_text("no folder")
    data = opened(two_classes)
    assert data.class_names == ("cat", "dog")
    assert sum(data.counts.values()) == 53


def test_a_link_in_a_circle_ends(two_classes):
    os.symlink(two_classes / "cat", two_classes / "cat" / "again")
    assert sum(opened(two_classes).counts.values()) == 50


def test_broken_images_are_left_out_named_and_counted(two_classes):
    (two_classes / "cat" / "bad.jpg").write_bytes(b"no image")
    data = opened(two_classes)
    assert data.counts["broken"] == 1
    assert sum(data.counts.values()) == 51
    assert "1 of 51 image files cannot be read: cat/bad.jpg (not an image" in data.warnings[0]
    assert "bad.jpg" not in "".join([*data.train.files, *data.held_out.files, *data.test.files])


def test_too_many_broken_images_are_an_error(two_classes):
    for number in range(7):
        (two_classes / "cat" / f"bad{number}.jpg").write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"7 of 57 image files cannot be read: .*bad4.*and 2 more; .*allows 1\."
    ):
        opened(two_classes)
    assert opened(two_classes, max_broken=0.2).counts["broken"] == 7


def test_no_broken_image_is_let_through_with_a_share_of_zero(two_classes):
    (two_classes / "cat" / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="allows 0"):
        opened(two_classes, max_broken=0.0)


def test_every_run_notices_files_that_were_added_changed_and_removed(two_classes):
    before = opened(two_classes)
    write(two_classes / "dog", 1, start=130)
    added = opened(two_classes)
    assert sum(added.counts.values()) == 51
    changed = two_classes / "cat" / "0.png"
    time = changed.stat().st_mtime_ns
    changed.write_bytes(b"x" * changed.stat().st_size)
    os.utime(changed, ns=(time + 1, time + 1))  # the same name and size, and a folder of the same time
    assert opened(two_classes).counts["broken"] == 1
    changed.unlink()
    (two_classes / "dog" / "130.png").unlink()
    assert sum(opened(two_classes).counts.values()) == 49
    assert len({data.listing_sha256 for data in (before, added, opened(two_classes))}) == 3


def test_a_first_check_that_was_interrupted_goes_on_where_it_was(two_classes, monkeypatch):
    monkeypatch.setattr(image_check, "_SAVED_AT_ONCE", 20)
    checked, real = [], image_check.problem_of

    def interrupted(path):
        checked.append(path)
        if len(checked) > 45:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(image_check, "problem_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(two_classes)
    checked.clear()
    opened(two_classes)
    assert len(checked) == 10, "40 of the 50 were saved"


def test_a_damaged_list_of_sound_files_is_not_used(two_classes):
    opened(two_classes)
    files, path = FolderTree(two_classes).images(), SoundFiles(two_classes).path
    assert SoundFiles(two_classes).without_known(files) == []
    stored = path.read_bytes()
    for damaged in (stored[:-1], stored[:60] + bytes([stored[60] ^ 1]) + stored[61:], b""):
        path.write_bytes(damaged)
        assert SoundFiles(two_classes).without_known(files) == files


def test_a_folder_is_listed_once_and_a_file_looked_at_once(two_classes, monkeypatch):
    opened(two_classes)
    listed, looked_at, scandir = [], [], os.scandir

    class Entry:
        def __init__(self, entry):
            self.entry, self.name = entry, entry.name

        def is_dir(self):
            return self.entry.is_dir()

        def stat(self):
            looked_at.append(self.name)
            return self.entry.stat()

    @contextlib.contextmanager
    def counted(path):
        with scandir(path) as entries:
            if Path(path).is_relative_to(two_classes):
                listed.append(Path(path).name)
                yield map(Entry, entries)
            else:
                yield entries

    with monkeypatch.context() as patch:  # pytest lists the folder too, to remove it
        patch.setattr(os, "scandir", counted)
        opened(two_classes)
    # The first look at the root, for tar shards, ends at the first folder or image.
    assert sorted(listed) == ["cat", "data", "data", "dog"]
    assert len(looked_at) == len(set(looked_at)) == 50


def test_an_unchanged_folder_is_checked_once(two_classes, monkeypatch):
    (two_classes / "cat" / "bad.jpg").write_bytes(b"no image")
    checked = []
    real = image_check.problem_of
    monkeypatch.setattr(image_check, "problem_of", lambda path: checked.append(path) or real(path))
    first = opened(two_classes)
    assert len(checked) == 51
    assert opened(two_classes).warnings == first.warnings
    assert len(checked) == 51
    os.utime(two_classes / "cat" / "0.png", (1, 1))
    checked.clear()
    opened(two_classes)
    assert {path.name for path in checked} == {"0.png", "bad.jpg"}, "the sound files are known"


def test_the_check_tells_how_far_it_is(two_classes):
    told = []
    section = DataSection(dataset="imagefolder", root=str(two_classes), image_size=16)
    open_data(section, progress=lambda what, done, total: told.append((what, done, total)))
    assert told[-1] == ("check images", 50, 50)


def test_a_cache_that_cannot_be_written_changes_nothing(two_classes, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "file"))
    assert opened(two_classes).counts["train"] == 40


def test_the_same_image_in_two_splits_is_warned_of(tmp_path):
    for label, name in enumerate(("a", "b")):
        write(tmp_path / "train" / name, 12, start=40 * label)
        write(tmp_path / "test" / name, 12, start=100 + 40 * label)
    shutil.copy(tmp_path / "train" / "a" / "3.png", tmp_path / "test" / "a" / "copy.png")
    (warning,) = opened(tmp_path, held_out=0.0).warnings
    assert warning.startswith("1 image stands in two splits")
    assert "train/a/3.png (train) and test/a/copy.png (test)" in warning
    shutil.copy(tmp_path / "train" / "b" / "41.png", tmp_path / "test" / "b" / "copy.png")
    assert opened(tmp_path, held_out=0.0).warnings[0].startswith("2 images stand")


def test_tiny_classes_are_warned_of(tmp_path):
    write(tmp_path / "many", 30)
    write(tmp_path / "few", 4, start=50)
    tiny, unequal = opened(tmp_path).warnings
    assert tiny == "1 class has fewer than 10 training images: 'few' (2)"
    assert unequal.startswith("the classes are unequal: 'many' has 26 training images, 'few' has 2. So")


def test_the_listing_hash_is_of_names_and_sizes_not_of_the_place(two_classes, tmp_path):
    shutil.copytree(two_classes, tmp_path / "copy")
    first = opened(two_classes).listing_sha256
    assert opened(tmp_path / "copy").listing_sha256 == first
    write(two_classes / "cat", 1, start=99)
    assert opened(two_classes).listing_sha256 != first


def test_grey_is_decoded_for_networks_that_take_one_channel(two_classes):
    section = DataSection(dataset="imagefolder", root=str(two_classes), image_size=16)
    data = open_data(section, channels=frozenset({1}))
    assert (data.channels, len(data.mean), data.train.channels) == (1, 1, 1)


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.write_text("x"), "is a file, not a folder"),
        (lambda root: root.mkdir(), "the folder is empty"),
        (lambda root: write(root / "cat", 3), r"only one class \('cat'\)"),
        (lambda root: (root / "cat").mkdir(parents=True), "no images in its 1 folders"),
        (lambda root: write(root / "train", 3), "train: no class folders"),
        (lambda root: [write(root / "train", 3), write(root / "val", 3)], "train: no class folders"),
        (lambda root: [write(root / "val" / "a", 3), write(root / "test" / "a", 3)], "but no train/"),
        (lambda root: [write(root / s / "a", 3) for s in ("train", "val", "valid")], "mean the same split"),
        (
            lambda root: (
                [write(root / "train" / c, 3) for c in "ab"] + [write(root / "val" / c, 3) for c in "bc"]
            ),
            "'c' not among the classes",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_clear_sentence(tmp_path, prepare, sentence):
    prepare(tmp_path / "data")
    with pytest.raises(DataError, match=sentence) as caught:
        opened(tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "data") in str(caught.value)


def test_only_broken_images_are_one_clear_sentence(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="no image can be read"):
        opened(tmp_path)


def test_a_class_of_broken_images_is_one_clear_sentence(two_classes):
    (two_classes / "cow").mkdir()
    (two_classes / "cow" / "x.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="no image of 'cow' can be read"):
        opened(two_classes)


def test_the_folder_must_be_named():
    with pytest.raises(DataError, match="--data DIR"):
        open_data(DataSection(dataset="imagefolder"))


def test_images_alone_have_no_labels_and_nobody_says_their_classes(tmp_path):
    write(tmp_path / "data", 20)
    data = opened(tmp_path / "data")
    assert data.class_names == ()
    assert data.labelled == 0
    assert data.counts == {"train": 16, "held_out": 2, "test": 2, "broken": 0}
    assert (data.test.labels == -1).all()
    assert data.for_method(labels=True, unlabelled=True) is data
    with pytest.raises(DataError, match="needs labels, and no training image has one"):
        data.for_method(labels=True, unlabelled=False)


def test_labels_none_takes_every_image_below_the_folder_or_below_its_splits(two_classes, tmp_path):
    assert opened(two_classes, labels="none").class_names == ()
    for split in ("train", "val"):
        write(tmp_path / "splits" / split / "camera 1" / "monday", 3)
        write(tmp_path / "splits" / split, 2, start=3)
    write(tmp_path / "splits" / "notes", 1)
    data = opened(tmp_path / "splits", labels="none", held_out=0)
    assert (len(data.train), len(data.test)) == (5, 5)
    assert any("'notes' beside train/ left out" in warning for warning in data.warnings)
    (tmp_path / "splits" / "test").mkdir()
    with pytest.raises(DataError, match="test: no images"):
        opened(tmp_path / "splits", labels="none")


def test_folders_that_go_down_without_end_are_refused_in_one_message(two_classes):
    before = os.getcwd()
    try:
        os.chdir(two_classes / "cat")
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        os.chdir(before)
        with pytest.raises(DataError, match="has folders in folders, more than 100 deep; move them up"):
            opened(two_classes)
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-rf", two_classes / "cat"], check=True)  # pytest cannot remove it
