from __future__ import annotations

import pytest
import torch
from small_training import Small

from kdcompress.errors import NetworkError
from kdcompress.methods.selfkd.byot import BYOT, Head


def test_there_is_a_head_for_every_stage_but_the_last_and_no_hint_next_to_the_deepest(tmp_path):
    byot = Small(tmp_path, "byot", config={"hint_weight": 0.03}).method
    # resnet8 has three stages; heads are counted from the deepest.
    assert byot.stages == ["stage2", "stage1"]
    assert len(byot.heads) == 2
    assert len(byot.adapters) == 1


def test_a_head_halves_its_map_down_to_the_last_stage_and_gives_features_as_wide_as_the_student():
    head = Head(16, 64, 10, halvings=2)
    feature, logits = head(torch.rand(2, 16, 8, 8))
    assert feature.shape == (2, 64)
    assert logits.shape == (2, 10)


def test_the_deepest_classifier_is_taught_by_labels_alone(tmp_path):
    byot = Small(tmp_path, "byot", config={"hint_weight": 0.03}).method
    rows = [torch.randn(4, 4, requires_grad=True) for _ in range(3)]
    features = [torch.randn(4, 64, requires_grad=True) for _ in range(3)]
    labels = torch.tensor([0, 1, 2, 3])
    terms = byot.terms(rows, features, list(byot.adapters), labels)
    (terms["soft"] + terms["hint"] + terms["ce_heads"]).backward()
    assert rows[0].grad is None
    assert features[0].grad is None
    assert rows[1].grad is not None
    assert features[1].grad is None  # the head next to the deepest has no hint
    assert features[2].grad is not None


def test_terms_have_the_weights_of_the_config(tmp_path):
    terms = {}
    for alpha, hint_weight in ((0.25, 1.0), (0.75, 2.0)):
        config = {"alpha": alpha, "hint_weight": hint_weight}
        small = Small(tmp_path, "byot", config=config)
        terms[alpha] = small.method.losses(next(small.loader.epoch(0)))
    first, second = terms[0.25], terms[0.75]
    assert (first["ce_heads"] / second["ce_heads"]).item() == pytest.approx(3, rel=1e-5)
    assert (second["soft"] / first["soft"]).item() == pytest.approx(3, rel=1e-5)
    assert (second["hint"] / first["hint"]).item() == pytest.approx(2, rel=1e-5)
    assert first["ce"].item() == pytest.approx(second["ce"].item(), rel=1e-6)


def test_a_network_of_one_stage_is_refused_with_what_to_change(tmp_path):
    small = Small(tmp_path, "byot", config={"hint_weight": 0.03})
    networks = small.method.networks
    whole = networks.student.shapes()
    one = type(whole)(logits=whole.logits, pooled=whole.pooled, stages={"stage1": whole.stages["stage1"]})
    networks.student.shapes = lambda: one
    with pytest.raises(
        NetworkError, match=r"needs two stages or more, cifar/resnet8 has 1 at 8x8.*student.taps"
    ):
        BYOT(small.method.config, networks, small.method.data)
