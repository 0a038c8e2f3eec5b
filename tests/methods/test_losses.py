from __future__ import annotations

import math

import pytest
import torch

from kdcompress.methods import losses

A = [[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]]
B = [[1.0, 1.5, 0.0], [-2.0, 0.0, 0.0]]


def logits(rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=dtype, requires_grad=True)


def softmax(row, temperature=1.0):
    powers = [math.exp(x / temperature) for x in row]
    return [x / sum(powers) for x in powers]


def by_hand(divergence):
    return sum(divergence(a, b) for a, b in zip(A, B, strict=True)) / len(A)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_t_squared_times_the_divergence_of_the_softened_distributions(temperature):
    def divergence(student, teacher):
        p, q = softmax(student, temperature), softmax(teacher, temperature)
        return temperature**2 * sum(y * math.log(y / x) for x, y in zip(p, q, strict=True))

    assert losses.kl(logits(A), logits(B), temperature).item() == pytest.approx(
        by_hand(divergence), rel=1e-12
    )
    assert losses.kl(logits(A), logits(A), temperature).item() == pytest.approx(0, abs=1e-15)


def test_kl_takes_a_temperature_that_is_learnt():
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    loss = losses.kl(logits(A), logits(B), temperature)
    loss.backward()
    assert loss.item() == losses.kl(logits(A), logits(B), 2.0).item()
    assert temperature.grad != 0


def test_kl_is_finite_where_a_probability_underflows():
    far = torch.tensor([[500.0, -500.0]])
    loss = losses.kl(far, -far, 1.0)
    assert loss.item() == pytest.approx(1000)
    assert losses.kl(far, far, 1.0).item() == 0


def test_kl_does_not_change_when_logits_shift_and_keeps_its_gradient_when_the_temperature_grows():
    assert losses.kl(logits(A) + 7, logits(B) - 3, 2.0).item() == pytest.approx(
        losses.kl(logits(A), logits(B), 2.0).item()
    )
    norms = []
    for temperature in (50.0, 500.0):
        student = logits(A)
        losses.kl(student, logits(B).detach(), temperature).backward()
        norms.append(student.grad.norm().item())
    # Hinton et al.: with T² the gradients stay comparable; for large T they tend to (z - v) / (K · rows).
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_a_shift_is_added_to_the_target_and_not_renormalised():
    def divergence(student, teacher):
        p, q = softmax(student), [x + 0.01 for x in softmax(teacher)]
        return sum(y * math.log(y / x) for x, y in zip(p, q, strict=True))

    loss = losses.kl(logits(A), logits(B), 1.0, shift=0.01)
    assert loss.item() == pytest.approx(by_hand(divergence), rel=1e-12)


def test_the_guarded_divergence_is_the_exact_one_up_to_its_guard():
    exact = losses.kl(logits(A), logits(B), 1.0).item()
    assert losses.guarded_kl(logits(A), logits(B), 1e-8).item() == pytest.approx(exact, rel=1e-6)
    assert losses.guarded_kl(logits(A), logits(B), 1e-2).item() != pytest.approx(exact, rel=1e-3)


def test_soft_cross_entropy_has_the_gradient_of_kl_over_t_squared():
    student, other = logits(A), logits(A)
    losses.soft_cross_entropy(student, logits(B).detach(), 3.0).backward()
    losses.kl(other, logits(B).detach(), 3.0).backward()
    torch.testing.assert_close(student.grad, other.grad / 9)


def test_cross_entropy_means_over_the_rows_that_have_a_label():
    def surprise(row, label):
        return -math.log(softmax(row)[label])

    both = losses.cross_entropy(logits(A), torch.tensor([0, 2])).item()
    assert both == pytest.approx((surprise(A[0], 0) + surprise(A[1], 2)) / 2)
    assert losses.cross_entropy(logits(A), torch.tensor([-1, 2])).item() == pytest.approx(surprise(A[1], 2))
    student = logits(A)
    none = losses.cross_entropy(student, torch.tensor([-1, -1]))
    none.backward()
    assert none.item() == 0
    assert not student.grad.any()


def test_cross_entropy_weighs_rows_by_their_class_and_does_not_divide_by_the_weights():
    weights = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    plain = [
        losses.cross_entropy(logits([row]), torch.tensor([y])).item()
        for row, y in zip(A, (0, 2), strict=True)
    ]
    got = losses.cross_entropy(logits(A), torch.tensor([0, 2]), weights).item()
    assert got == pytest.approx((3 * plain[0] + 0.5 * plain[1]) / 2, rel=1e-12)


def test_label_smoothing_spreads_its_share_over_all_classes():
    log_p = [math.log(p) for p in softmax(A[0])]
    target = [0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]
    expected = -sum(t * p for t, p in zip(target, log_p, strict=True))
    got = losses.cross_entropy(logits(A[:1]), torch.tensor([0]), label_smoothing=0.1)
    assert got.item() == pytest.approx(expected)


def test_euclidean_is_one_norm_over_the_batch_with_a_gradient_of_norm_one_and_none_at_zero():
    student = logits(A)
    loss = losses.euclidean(student, logits(B).detach())
    loss.backward()
    differences = [(x - y) ** 2 for a, b in zip(A, B, strict=True) for x, y in zip(a, b, strict=True)]
    assert loss.item() == pytest.approx(math.sqrt(sum(differences)))
    assert student.grad.norm().item() == pytest.approx(1)
    same = logits(A)
    losses.euclidean(same, same.detach().clone()).backward()
    assert not same.grad.any()  # not NaN, which the square root alone would give


LOSSES = {
    "kl": lambda s, t: losses.kl(s, t, 2.0),
    "guarded_kl": lambda s, t: losses.guarded_kl(s, t, 1e-8),
    "soft_cross_entropy": lambda s, t: losses.soft_cross_entropy(s, t, 2.0),
    "euclidean": losses.euclidean,
    "active_squared_sum": losses.active_squared_sum,
    "cross_entropy": lambda s, t: losses.cross_entropy(s, t.argmax(1)),
    "mse": losses.mse,
    "attention_transfer": lambda s, t: losses.attention_transfer(s[:, None, None], t[:, None, None]),
    "activation_boundaries": losses.activation_boundaries,
    "similarity_preserving": losses.similarity_preserving,
    # Columns as rows: two rows are alike in distances and angles whatever they are.
    "mutual_distances": lambda s, t: losses.mutual_distances(s.T, t.T),
    "mutual_angles": lambda s, t: losses.mutual_angles(s.T, t.T),
    "hierarchical_context": lambda s, t: losses.hierarchical_context(
        s.reshape(1, 1, 2, 3), t.reshape(1, 1, 2, 3)
    ),
    "embedding": lambda s, t: losses.embedding(s, t, t[:, 0]).square()[:, 0].sum(),
    "bank_scores": lambda s, t: losses.bank_scores(s, t, torch.tensor([[0, 1], [1, 0]]), 2.0).sum(),
    "bank_products": lambda s, t: losses.bank_products(s, t, torch.tensor([[0, 1], [1, 0]])).sum(),
    "row_products": lambda s, t: losses.row_products(s, t.expand(len(s), *t.shape)).sum(),
    "noise_contrastive": lambda s, t: losses.noise_contrastive(s.abs(), 3),
}
ROOMS = ("logits", "features", "maps", "geometry", "review", "contrast")


def test_every_loss_of_these_files_is_listed_here():
    rooms = {f"kdcompress.methods.losses.{room}" for room in ROOMS}
    public = {n for n, v in vars(losses).items() if hasattr(v, "__wrapped__") and v.__module__ in rooms}
    assert public == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_a_loss_is_computed_in_float32_or_wider_whatever_it_is_given(name, given, computed):
    student, teacher = logits(A, given), logits(B, given)
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name](student, teacher)
    assert loss.dtype == computed
    # Bit for bit: bf16 arithmetic would miss by 1e-3.
    assert torch.equal(loss, LOSSES[name](student.to(computed), teacher.to(computed)))
    loss.backward()
    assert student.grad.dtype == given
