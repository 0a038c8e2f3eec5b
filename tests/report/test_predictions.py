"""Stored predictions of a baseline are taken as they were written, or not at all."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from kdcompress.errors import RunFolderError, UserError
from kdcompress.report.predictions import NAME, compared_predictions, read_predictions, write_predictions

CLASSES, LABELS = torch.tensor([1, 2, 0, 4]), torch.tensor([1, 0, -1, 4])


def test_right_answers_are_those_on_labelled_images(tmp_path):
    assert read_predictions(tmp_path) is None
    write_predictions(tmp_path, CLASSES, LABELS)
    stored = read_predictions(tmp_path)
    assert stored.right().tolist() == [True, False, True]
    assert stored.labelled().labels.tolist() == [1, 0, 4]


def test_those_of_an_earlier_version_are_read(tmp_path):
    safetensors.torch.save_file({"classes": CLASSES, "labels": LABELS}, tmp_path / NAME)
    assert read_predictions(tmp_path).right().tolist() == [True, False, True]


@pytest.mark.parametrize(
    "tensors",
    [
        {}, {"classes": CLASSES}, {"classes": CLASSES, "labels": LABELS[:2]},
        {"classes": CLASSES.float(), "labels": LABELS}, {"classes": CLASSES[None], "labels": LABELS[None]},
    ],
    ids=["none", "lacking", "shorter", "floats", "matrices"],
)  # fmt: skip
def test_a_file_of_something_else_is_one_message(tmp_path, tensors):
    safetensors.torch.save_file(tensors, tmp_path / NAME)
    with pytest.raises(UserError, match=r"test_predictions\.safetensors: is damaged: its "):
        read_predictions(tmp_path)
    with pytest.raises(RunFolderError, match=r"is damaged: .*; delete .* and go on with --resume"):
        compared_predictions(tmp_path)


def test_a_baseline_without_them_or_of_other_images_is_one_message(tmp_path):
    with pytest.raises(RunFolderError, match=r"is gone; delete .* and go on with --resume"):
        compared_predictions(tmp_path)
    write_predictions(tmp_path, CLASSES, LABELS)
    own = read_predictions(tmp_path)
    assert compared_predictions(tmp_path, like=own).labels.equal(LABELS)
    write_predictions(tmp_path, CLASSES[1:], LABELS[1:])
    with pytest.raises(RunFolderError, match="is of other images"):
        compared_predictions(tmp_path, like=own)


def test_no_flipped_bit_changes_a_comparison(tmp_path):
    write_predictions(tmp_path, CLASSES, LABELS)
    whole = (tmp_path / NAME).read_bytes()
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / NAME).write_bytes(content)
        try:
            stored = read_predictions(tmp_path)
        except UserError:
            continue
        assert stored.classes.equal(CLASSES), bit
        assert stored.labels.equal(LABELS), bit
