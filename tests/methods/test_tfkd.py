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


def test_the_automatic_values_are_those_published_for_each_teacher(tmp_path):
    method = Small(tmp_path, "tfkd").method
    logits, labels = torch.randn(5, 100, dtype=torch.float64), torch.arange(5)
    teacher = torch.randn(5, 100, dtype=torch.float64)

    def explicit(**values):
        return type(method)(type(method).Config(**values), method.networks, method.data)

    virtual = explicit(alpha=0.1, temperature=20.0, multiplier=100.0)
    earlier = explicit(teacher="self", alpha=0.95, temperature=6.0, multiplier=50.0)
    for given, expected, target in ((method, virtual, None), (explicit(teacher="self"), earlier, teacher)):
        got, wanted = given.terms(logits, labels, target), expected.terms(logits, labels, target)
        assert {key: value.item() for key, value in got.items()} == pytest.approx(
            {key: value.item() for key, value in wanted.items()}, rel=1e-12
        )
