from __future__ import annotations

import os

import pytest

from kdcompress.data.folder_tree import FolderTree
from kdcompress.errors import DataError


@pytest.fixture
def root(tmp_path):
    for name in ("a/2.png", "a/deep/1.JPG", "a/.hidden/3.png", "a/notes.txt", "a.png", ".b/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_images_at_any_depth_come_sorted_with_size_and_time(root):
    images = FolderTree(root).images("a")
    assert [(file.name, file.size) for file in images] == [("a/2.png", 7), ("a/deep/1.JPG", 12)]
    assert images[0].mtime_ns == (root / "a/2.png").stat().st_mtime_ns
    assert [file.name for file in FolderTree(root).images()] == ["a.png", "a/2.png", "a/deep/1.JPG"]


def test_folders_are_sorted_and_hidden_ones_left_out(root):
    (root / "B").symlink_to(root / "a")
    tree = FolderTree(root)
    assert (tree.folders(), tree.folders("a")) == (["B", "a"], ["deep"])
    assert tree.has_images()
    assert not FolderTree(root / "a" / ".hidden").folders()


def test_links_are_followed_but_not_in_circles(root):
    (root / "a" / "deep" / "up").symlink_to(root / "a")
    assert [file.name for file in FolderTree(root).images("a")] == ["a/2.png", "a/deep/1.JPG"]


def test_a_link_to_nowhere_is_named_where_its_folder_is_wanted(root):
    (root / "a" / "gone.png").symlink_to("nowhere")
    tree = FolderTree(root)
    assert tree.folders("a") == ["deep"]
    with pytest.raises(DataError, match=r"a/gone\.png: No such file"):
        tree.images("a")
    assert tree.images(os.path.join("a", "deep"))


def test_a_folder_that_is_not_there_is_one_sentence(root):
    with pytest.raises(DataError, match=r"^data.root: .*/none: cannot be listed: No such file"):
        FolderTree(root).images("none")
