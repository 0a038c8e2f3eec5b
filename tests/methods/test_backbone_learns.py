"""What the methods have in common that can do without labels and without a classifier."""

from __future__ import annotations

import pytest
from small_training import Small

from kdcompress.errors import NetworkError
from kdcompress.methods.base import find_method

NAMES = ["simreg", "seed"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_needed_follows_from_the_weights(name):
    cls = find_method(name)
    needs = cls.needs(cls.Config())
    assert not needs.task.has_classes
    assert not needs.labels
    assert needs.unlabelled
    assert needs.student == needs.read_of_teacher == {"pooled"}
    needs = cls.needs(cls.Config(ce_weight=1.0))
    assert needs.labels
    assert needs.unlabelled
    assert needs.task.has_classes
    assert needs.student == {"logits", "pooled"}
    assert needs.read_of_teacher == {"pooled"}
    needs = cls.needs(cls.Config(kd_weight=1.0))
    assert not needs.labels
    assert needs.task.has_classes
    assert needs.student == needs.read_of_teacher == {"logits", "pooled"}


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_learns_from_a_backbone_without_a_label_or_a_logit(name, tmp_path):
    small = Small(tmp_path, name, headless=True, labelled=False)
    assert not small.student.task.has_classes
    assert not small.frozen.task.has_classes
    terms = small.method.losses(next(small.loader.epoch(0)))
    assert len(terms) == 1
    sum(terms.values()).backward()
    for module in (small.student.network, small.method):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_labels_and_soft_labels_come_beside_with_their_weights(name, tmp_path):
    small = Small(tmp_path, name, config={"ce_weight": 1.0})
    batch = next(small.loader.epoch(0))
    one = {key: term.item() for key, term in small.method.losses(batch).items()}
    assert list(one)[1:] == ["ce"]
    method = Small(tmp_path, name, config={"ce_weight": 0.5, "kd_weight": 2.0, "weight": 3.0}).method
    terms = {key: term.item() for key, term in method.losses(batch).items()}
    own = next(iter(one))
    assert list(terms) == [own, "ce", "kd"]
    assert terms["ce"] == pytest.approx(0.5 * one["ce"])
    assert terms[own] == pytest.approx(3 * one[own])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("role", "model"), [("student", "cifar/resnet8"), ("teacher", "cifar/resnet14")])
def test_a_network_without_pooled_features_is_refused(name, role, model, tmp_path):
    method = Small(tmp_path, name, config={"ce_weight": 1.0}).method
    network = getattr(method.networks, role)
    without = type(network.shapes())(logits=network.shapes().logits)
    network.shapes = lambda: without
    said = rf"method {name}: .*the {role} {model} has none.*{role}.taps: {{classifier: MODULE.PATH}}"
    with pytest.raises(NetworkError, match=said):
        type(method)(method.config, method.networks, method.data)


@pytest.mark.parametrize("name", NAMES)
def test_soft_labels_of_a_teacher_without_a_classifier_are_refused(name, tmp_path):
    said = f"method {name}: .* and cifar/resnet14 has no classifier here; set method.kd_weight to 0"
    with pytest.raises(NetworkError, match=said):
        Small(tmp_path, name, config={"kd_weight": 0.5}, headless=True)


@pytest.mark.parametrize("name", ["fitnet", "at", "ab", "sp", "rkd", "crd", "mlkd"])
def test_soft_labels_by_default_refuse_a_teacher_without_a_classifier_and_say_how_to_do_without(
    name, tmp_path
):
    with pytest.raises(NetworkError, match=f"method {name}: kd_weight 1 .* set method.kd_weight to 0"):
        Small(tmp_path, name, headless=True)
    Small(tmp_path, name, headless=True, config={"kd_weight": 0.0})
