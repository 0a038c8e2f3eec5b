"""Losses of generator-based distillation and of stored soft labels, which no method here uses yet."""

from __future__ import annotations

import math

import pytest
import torch

from kdcompress.methods import losses


def rows(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_density_ratio_loss_is_its_definition_written_out():
    def sigma(x):
        return 1 / (1 + math.exp(-x))

    real, generated = [0.5, 2.0, 3.0], [0.1, 1.5]
    expected = sum(sigma(f) * f - math.log(1 + math.exp(f)) for f in generated) / 2
    expected -= sum(sigma(r) for r in real) / 3
    expected += 0.3 * (0.8 - 1) ** 2
    got = losses.density_ratio(torch.tensor(real), torch.tensor(generated).unsqueeze(1), 0.3)
    assert got.item() == pytest.approx(expected)


def test_the_true_density_ratio_is_where_its_loss_is_smallest():
    # Two kinds of image: the real ones are 30 % and 70 % of them, the generated ones half and half.
    ratio = torch.tensor([0.6, 1.4], dtype=torch.float64, requires_grad=True)
    real, generated = ratio[[0] * 3 + [1] * 7], ratio[[0] * 5 + [1] * 5]
    loss = losses.density_ratio(real, generated, 0.01)
    (gradient,) = torch.autograd.grad(loss, ratio)
    assert gradient.abs().max() < 1e-12
    for other in ([0.7, 1.4], [0.6, 1.3], [1.0, 1.0]):
        other = torch.tensor(other, dtype=torch.float64)
        assert losses.density_ratio(other[[0] * 3 + [1] * 7], other[[0] * 5 + [1] * 5], 0.01) > loss
    one = torch.ones(4, dtype=torch.float64)
    assert losses.density_ratio(one, one, 0.01).item() == pytest.approx(-math.log(1 + math.e))


def test_a_density_ratio_is_finite_where_the_network_is_sure():
    far = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss = losses.density_ratio(far, far, 0.0)
    loss.backward()
    assert loss.isfinite()
    assert far.grad.isfinite().all()


def test_variance_falls_short_until_every_feature_deviates_by_one():
    spread = torch.tensor([[1.0, 5.0], [-1.0, 5.0]], dtype=torch.float64)
    # The first deviates by the root of 2, the second not at all.
    assert losses.variance_shortfall(spread).item() == pytest.approx((0 + 0.99) / 2)
    assert losses.variance_shortfall(rows(50, 4) * 3).item() == 0
    assert losses.variance_shortfall(rows(50, 4) * 0.1) > losses.variance_shortfall(rows(50, 4) * 0.2) > 0


def test_covariance_counts_every_pair_of_different_features_and_no_variance():
    independent = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    assert losses.covariance_energy(100 * independent).item() == pytest.approx(0, abs=1e-18)
    same = independent[:, :1].expand(4, 3)
    # Six ordered pairs of covariance 4/3, over three features.
    assert losses.covariance_energy(same).item() == pytest.approx(6 * (4 / 3) ** 2 / 3)
    z = rows(9, 5)
    matrix = torch.cov(z.T)
    expected = (matrix.square().sum() - matrix.diag().square().sum()) / 5
    assert losses.covariance_energy(z + 7).item() == pytest.approx(expected.item())


def test_squeezing_spreads_the_student_alone_and_spanning_both_crops():
    one, other = rows(8, 5), rows(8, 5, 1)
    similar = 10 * (one - other).square().mean()
    spread = [10 * losses.variance_shortfall(z) + losses.covariance_energy(z) for z in (one, other)]
    assert losses.squeeze(one, other).item() == pytest.approx((similar + spread[1]).item())
    assert losses.span(one, other).item() == pytest.approx((similar + sum(spread)).item())
    assert losses.span(one, other).item() == pytest.approx(losses.span(other, one).item())
    generator = one.clone().requires_grad_()
    losses.squeeze(generator, other).backward()
    torch.testing.assert_close(generator.grad, 20 * (one - other) / one.numel())


def test_the_mass_of_classes_that_were_not_kept_is_spread_or_given_to_the_others():
    classes, kept = torch.tensor([[3, 0], [1, 4]]), torch.tensor([[0.6, 0.1], [0.5, 0.5]])
    smoothed = losses.smoothed_soft_labels(classes, kept, 5)
    torch.testing.assert_close(smoothed, torch.tensor([[0.1, 0.1, 0.1, 0.6, 0.1], [0, 0.5, 0, 0, 0.5]]))
    torch.testing.assert_close(
        losses.renormalised_soft_labels(classes, kept, 5),
        torch.tensor([[1 / 7, 0, 0, 6 / 7, 0], [0, 0.5, 0, 0, 0.5]]),
    )
    # Rounded in storage to a sum above 1: no class gets less than nothing.
    assert losses.smoothed_soft_labels(classes, kept * 1.01, 5).min() == 0
    with pytest.raises(AssertionError, match="2 of 2 classes leave none"):
        losses.smoothed_soft_labels(classes, kept, 2)


def test_the_cross_entropy_with_soft_labels_is_least_where_the_student_says_the_same():
    target = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]], dtype=torch.float64)
    logits = torch.tensor([[0.1, 0.7, -0.4], [1.0, 2.0, 3.0]], dtype=torch.float64)
    expected = 0.0
    for goal, row in zip(target.tolist(), logits.tolist(), strict=True):
        total = math.log(sum(math.exp(x) for x in row))
        expected -= sum(g * (x - total) for g, x in zip(goal, row, strict=True))
    assert losses.soft_label_cross_entropy(logits, target).item() == pytest.approx(expected / 2)
    same = target[:1].log().requires_grad_()
    loss = losses.soft_label_cross_entropy(same, target[:1])
    loss.backward()
    assert same.grad.abs().max() < 1e-15
    entropy = -sum(p * math.log(p) for p in (0.2, 0.5, 0.3))
    assert loss.item() == pytest.approx(entropy)
