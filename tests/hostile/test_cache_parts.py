"""A run whose cache must not be used ends in the bits of one whose cache is sound."""

from __future__ import annotations

import shutil

import pytest
import torch

from hostile import cache_parts
from kdcompress.data.cache import cache_folder
from kdcompress.run import teacher_cache


@pytest.fixture
def read(tmp_path):
    """Returns the teacher's outputs of some batches, as a run with a cache reads them."""
    return cache_parts.teacher_outputs(tmp_path, "fill")


def _linked(folder, elsewhere):
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)


def _no_folder(folder, elsewhere):
    shutil.move(folder, elsewhere)
    folder.write_text("no folder")


@pytest.mark.parametrize("change", [_linked, _no_folder])
def test_a_folder_that_must_not_be_used_costs_a_warning_and_no_bit(read, change, tmp_path, capsys):
    expected = read()
    (folder,) = (cache_folder() / "teacher-outputs").iterdir()
    change(folder, tmp_path / "elsewhere")
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "elsewhere").iterdir()}
    assert read() == expected
    assert "the teacher computes at every step" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "elsewhere").iterdir()} == there


def test_outputs_in_the_cache_that_are_not_finite_are_not_used(read, monkeypatch, capsys):
    expected, real = read(), teacher_cache.CachedTeacher.cached

    def with_nan(*arguments):
        kept = real(*arguments)
        return kept.__class__(logits=torch.full_like(kept.logits, torch.nan), pooled=kept.pooled)

    monkeypatch.setattr(teacher_cache.CachedTeacher, "cached", with_nan)
    assert read() == expected
    assert "differ from those of the teacher by up to inf" in capsys.readouterr().err
