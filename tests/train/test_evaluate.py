from __future__ import annotations

import json
import math

import pytest
import torch
from small_training import CLASSES, TEACHER, images, tapped

from kdcompress.data.loader import EvaluationLoader
from kdcompress.networks.teacher import Teacher
from kdcompress.train.evaluate import predict, predict_teacher, score


def test_the_score_of_given_logits():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    got = score(logits, torch.tensor([0, 0, 0, 1]))
    surprises = [math.log(1 + math.exp(-2)), math.log(1 + math.e), math.log(1 + math.exp(-3)), math.log(2)]
    assert got["top1"] == 0.5
    assert got["loss"] == pytest.approx(sum(surprises) / 4)


def test_a_loss_that_is_not_finite_is_said_in_valid_json():
    got = score(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]))
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
    got, labels = predict_teacher(Teacher(network), loader)
    expected, _ = predict(network.network, network, loader)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    assert len(labels) == 6
