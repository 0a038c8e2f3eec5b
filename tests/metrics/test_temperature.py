"""A fitted temperature undoes the scale of logits; the calibration error has its known value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from kdcompress.metrics.calibration import (
    BINS,
    calibration,
    calibration_bins,
    expected_calibration_error,
    fit_temperature,
)


def calibrated_logits(count=20_000):
    """Logits whose softmax is the distribution that the labels are drawn from."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 4, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_scale_that_logits_were_multiplied_by(scale):
    logits, labels = calibrated_logits()
    assert fit_temperature(scale * logits, labels) == pytest.approx(scale, rel=0.05)


def test_images_without_a_label_do_not_count():
    logits, labels = calibrated_logits(2000)
    more = torch.cat([labels, torch.full((500,), -1)])
    assert fit_temperature(torch.cat([logits, 9 * logits[:500]]), more) == fit_temperature(logits, labels)
    with pytest.raises(ValueError, match="no image has a label"):
        fit_temperature(logits, torch.full_like(labels, -1))


def test_the_error_falls_by_the_temperature_and_is_zero_for_calibrated_logits():
    logits, labels = calibrated_logits()
    before, _ = calibration(3 * logits, labels)
    after, _ = calibration(3 * logits, labels, fit_temperature(3 * logits, labels))
    assert before > 0.1
    assert after < 0.01


def test_the_error_of_two_bins_is_written_out():
    confidences = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = torch.tensor([True, True, True, False, True, False])
    bins = calibration_bins(confidences, right)
    assert [(part.n, part.top1) for part in bins] == [(2, 0.5), (4, 0.75)]
    assert expected_calibration_error(bins) == pytest.approx((4 * 0.2 + 2 * 0.05) / 6)


def test_the_bins_are_those_of_scikit_learn():
    logits, labels = calibrated_logits(500)
    confidences, right = logits.softmax(1).amax(1).double(), logits.argmax(1) == labels
    bins = calibration_bins(confidences, right)
    top1, mean = calibration_curve(right.numpy(), confidences.numpy(), n_bins=BINS)
    np.testing.assert_allclose([part.top1 for part in bins], top1)
    np.testing.assert_allclose([part.confidence for part in bins], mean)
