"""Stored predictions of a baseline are taken as they were written, or not at all."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from kdcompress.errors import RunFolderError
from kdcompress.run.predictions import NAME, check_predictions, right_predictions, write_predictions

CLASSES, LABELS = torch.tensor([1, 2, 0, 4]), torch.tensor([1, 0, -1, 4])


def test_right_answers_are_those_on_labelled_images(tmp_path):
    check_predictions(tmp_path)  # none
    write_predictions(tmp_path, CLASSES, LABELS)
    right, labels = right_predictions(tmp_path)
    assert right.tolist() == [True, False, True]
    assert labels.tolist() == [1, 0, 4]


def test_those_of_an_earlier_version_are_read(tmp_path):
    safetensors.torch.save_file({"classes": CLASSES, "labels": LABELS}, tmp_path / NAME)
    assert right_predictions(tmp_path)[0].tolist() == [True, False, True]


@pytest.mark.parametrize(
    "tensors", [{"classes": CLASSES}, {"classes": CLASSES, "labels": LABELS[:2]}, {}], ids=len
)
def test_a_file_of_something_else_is_one_message(tmp_path, tensors):
    safetensors.torch.save_file(tensors, tmp_path / NAME)
    with pytest.raises(RunFolderError, match=r"is gone or damaged .* go on with --resume"):
        check_predictions(tmp_path)


def test_no_flipped_bit_changes_a_comparison(tmp_path):
    write_predictions(tmp_path, CLASSES, LABELS)
    whole = (tmp_path / NAME).read_bytes()
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / NAME).write_bytes(content)
        try:
            right, labels = right_predictions(tmp_path)
        except RunFolderError:
            continue
        assert right.tolist() == [True, False, True], bit
        assert labels.tolist() == [1, 0, 4], bit
