from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from small_training import Small

from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import find_method
from kdcompress.methods.offline.fitnet import FitNet, Regressor, reachable


def test_the_hint_is_a_mean_over_all_elements():
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert losses.mse(student, student).item() == 0
    assert losses.mse(student, torch.zeros(2, 2)).item() == pytest.approx((1 + 4 + 9 + 16) / 4)


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "kernel"),
    [
        ((4, 8, 8), (6, 4, 4), torch.nn.Conv2d, (3, 3)),
        ((4, 4, 4), (6, 8, 8), torch.nn.ConvTranspose2d, (4, 4)),
        ((4, 4, 4), (6, 4, 4), torch.nn.Conv2d, (1, 1)),
        ((4, 7, 5), (6, 4, 4), torch.nn.Conv2d, (4, 2)),
    ],
)
def test_a_regressor_leads_from_the_students_shape_to_the_teachers(student, teacher, kind, kernel):
    regressor = Regressor(student, teacher)
    assert type(regressor.conv) is kind
    assert regressor.conv.kernel_size == kernel
    regressed = regressor(torch.randn(2, *student))
    assert regressed.shape == (2, *teacher)
    assert (regressed >= 0).all()
    assert (Regressor(student, teacher, activation=False)(torch.randn(2, *student)) < 0).any()


def test_no_regressor_leads_from_a_map_that_is_smaller_by_another_factor_than_two():
    assert not reachable((4, 3, 3), (4, 8, 8))
    assert not reachable((4, 1, 1), (4, 8, 8))
    assert not reachable((4, 4, 8), (4, 8, 8))


def test_the_middle_stage_is_the_hint_unless_others_are_named(tmp_path):
    def pair(**config):
        chosen = Small(tmp_path, "fitnet", config=config).method.pair
        return chosen.student, chosen.teacher

    assert pair() == ("stage2", "stage2")
    assert pair(hint="stage3") == ("stage3", "stage3")
    assert pair(guided="stage1") == ("stage1", "stage1")
    assert pair(guided="stage1", hint="stage2") == ("stage1", "stage2")


def test_stages_that_no_regressor_joins_are_refused_with_both_networks_maps(tmp_path):
    with pytest.raises(
        NetworkError,
        match=r"cifar/resnet8 \(stage1 16×8×8.*cifar/resnet14 \(stage1 16×8×8.*method.guided and method.hint",
    ):
        Small(tmp_path, "fitnet", config={"guided": "stage3", "hint": "stage1"})
    with pytest.raises(NetworkError, match=r"method.hint: no stage 'stage9'; did you mean 'stage\d'\?"):
        Small(tmp_path, "fitnet", config={"hint": "stage9"})


def test_terms_have_the_weights_of_the_config_and_reach_no_teacher(tmp_path):
    terms = {}
    for factor in (1.0, 2.0):
        config = {"weight": 100 * factor, "ce_weight": factor, "kd_weight": factor}
        small = Small(tmp_path, "fitnet", config=config)
        terms[factor] = small.method.losses(next(small.loader.epoch(0)))
        assert all(p.grad is None for p in small.teacher.network.parameters())
    assert list(terms[1.0]) == ["hint", "ce", "kd"]
    for key in terms[1.0]:
        assert terms[2.0][key].item() == pytest.approx(2 * terms[1.0][key].item(), rel=1e-5)


def test_a_hint_before_the_activation_is_compared_without_one(tmp_path):
    small = Small(tmp_path, "fitnet", config={"pre_activation": True})
    assert small.method.needs(small.method.config).read_of_teacher == {"pre", "logits"}
    assert isinstance(small.method.regressor.activation, torch.nn.Identity)
    assert list(small.method.losses(next(small.loader.epoch(0)))) == ["hint", "ce", "kd"]


@pytest.mark.parametrize("name", ["fitnet", "at", "ab", "sp"])
def test_without_a_weight_for_them_no_labels_are_needed_but_something_must_train_the_classifier(name):
    cls = find_method(name)
    assert cls.needs(cls.Config()).labels
    assert cls.needs(cls.Config()).teacher
    needs = cls.needs(cls.Config(ce_weight=0.0, kd_weight=1.0))
    assert not needs.labels
    assert "logits" in needs.read_of_teacher
    assert "logits" not in FitNet.needs(FitNet.Config(kd_weight=0.0)).read_of_teacher
    with pytest.raises(ValidationError, match="nothing trains the classifier"):
        cls.Config(ce_weight=0.0, kd_weight=0.0)
