from __future__ import annotations

import pytest
import torch
from small_training import CLASSES, Small

from kdcompress.errors import DataError, NetworkError
from kdcompress.methods import losses


def test_the_best_other_class_gets_half_when_the_label_is_ranked_first_and_ties_share_the_better_rank():
    scores = torch.tensor([[9.0, 5.0, 5.0, 1.0]], dtype=torch.float64)
    target = losses.zipf_targets(scores, torch.tensor([0]))
    weights = torch.tensor([[1 / 2, 1 / 2, 1 / 4]], dtype=torch.float64)
    torch.testing.assert_close(target, weights / weights.sum())
    flat = losses.zipf_targets(scores, torch.tensor([3]), power=0.0)
    torch.testing.assert_close(flat, torch.full((1, 3), 1 / 3, dtype=torch.float64))


def test_the_label_gets_no_gradient_and_a_matching_prediction_costs_nothing():
    target = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    logits = torch.cat([torch.tensor([[7.0]]), target.log()], 1).requires_grad_()
    loss = losses.other_classes_kl(logits, target, torch.tensor([0]))
    assert loss.item() == pytest.approx(0, abs=1e-12)
    worse = losses.other_classes_kl(logits, target.flip(1), torch.tensor([0]))
    worse.backward()
    assert worse.item() > 0.1
    assert logits.grad[0, 0] == 0


def test_cells_vote_with_the_networks_own_classifier():
    map_BDHW = torch.zeros(1, 2, 2, 2)
    map_BDHW[0, 0, 0] = 1.0  # the upper row speaks for class 0
    map_BDHW[0, 1, 1] = 1.0
    votes = losses.dense_votes(map_BDHW, torch.tensor([[1.0, 0], [0, 1], [-1, -1]]), None)
    assert votes.tolist() == [[2.0, 2.0, 0.0]]


def test_logits_are_ranked_where_the_cells_cannot_vote(tmp_path):
    assert Small(tmp_path / "a", "zipf").method.dense
    hidden = "torchvision/mobilenet_v3_small"
    assert not Small(tmp_path / "b", "zipf", student=hidden).method.dense
    with pytest.raises(NetworkError, match=r"hidden layer .*; set method.votes: logits"):
        Small(tmp_path / "c", "zipf", student=hidden, config={"votes": "dense"})


def test_two_classes_leave_nothing_to_rank(tmp_path):
    with pytest.raises(DataError, match="take data of at least three classes"):
        Small(tmp_path, "zipf", data={"num_classes": 2})
    assert CLASSES > 2


def test_cells_do_not_vote_where_a_layer_lies_between_the_map_and_the_classifier(tmp_path):
    # The last map of a DenseNet is that before its last ReLU.
    student = {"student": "torchvision/densenet121", "side": 64}
    assert not Small(tmp_path, "zipf", **student).method.dense
    with pytest.raises(NetworkError, match=r"a layer between its last map and its classifier; set method\."):
        Small(tmp_path / "dense", "zipf", config={"votes": "dense"}, **student)
    assert Small(tmp_path / "own", "zipf").method.dense
