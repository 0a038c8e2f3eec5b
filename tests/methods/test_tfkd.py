from __future__ import annotations

import pytest
import torch
from small_training import Small

from kdcompress.errors import NetworkError
from kdcompress.methods import losses


def test_the_virtual_teacher_is_label_smoothing_in_other_words(tmp_path):
    # At a high temperature its distribution is uniform: 0.9 CE + 0.1 KL(uniform ‖ p), however many classes.
    method = Small(tmp_path, "tfkd", config={"temperature": 1e6}).method
    logits, labels = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    terms = method.terms(logits, labels, None)
    to_uniform = -logits.log_softmax(1).mean() + torch.tensor(1 / 4, dtype=torch.float64).log()
    assert terms["distill"].item() == pytest.approx(0.1 * to_uniform.item(), rel=1e-6)
    assert terms["ce"].item() == pytest.approx(0.9 * losses.cross_entropy(logits, labels).item())


def test_a_teacher_of_another_architecture_is_no_earlier_self(tmp_path):
    with pytest.raises(NetworkError, match=r"earlier training of the student, cifar/resnet8, and not cifar/"):
        Small(tmp_path, "tfkd", config={"teacher": "self"})


def test_it_learns_from_an_earlier_training_of_its_own_network(tmp_path):
    small = Small(tmp_path, "tfkd", student="cifar/resnet14", side=8, config={"teacher": "self"})
    terms = small.method.losses(next(small.loader.epoch(0)))
    assert set(terms) == {"ce", "distill"}
    assert terms["distill"].item() > 0
