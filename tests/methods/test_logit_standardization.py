from __future__ import annotations

import pytest
import torch
from small_training import Small

from kdcompress.methods import losses

WRAPPED = ["kd", "dkd", "ctkd"]


def test_a_row_has_mean_0_and_deviation_1_whatever_its_scale_and_shift():
    rows = torch.tensor([[1.0, 2.0, 6.0], [-3.0, 0.0, 1.5]], dtype=torch.float64)
    got = losses.standardized(rows)
    torch.testing.assert_close(got.mean(1), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(got.std(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(losses.standardized(5 * rows - 7), got)


def test_a_row_of_equal_logits_has_a_finite_gradient():
    rows = torch.full((2, 3), 4.0, requires_grad=True)
    got = losses.standardized(rows)
    assert not got.any()
    (got**2).sum().backward()
    assert rows.grad.isfinite().all()


def test_half_precision_is_widened():
    with torch.autocast("cpu", torch.bfloat16):
        assert losses.standardized(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("name", WRAPPED)
def test_a_student_need_not_take_over_the_teachers_scale(name, tmp_path):
    torch.manual_seed(0)
    teacher, labels = torch.randn(6, 4), torch.arange(6) % 4
    for on in (True, False):
        method = Small(tmp_path / str(on), name, config={"logit_standardization": on}).method
        terms = method.terms(3 * teacher + 2, teacher, labels)
        distilled = sum(value.item() for key, value in terms.items() if key != "ce")
        assert (distilled < 1e-5) == on
        # The labels are compared with the logits themselves.
        assert terms["ce"].item() == pytest.approx(
            method.config.ce_weight * losses.cross_entropy(3 * teacher + 2, labels).item()
        )
