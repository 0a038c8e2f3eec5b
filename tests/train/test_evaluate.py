from __future__ import annotations

import json
import math

import pytest
import torch
from small_training import CLASSES, TEACHER, backbone, images, tapped

from kdcompress.data.loader import EvaluationLoader
from kdcompress.metrics.neighbours import knn_top1, overlap
from kdcompress.networks.teacher import FrozenTeacher
from kdcompress.tasks import CLASSIFICATION, EMBEDDING
from kdcompress.tasks.figures import selection_metric
from kdcompress.train.evaluate import predict, predict_teacher


def test_the_score_of_given_logits():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    got = CLASSIFICATION.score(logits, torch.tensor([0, 0, 0, 1]))
    surprises = [math.log(1 + math.exp(-2)), math.log(1 + math.e), math.log(1 + math.exp(-3)), math.log(2)]
    assert got["top1"] == 0.5
    assert got["loss"] == pytest.approx(sum(surprises) / 4)


def test_a_loss_that_is_not_finite_is_said_in_valid_json():
    got = CLASSIFICATION.score(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]))
    assert got["loss"] is None
    json.dumps(got, allow_nan=False)


def test_predictions_are_those_of_evaluation_mode_in_order_whatever_the_batches():
    network = tapped("cifar/resnet8", 8)
    source = images(10, 8)
    network.network.train()
    got, labels = predict(network.network, network, EvaluationLoader(source, batch_size=3, device="cpu"))
    whole, _ = predict(network.network, network, EvaluationLoader(source, batch_size=10, device="cpu"))
    assert got.shape == (10, CLASSES)
    torch.testing.assert_close(got, whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(labels, source.labels)
    assert not got.requires_grad


def test_predictions_are_float32_in_the_precision_of_the_training():
    exact, rough = tapped("cifar/resnet8", 8), None
    rough = exact.with_network(exact.network)
    rough.precision = torch.bfloat16
    loader = EvaluationLoader(images(6, 8), device="cpu")
    one, other = (predict(t.network, t, loader)[0] for t in (exact, rough))
    assert one.dtype == other.dtype == torch.float32
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, rtol=0.1, atol=0.1)


def test_a_teacher_is_scored_by_what_it_teaches():
    network = tapped(TEACHER, 8)
    loader = EvaluationLoader(images(6, 8), device="cpu")
    got, labels = predict_teacher(FrozenTeacher(network), loader)
    expected, _ = predict(network.network, network, loader)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    assert len(labels) == 6


def test_images_without_a_label_do_not_count_where_others_have_one():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    got = CLASSIFICATION.score(logits, torch.tensor([0, -1, -1]), teacher_outputs=logits)
    assert got == {"top1": 1.0, "loss": pytest.approx(math.log(1 + math.exp(-2)))}


def test_without_labels_a_classifier_is_scored_by_its_agreement_with_its_teacher():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    taught = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 4.0]])
    got = CLASSIFICATION.score(logits, torch.full((3,), -1), teacher_outputs=taught)
    p, q = taught.softmax(1), logits.softmax(1)
    assert got == {
        "agreement": pytest.approx(2 / 3),
        "kl": pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5),
    }
    assert selection_metric(got) == "agreement"
    assert CLASSIFICATION.score(taught, torch.full((3,), -1), teacher_outputs=taught)["kl"] == pytest.approx(
        0, abs=1e-7
    )
    assert CLASSIFICATION.score(logits, torch.full((3,), -1)) == {}
    assert selection_metric({}) is None


def test_a_backbone_is_scored_by_its_neighbours_and_by_its_teachers():
    features = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 3
    got = EMBEDDING.score(features, labels, -features)
    assert got == {"knn_top1": knn_top1(features, labels), "agreement": 1.0}
    assert selection_metric(got) == "knn_top1"
    got = EMBEDDING.score(features, torch.full((30,), -1), features[:, :3])
    assert got == {"agreement": overlap(features, features[:, :3])}
    assert selection_metric(got) == "agreement"
    assert EMBEDDING.score(features, torch.full((30,), -1)) == {}


def test_a_teacher_of_a_backbone_is_read_before_its_classifier():
    network = tapped(TEACHER, 8)
    loader = EvaluationLoader(images(6, 8), device="cpu")
    teacher = FrozenTeacher(network)
    got, _ = predict_teacher(teacher, loader, EMBEDDING)
    assert got.shape == (6, 64)
    torch.testing.assert_close(teacher.classify(got), predict_teacher(teacher, loader)[0])
    bare = backbone(TEACHER, 8)
    got, _ = predict_teacher(FrozenTeacher(bare), loader)
    torch.testing.assert_close(got, predict(bare.network, bare, loader)[0], rtol=1e-3, atol=1e-4)
