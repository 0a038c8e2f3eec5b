from __future__ import annotations

import pytest
import torch
from small_training import Small

from kdcompress.methods import losses
from kdcompress.methods.offline.kd import KD


def test_the_terms_are_the_two_losses_times_their_weights(tmp_path):
    config = {"temperature": 3.0, "ce_weight": 0.25, "kd_weight": 2.0}
    small = Small(tmp_path, "kd", config=config)
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    labels = torch.tensor([0, 1, 2, 3, -1])
    terms = small.method.terms(student, teacher, labels)
    assert terms["kd"].item() == pytest.approx(2 * losses.kl(student, teacher, 3.0).item())
    assert terms["ce"].item() == pytest.approx(0.25 * losses.cross_entropy(student, labels).item())


def test_without_a_weight_for_them_no_labels_are_needed(tmp_path):
    assert not KD.needs(KD.Config(ce_weight=0.0)).labels
    assert KD.needs(KD.Config()).labels
    small = Small(tmp_path, "kd", config={"ce_weight": 0.0})
    assert list(small.method.losses(next(small.loader.epoch(0)))) == ["kd"]


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path):
    small = Small(tmp_path, "kd")
    logits = torch.randn(5, 4)
    assert small.method.terms(logits, logits, torch.zeros(5, dtype=torch.int64))[
        "kd"
    ].item() == pytest.approx(0, abs=1e-6)
