from __future__ import annotations

import math

import pytest
import torch
from small_training import Small

from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.offline.mlkd import MLKD, Projections


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rotations_stand_image_by_image_and_turn_counter_clockwise():
    images = torch.arange(8.0).reshape(2, 1, 2, 2)
    got = losses.four_rotations(images)
    assert got.shape == (8, 1, 2, 2)
    assert torch.equal(got[0::4], images)
    assert got[1, 0].tolist() == [[1, 3], [0, 2]]
    assert got[6, 0].tolist() == [[7, 6], [5, 4]]


def test_alignment_is_0_when_equal_and_the_cosine_form_ignores_lengths():
    a, b = rows(5, 3), rows(5, 3, seed=1)
    assert losses.cosine_alignment(a, 4 * a).item() == pytest.approx(0, abs=1e-12)
    assert losses.cosine_alignment(a, -a).item() == pytest.approx(4)
    assert losses.squared_alignment(a, a).item() == 0
    by_hand = sum((x - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)) / 5
    assert losses.squared_alignment(a, b).item() == pytest.approx(by_hand)


def test_relations_are_compared_and_not_features():
    a, b = rows(6, 3), rows(2, 3, seed=1)
    turn = torch.linalg.qr(rows(3, 3, seed=2))[0]
    assert losses.relation_kl(a @ turn, b @ turn, 3 * a, 5 * b, 0.5).item() == pytest.approx(0, abs=1e-12)
    assert losses.relation_kl(a, b, a.flip(0), b, 0.5).item() > 0


@pytest.mark.parametrize("across", [False, True])
def test_the_contrast_is_its_definition_written_out(across):
    labels = [0, 1, 0]
    networks = [rows(3, 2).tolist(), rows(3, 2, seed=1).tolist()]
    unit = [[[x / math.hypot(*r) for x in r] for r in network] for network in networks]
    flat = [(n, labels[i], r) for n, network in enumerate(unit) for i, r in enumerate(network)]
    total = 0.0
    for i, (network, label, row) in enumerate(flat):
        compared = [x for j, x in enumerate(flat) if (x[0] != network if across else j != i)]
        scores = [math.exp(sum(a * b for a, b in zip(row, x[2], strict=True)) / 0.5) for x in compared]
        positives = [s for s, x in zip(scores, compared, strict=True) if x[1] == label]
        total -= sum(math.log(s / sum(scores)) for s in positives) / len(positives)
    got = losses.supervised_contrast(
        *(torch.tensor(n, dtype=torch.float64) for n in networks), torch.tensor(labels), 0.5, across=across
    )
    assert got.item() == pytest.approx(total / 6, rel=1e-6)


@pytest.mark.parametrize("across", [False, True])
def test_rows_without_a_label_are_neither_anchors_nor_compared_with(across):
    a, b = rows(5, 3), rows(5, 3, seed=1).requires_grad_()
    labels = torch.tensor([0, -1, 1, 0, -1])
    kept = labels >= 0
    got = losses.supervised_contrast(a, b, labels, 0.5, across=across)
    alone = losses.supervised_contrast(a[kept], b[kept], labels[kept], 0.5, across=across)
    assert got.item() == pytest.approx(alone.item(), rel=1e-6)
    none = losses.supervised_contrast(a, b, torch.full_like(labels, -1), 0.5, across=across)
    assert none.item() == 0
    assert not torch.autograd.grad(none, b)[0].any()


FUNCTIONS = {
    "cosine_alignment": losses.cosine_alignment,
    "squared_alignment": losses.squared_alignment,
    "relation_kl": lambda s, t: losses.relation_kl(s, s.flip(0), t, t.flip(0), 0.5),
    "supervised_contrast": lambda s, t: losses.supervised_contrast(s, t, torch.tensor([0, 1, 0, 1]), 0.07),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_precision_is_widened(name):
    student, teacher = rows(4, 3).bfloat16(), rows(4, 3, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = FUNCTIONS[name](student, teacher)
    assert got.dtype == torch.float32
    assert torch.equal(got, FUNCTIONS[name](student.float(), teacher.float()))


def test_the_networks_see_all_rotations_and_the_labels_only_the_upright_images(tmp_path):
    small = Small(tmp_path, "mlkd")
    batch = next(small.loader.epoch(0))
    terms = small.method.losses(batch)
    assert set(terms) == {"align", "corr", "sup", "ce", "kd"}
    logits, features = rows(8, 4).requires_grad_(), rows(8, 64, seed=1)
    small.method.projections.double()
    projected = small.method.projections(features, features)
    terms = small.method.terms(logits, projected, features, torch.tensor([0, 1]), logits.detach())
    terms["ce"].backward()
    assert logits.grad[0::4].any(dim=1).all()
    assert not logits.grad.reshape(2, 4, 4)[:, 1:].any()


def test_the_teacher_gets_no_gradient_but_its_projection_does(tmp_path):
    small = Small(tmp_path, "mlkd")
    terms = small.method.losses(next(small.loader.epoch(0)))
    sum(terms.values()).backward()
    assert small.method.projections.embed_teacher.weight.grad.any()
    assert all(p.grad is None for p in small.teacher.network.parameters())


def test_only_what_has_a_weight_is_made_and_without_labels_two_terms_are_left(tmp_path):
    config = {"ce_weight": 0.0, "sup_weight": 0.0, "kd_weight": 0.0}
    assert not MLKD.needs(MLKD.Config(**config)).labels
    assert MLKD.needs(MLKD.Config()).labels
    assert not MLKD.needs(MLKD.Config(**config)).task.has_classes
    assert MLKD.needs(MLKD.Config(**{**config, "kd_weight": 1.0})).task.has_classes
    small = Small(tmp_path, "mlkd", config=config, train={"epochs": 1})
    assert {name.split(".")[0] for name, _ in small.method.projections.named_parameters()} == {
        "align",
        "corr",
    }
    small.run()
    assert set(small.method.losses(next(small.loader.epoch(0)))) == {"align", "corr"}


def test_the_layers_have_the_widths_of_the_networks_and_of_the_config():
    made = Projections(MLKD.Config(expansion=3, embedding_width=7), 6, 5)
    assert [layer.weight.shape for layer in (made.align[0], made.align[3])] == [(15, 6), (5, 15)]
    assert [layer.weight.shape for layer in (made.corr[0], made.corr[3])] == [(6, 6), (6, 6)]
    assert made.embed_student.weight.shape == (7, 6)
    assert made.embed_teacher.weight.shape == (7, 5)


def test_images_that_are_not_square_are_refused(tmp_path):
    with pytest.raises(NetworkError, match=r"must be square, not 8x12; set data.image_size to one number"):
        Small(tmp_path, "mlkd", data={"image_size": (8, 12)})


def test_soft_labels_of_the_upright_images_can_be_added(tmp_path):
    small = Small(tmp_path, "mlkd", config={"kd_weight": 2.0, "temperature": 3.0})
    batch = next(small.loader.epoch(0))
    images = losses.turned_views([view.images for view in batch.views])
    small.trainer._train_mode(small.method.phases()[0])
    torch.manual_seed(0)
    got = small.method.losses(batch)["kd"]
    small.trainer._train_mode(small.method.phases()[0])
    student = small.student(images).logits[0::4]
    expected = 2 * losses.kl(student, small.frozen(images).logits[0::4], 3.0)
    torch.testing.assert_close(got, expected)
