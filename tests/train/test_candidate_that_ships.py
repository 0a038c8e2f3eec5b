"""`train.ship`: which network of a training becomes the student, and when an ensemble ships beside it."""

from __future__ import annotations

import pytest
import torch
from small_training import Small, assert_same

from kdcompress.errors import UserError
from kdcompress.methods.base import Candidate
from kdcompress.tasks.classification import mean_prediction
from kdcompress.train.choice import check_ship, offered


def test_a_name_that_the_method_does_not_offer_is_refused_with_the_list(tmp_path):
    method = Small(tmp_path, "dml").method
    assert offered(method, ema=True) == ["best", "last", "student", "peer1", "ema", "ensemble"]
    for ship in ("best", "last", "student", "peer1", "ensemble"):
        check_ship(method, ship, ema=False)
    with pytest.raises(
        UserError, match=r"train.ship: .* 'peer2'; did you mean 'peer1'.*; choices: best, last"
    ):
        check_ship(method, "peer2", ema=False)
    with pytest.raises(UserError, match=r"'ema'; ema needs train.ema"):
        check_ship(method, "ema", ema=False)
    with pytest.raises(UserError, match="'ensemble'"):
        check_ship(Small(tmp_path / "one").method, "ensemble", ema=False)


@pytest.mark.parametrize("name", ["student", "peer1"])
def test_a_named_network_ships_with_its_own_best_epoch(tmp_path, name):
    small = Small(tmp_path, "dml", train={"epochs": 3, "ship": name})
    outcome = small.run()
    assert outcome.candidate == outcome.best["candidate"] == name
    network = {"student": small.student, "peer1": small.peers[0]}[name]
    assert outcome.like is network
    assert set(outcome.candidates) == {"student", "peer1"}
    assert outcome.candidates[name]["top1"] == outcome.best["top1"]


def test_the_ema_ships_if_it_is_named(tmp_path):
    outcome = Small(tmp_path, train={"epochs": 2, "ema": 0.5, "ship": "ema"}).run()
    assert outcome.candidate == "ema"


def test_a_peer_of_another_class_is_a_member_and_no_candidate(tmp_path):
    small = Small(tmp_path, "dml", peers=["cifar/resnet14"])
    assert list(small.method.candidates()) == ["student"]
    assert list(small.method.members()) == ["student", "peer1"]


def test_with_ensemble_the_best_member_ships_and_the_states_of_all_beside_it(tmp_path):
    small = Small(tmp_path, "dml", peers=["cifar/resnet8", "cifar/resnet14"],
                  train={"epochs": 2, "ship": "ensemble"})  # fmt: skip
    outcome = small.run()
    assert outcome.candidate in ("student", "peer1")
    assert list(outcome.ensemble) == ["student", "peer1", "peer2"]
    assert outcome.ensemble_best["epoch"] in (1, 2)
    small.peers[1].network.load_state_dict(outcome.ensemble["peer2"], strict=True)
    # A resume of the finished training gives the same.
    again = Small(tmp_path, "dml", peers=["cifar/resnet8", "cifar/resnet14"],
                  train={"epochs": 2, "ship": "ensemble"}).run()  # fmt: skip
    for name, state in outcome.ensemble.items():
        assert_same(state, again.ensemble[name])


def test_the_prediction_of_an_ensemble_is_the_mean_of_the_probabilities():
    one, other = torch.randn(2, 5, 4)
    mean = mean_prediction([one, other])
    torch.testing.assert_close(mean.softmax(1), (one.softmax(1) + other.softmax(1)) / 2)


def test_a_peer_is_scored_with_its_own_normalisation(tmp_path):
    small = Small(tmp_path, "dml")
    peer = small.peers[0]
    peer.mean, peer.std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.9, 0.8, 0.7])
    peer.to("cpu")  # places the new figures
    choice = small.trainer.choice
    scores, _ = choice._scores(choice._held_out)
    peer.train_mode(False)
    outputs = [peer(batch.images).logits for batch in choice._held_out]
    labels = [batch.labels for batch in choice._held_out]
    loss = torch.nn.functional.cross_entropy(torch.cat(outputs), torch.cat(labels)).item()
    assert scores["peer1"]["loss"] == pytest.approx(loss, rel=1e-6)
    wrong = [peer.network(small.student.normalise(batch.images)) for batch in choice._held_out]
    assert torch.nn.functional.cross_entropy(torch.cat(wrong), torch.cat(labels)).item() != pytest.approx(
        loss
    )


def test_a_candidate_without_a_module_of_its_own_is_scored_from_its_state(tmp_path):
    small = Small(tmp_path)
    student = small.student
    state = {key: torch.zeros_like(value) for key, value in student.network.state_dict().items()}
    small.method.candidates = lambda: {
        "student": Candidate.of(student), "zeros": Candidate(student, lambda: state),
    }  # fmt: skip
    choice = small.trainer.choice
    scores, _ = choice._scores(choice._held_out)
    assert scores["zeros"]["loss"] == pytest.approx(torch.log(torch.tensor(4.0)).item(), rel=1e-5)
    assert not torch.equal(student.network.fc.weight, torch.zeros_like(student.network.fc.weight))
