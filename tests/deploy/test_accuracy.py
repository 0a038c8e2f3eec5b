from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdcompress.deploy.accuracy import _Moments, compare, outputs_of, score_split, spread
from kdcompress.errors import UserError
from kdcompress.tasks import CLASSIFICATION
from kdcompress.tasks.classification import accuracy


def test_top1_counts_images_and_balanced_top1_counts_classes():
    told = accuracy(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]), 2)
    assert told == {"top1": 0.75, "balanced_top1": 0.75, "per_class": [1.0, 0.5], "loss": None, "n": 4}
    told = accuracy(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]), 2)
    assert (told["top1"], told["balanced_top1"]) == (0.75, 0.5)


def test_a_class_that_does_not_occur_has_no_figure_and_no_weight():
    told = accuracy(torch.tensor([0, 2]), torch.tensor([0, 0]), 3)
    assert told["per_class"] == [0.5, None, None]
    assert told["balanced_top1"] == 0.5


def test_rows_without_a_label_do_not_count():
    told = accuracy(
        torch.tensor([0, 1, 1]), torch.tensor([0, -1, 0]), 2, losses=torch.tensor([1.0, 99.0, 3.0])
    )
    assert (told["top1"], told["n"], told["loss"]) == (0.5, 2, 2.0)
    assert accuracy(torch.tensor([0]), torch.tensor([-1]), 2)["top1"] is None


def test_logits_give_the_cross_entropy_too():
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9) % 4
    told = accuracy(logits, labels, 4)
    assert told["loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    assert told["top1"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_a_loss_that_is_no_number_is_none():
    assert accuracy(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]), 2)["loss"] is None


def test_the_spread_is_that_between_images_within_a_class():
    logits = torch.tensor([[1.0, 100.0], [3.0, 100.0]])
    assert spread(logits) == pytest.approx(0.5)  # 1 for the first class, 0 for the second


def test_moments_of_batches_are_those_of_the_whole():
    logits = torch.randn(37, 5, generator=torch.Generator().manual_seed(0)).double() * 3 + 7
    moments = _Moments()
    for part in logits.split(8):
        moments.add(part)
    assert moments.spread() == pytest.approx(spread(logits), rel=1e-12)
    assert moments.mean_absolute() == pytest.approx(logits.abs().mean().item(), rel=1e-12)


def split():
    images = torch.rand(10, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return list(zip(images.split(4), (torch.arange(10) % 3).split(4), strict=True))


def run(x):
    return x.reshape(len(x), 4)[:, :3].copy()


def test_predictions_over_batches_are_those_of_the_logits():
    logits, labels = outputs_of(run, split())
    assert logits.shape == (10, 3)
    predictions = score_split(run, split(), CLASSIFICATION.scorer(3), Path("student.onnx"))
    told, expected = predictions.result(), accuracy(logits, labels, 3)
    assert told.pop("loss") == pytest.approx(expected.pop("loss"))
    assert told == expected


def test_a_comparison_keeps_the_largest_error_of_each_image_and_counts_other_classes():
    logits, _ = outputs_of(run, split())

    def off(x):
        y = run(x)
        y[0, 1] -= 0.25  # the first of each batch
        return y

    found = compare(logits, off, split(), limit=1e-3)
    expected = torch.zeros(10).double()
    expected[[0, 4, 8]] = 0.25
    torch.testing.assert_close(found.errors, expected, atol=1e-6, rtol=0)
    moved = logits.clone()
    moved[[0, 4, 8], 1] -= 0.25
    same = (moved.argmax(1) == logits.argmax(1)).double().mean().item()
    assert found.deviation.figure == pytest.approx(same)
    assert torch.equal(found.reference.classes, logits.argmax(1))


def test_another_number_of_logits_is_refused():
    logits, _ = outputs_of(run, split())
    with pytest.raises(UserError, match=r"outputs of \[4, 2\], its network \[4, 3\]"):
        compare(logits, lambda x: run(x)[:, :2], split(), limit=1e-3)


def test_images_reach_a_file_as_float32_whatever_they_were():
    seen = []
    images = torch.rand(4, 1, 2, 2).double().to(memory_format=torch.channels_last)
    batch = (images, torch.zeros(4, dtype=torch.int64))
    score_split(lambda x: (seen.append(x), run(x))[1], [batch], CLASSIFICATION.scorer(3), Path("x"))
    assert seen[0].dtype == np.float32
    assert seen[0].flags.c_contiguous
