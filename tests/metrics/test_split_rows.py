from __future__ import annotations

import math

import pytest
import torch

from kdcompress.errors import WorldError
from kdcompress.metrics import split_rows as module
from kdcompress.metrics.split_rows import SplitRows, blocks, largest_absolute, mean_absolute


def collected(parts):
    rows = SplitRows()
    for part in parts:
        rows.add(part)
    return rows.tensor()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("most", [1 << 30, 200, 0])
def test_rows_come_back_as_they_were_whether_in_memory_or_in_a_file(dtype, most, monkeypatch):
    monkeypatch.setattr(module, "MEMORY_BYTES", most)
    parts = [(100 * torch.randn(count, 3)).to(dtype) for count in (4, 1, 7, 2)]
    got = collected(parts)
    assert torch.equal(got, torch.cat(parts))
    assert got.dtype == dtype


def test_what_is_many_lies_in_a_file_and_not_in_memory(monkeypatch):
    files = []
    monkeypatch.setattr(module, "MEMORY_BYTES", 100)
    real = module.tempfile.TemporaryFile
    monkeypatch.setattr(module.tempfile, "TemporaryFile", lambda **k: files.append(real(**k)) or files[-1])
    rows = SplitRows()
    rows.add(torch.zeros(5, 5))
    assert not files
    rows.add(torch.ones(5, 5))
    assert files[0].tell() == 200  # those that were in memory, too
    rows.add(torch.ones(1, 5))
    assert sum(part.numel() for part in rows._parts) == 0
    assert rows.tensor().sum() == 30
    rows.add(torch.ones(1, 5))
    assert rows.tensor().sum() == 35


def test_no_rows_are_an_empty_tensor():
    assert collected([]).shape == (0,)
    assert list(blocks(torch.empty(0, 3))) == []


def test_blocks_are_the_same_rows_of_all_tensors(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 25)
    outputs, labels = torch.randn(7, 3), torch.arange(7)
    found = list(blocks(outputs, labels))
    assert [len(own) for own, _ in found] == [2, 2, 2, 1]
    assert torch.equal(torch.cat([own for own, _ in found]), outputs)
    assert torch.equal(torch.cat([other for _, other in found]), labels)


def test_figures_of_all_numbers_do_not_depend_on_the_blocks(monkeypatch):
    values = torch.randn(50, 4)
    for size in (1, 40, 1 << 20):
        monkeypatch.setattr(module, "BLOCK_BYTES", size)
        assert mean_absolute(values) == pytest.approx(values.double().abs().mean().item(), rel=1e-12)
        assert largest_absolute(values) == values.abs().max().item()
    values[3, 1] = math.nan
    assert math.isnan(mean_absolute(values))
    assert math.isnan(largest_absolute(values))


def test_rows_of_another_width_or_type_are_a_bug_of_ours():
    for other in (torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.int64)):
        rows = SplitRows()
        rows.add(torch.zeros(2, 3))
        with pytest.raises(AssertionError, match="another shape or type"):
            rows.add(other)


def test_a_full_disk_is_an_error_that_names_the_folder(monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "MEMORY_BYTES", 0)
    monkeypatch.setattr(module.tempfile, "TemporaryFile", full)
    with pytest.raises(WorldError, match=module.tempfile.gettempdir()):
        SplitRows().add(torch.zeros(2, 3))
