from __future__ import annotations

import os
import pickle

import pytest
import torch

from kdcompress.data.file_list import FileList, ImageFile
from kdcompress.errors import DataError

NAMES = ("a/1.png", "ü/Straße.jpg", os.fsdecode(b"not-utf8-\xff.png"), "b.gif")


def test_names_come_back_as_they_were():
    files = FileList.of_names(NAMES)
    assert files == NAMES
    assert (len(files), files[2], files[-1], list(files[1:3])) == (4, NAMES[2], NAMES[3], list(NAMES[1:3]))
    assert files != NAMES[1:]
    assert FileList.of_names(()) == ()


def test_a_subset_keeps_names_sizes_and_times(tmp_path):
    given = [ImageFile(name, 10 * i, 1_700_000_000_000_000_001 + i) for i, name in enumerate(NAMES)]
    subset = FileList.of_files(given).subset(torch.tensor([3, 0, 0]))
    assert subset == (NAMES[3], NAMES[0], NAMES[0])
    assert subset.subset(torch.tensor([1])).image_files(tmp_path) == given[:1]


def test_a_list_and_its_subset_share_the_block_of_names():
    files = FileList.of_names(NAMES)
    assert files.subset(torch.tensor([1]))._block.data_ptr() == files._block.data_ptr()
    assert pickle.loads(pickle.dumps(files)) == NAMES


def test_files_that_nobody_looked_at_are_looked_at_when_it_matters(tmp_path):
    (tmp_path / "b.gif").write_bytes(b"12345")
    (found,) = FileList.of_names(["b.gif"]).image_files(tmp_path)
    assert (found.size, found.mtime_ns) == (5, (tmp_path / "b.gif").stat().st_mtime_ns)
    with pytest.raises(DataError, match=r"c\.gif: No such file"):
        FileList.of_names(["c.gif"]).image_files(tmp_path)
