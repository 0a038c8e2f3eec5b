from __future__ import annotations

import math

import pytest
import torch
from small_training import Small
from torch import nn

from kdcompress.methods.offline.simreg import SimReg


def made(folder, **config):
    return Small(folder, "simreg", config={"ce_weight": 1.0, **config}).method


def test_the_term_is_2_minus_2_cosines_in_the_mean_whatever_the_lengths(tmp_path):
    method = made(tmp_path, weight=3.0)
    predicted, teacher = [[3.0, 4.0], [1.0, 0.0]], [[4.0, 3.0], [-2.0, 0.0]]
    expected = 3 * ((2 - 2 * 24 / 25) + 4) / 2
    got = method.regression(torch.tensor(predicted), torch.tensor(teacher))
    assert got.item() == pytest.approx(expected)
    got = method.regression(7 * torch.tensor(predicted), 0.1 * torch.tensor(teacher))
    assert got.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("layers", "widths"), [(4, [64, 128, 64, 128, 96]), (2, [64, 128, 96])], ids=["four", "two"]
)
def test_the_head_is_as_wide_as_published_and_bends_after_every_other_layer(layers, widths, tmp_path):
    method = made(tmp_path)
    # A teacher wider than the student.
    method.networks.teacher.shapes = lambda: type(method.networks.student.shapes())(
        pooled=torch.empty(2, 96, device="meta")
    )
    head = SimReg(SimReg.Config(head_layers=layers), method.networks, method.data).head
    linear = [m for m in head if isinstance(m, nn.Linear)]
    assert [linear[0].in_features, *(m.out_features for m in linear)] == widths
    kinds = [type(m) for m in head]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear] * (layers // 2)


def test_the_student_can_learn_to_predict_a_teacher_of_fixed_features(tmp_path):
    method = made(tmp_path)
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(16, 64, generator=generator) for _ in range(2))
    optimiser = torch.optim.Adam(method.head.parameters(), lr=1e-2)
    first = method.feature_terms(ours, theirs)["regression"].item()
    assert first == pytest.approx(2, abs=0.5)  # directions at random are at right angles
    for _ in range(60):
        optimiser.zero_grad()
        loss = method.feature_terms(ours, theirs)["regression"]
        loss.backward()
        optimiser.step()
    assert loss.item() < first / 20
    assert math.isfinite(loss.item())
