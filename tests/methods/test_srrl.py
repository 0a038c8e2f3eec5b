from __future__ import annotations

import pytest
import torch
from small_training import CLASSES, Small

from kdcompress.errors import NetworkError
from kdcompress.methods.offline.srrl import SRRL


def test_the_gradient_passes_through_the_teachers_classifier_and_leaves_it_frozen(tmp_path):
    small = Small(tmp_path, "srrl", config={"feature_weight": 0.0}, float64=True)
    classifier = small.frozen._frozen.classifier
    # d/dx mean((W x + b - z)²) by hand.
    with torch.no_grad():
        weight, bias = classifier.weight, classifier.bias
    torch.manual_seed(0)
    x, z = (torch.randn(6, width, dtype=torch.float64) for width in (64, CLASSES))
    x.requires_grad_()
    small.method.regressions(x, torch.randn(6, 64, dtype=torch.float64), z)["classifier"].backward()
    assert all(p.grad is None and not p.requires_grad for p in classifier.parameters())
    expected = 2 / (6 * CLASSES) * (x.detach() @ weight.T + bias - z) @ weight
    torch.testing.assert_close(x.grad, expected.detach())


def test_features_that_are_the_teachers_leave_nothing_to_learn_and_weights_are_the_configs(tmp_path):
    method = Small(
        tmp_path, "srrl", config={"feature_weight": 2.0, "classifier_weight": 3.0}, float64=True
    ).method
    pooled = torch.randn(5, 64, dtype=torch.float64)
    logits = method.networks.teacher.classify(pooled)
    same = method.regressions(pooled, pooled, logits)
    assert [term.item() for term in same.values()] == [0, 0]
    terms = method.regressions(pooled + 1, pooled, method.networks.teacher.classify(pooled + 1) + 1)
    assert terms["features"].item() == pytest.approx(2, rel=1e-12)
    assert terms["classifier"].item() == pytest.approx(3, rel=1e-12)


def test_the_connector_leads_from_the_students_last_map_to_what_the_teachers_classifier_reads(tmp_path):
    method = Small(tmp_path, "srrl", student="torchvision/mobilenet_v3_small").method
    deepest = list(method.networks.student.shapes().stages.values())[-1]
    assert method.connector[0].weight.shape == (64, deepest.shape[1], 1, 1)


@pytest.mark.parametrize(
    ("role", "said"),
    [
        ("student", r"last map of the student, cifar/resnet8 \(no stages\).*student.taps"),
        ("teacher", r"cifar/resnet14 does not end in one.*teacher.taps"),
    ],
)
def test_networks_without_a_last_map_or_a_linear_classifier_are_refused(role, said, tmp_path):
    method = Small(tmp_path, "srrl").method
    network = getattr(method.networks, role)
    without = type(network.shapes())(logits=network.shapes().logits)
    network.shapes = lambda: without
    with pytest.raises(NetworkError, match=said):
        SRRL(method.config, method.networks, method.data)
