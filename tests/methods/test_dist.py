from __future__ import annotations

import numpy as np
import pytest
import torch
from small_training import Small

from kdcompress.methods import losses
from kdcompress.methods.offline.dist import DIST


def pair(rows=6, classes=4):
    drawn = torch.randn(2, rows, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn[0].requires_grad_(), 3 * drawn[1]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_losses_are_one_minus_numpys_correlation_of_rows_and_of_columns(temperature):
    student, teacher = pair()
    p, q = ((z.detach() / temperature).softmax(1).numpy() for z in (student, teacher))
    rows = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    factor = temperature**2
    # The guard of 1e-8 in the denominator is seen in the sixth digit.
    assert losses.inter_class(student, teacher, temperature).item() == pytest.approx(factor * rows, rel=1e-4)
    assert losses.intra_class(student, teacher, temperature).item() == pytest.approx(
        factor * columns, rel=1e-4
    )


@pytest.mark.parametrize("loss", [losses.inter_class, losses.intra_class])
def test_equal_predictions_are_no_distance_and_the_factor_can_be_left_out(loss):
    student, teacher = pair()
    assert loss(teacher, teacher + 5, 2.0).item() == pytest.approx(0, abs=1e-5)
    without = loss(student, teacher, 2.0, squared_factor=False).item()
    assert loss(student, teacher, 2.0).item() == pytest.approx(4 * without)


def test_probabilities_need_not_be_matched_only_their_proportions():
    _, teacher = pair()
    # Half the teacher's prediction, half of nothing known: a much less certain student.
    unsure = (0.5 * teacher.softmax(1) + 0.5 / 4).log()
    assert losses.inter_class(unsure, teacher, 1.0).item() == pytest.approx(0, abs=1e-5)
    assert losses.intra_class(unsure, teacher, 1.0).item() == pytest.approx(0, abs=1e-5)
    assert losses.kl(unsure, teacher, 1.0).item() > 0.01


@pytest.mark.parametrize("loss", [losses.inter_class, losses.intra_class])
def test_predictions_that_do_not_vary_have_a_finite_gradient(loss):
    flat = torch.zeros(3, 4, requires_grad=True)
    loss(flat, torch.randn(3, 4), 4.0).backward()
    assert flat.grad.isfinite().all()
    far = torch.tensor([[200.0, 0.0, 0.0]] * 3, requires_grad=True)
    loss(far, -far.detach(), 1.0).backward()
    assert far.grad.isfinite().all()


@pytest.mark.parametrize("loss", [losses.inter_class, losses.intra_class])
def test_half_precision_is_widened(loss):
    student, teacher = (z.detach().bfloat16() for z in pair())
    with torch.autocast("cpu", torch.bfloat16):
        got = loss(student, teacher, 2.0)
    assert got.dtype == torch.float32
    assert torch.equal(got, loss(student.float(), teacher.float(), 2.0))


def test_terms_have_the_weights_of_the_config(tmp_path):
    config = {"temperature": 2.0, "ce_weight": 0.5, "inter_weight": 3.0, "intra_weight": 0.25}
    dist = Small(tmp_path, "dist", config=config).method
    student, teacher = pair()
    labels = torch.arange(6) % 4
    terms = dist.terms(student, teacher, labels)
    assert terms["ce"].item() == pytest.approx(0.5 * losses.cross_entropy(student, labels).item())
    assert terms["inter"].item() == pytest.approx(3 * losses.inter_class(student, teacher, 2.0).item())
    assert terms["intra"].item() == pytest.approx(0.25 * losses.intra_class(student, teacher, 2.0).item())


def test_without_a_weight_for_them_no_labels_are_needed():
    assert not DIST.needs(DIST.Config(ce_weight=0.0)).labels
    assert DIST.needs(DIST.Config()).labels
