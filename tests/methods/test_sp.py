from __future__ import annotations

import pytest
import torch
from small_training import Small

from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.offline.sp import SP
from kdcompress.networks.activations import Activations


def test_two_images_that_are_alike_to_one_network_alone():
    # Similarities (rows of unit length): the identity against 1/√2 everywhere.
    student, teacher = torch.eye(2, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    half = 0.5**0.5
    expected = (2 * (1 - half) ** 2 + 2 * half**2) / 4
    assert losses.similarity_preserving(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_similarities_know_neither_scale_nor_rotation_nor_size():
    features = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(36, 36, dtype=torch.float64)).Q
    turned = 5 * features.flatten(1) @ rotation
    assert losses.similarity_preserving(features, turned).item() == pytest.approx(0, abs=1e-15)
    assert losses.similarity_preserving(features, torch.randn(6, 7, dtype=torch.float64)).item() > 0


def test_a_batch_of_dead_features_gives_no_nan():
    student = torch.zeros(4, 3, requires_grad=True)
    loss = losses.similarity_preserving(student, torch.rand(4, 5))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_the_deepest_stage_alone_is_compared_unless_all_are_asked_for(tmp_path):
    assert [p.student for p in Small(tmp_path, "sp").method.pairs] == ["stage3"]
    every = Small(tmp_path, "sp", config={"stages": "all"}).method.pairs
    assert [p.student for p in every] == ["stage1", "stage2", "stage3"]


def test_terms_have_the_weights_of_the_config(tmp_path):
    terms = {}
    for factor in (1.0, 2.0):
        small = Small(tmp_path, "sp", config={"weight": 3000 * factor, "kd_weight": factor})
        terms[factor] = small.method.losses(next(small.loader.epoch(0)))
    assert list(terms[1.0]) == ["similarity", "ce", "kd"]
    for key, factor in {"similarity": 2, "ce": 1, "kd": 2}.items():
        assert terms[2.0][key].item() == pytest.approx(factor * terms[1.0][key].item(), rel=1e-5)


def test_by_default_the_term_does_not_shrink_with_the_batch(tmp_path):
    terms = {}
    for rows in (8, 16):
        method = Small(tmp_path / str(rows), "sp", float64=True).method
        # Every image twice: similarities repeat, so the mean over the matrix is the same.
        maps = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        others = maps.flip(0) + maps.square()
        stage = method.pairs[-1].student
        seen = [Activations(stages={stage: m.repeat(rows // 8, 1, 1, 1)}) for m in (maps, others)]
        terms[rows] = method.compare(*seen, None)["similarity"].item()
        plain = losses.similarity_preserving(*[s.stages[stage] for s in seen]).item()
        assert terms[rows] == pytest.approx(3000 * rows / 64 * plain, rel=1e-12)
    assert terms[16] == pytest.approx(terms[8], rel=1e-12)


def test_a_network_without_stages_is_refused_with_what_to_change(tmp_path):
    small = Small(tmp_path, "sp")
    small.method.networks.student.shapes = Activations
    with pytest.raises(NetworkError, match=r"student cifar/resnet8 \(no stages\), teacher .* student.taps"):
        SP(small.method.config, small.method.networks, small.method.data)
