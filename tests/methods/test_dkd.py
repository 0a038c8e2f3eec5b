from __future__ import annotations

import pytest
import torch
from small_training import Small

from kdcompress.methods import losses
from kdcompress.methods.offline.dkd import DKD


def pair(rows=6, classes=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    drawn = 3 * torch.randn(2, rows, classes, generator=generator, dtype=dtype)
    return drawn[0].requires_grad_(), drawn[1], torch.arange(rows) % classes


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_parts_make_up_kd_when_nckd_is_weighted_by_the_teachers_doubt(temperature):
    student, teacher, labels = pair()
    doubt = 1 - (teacher / temperature).softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
    rows = range(len(labels))
    nckd = [losses.nckd(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1], temperature) for i in rows]
    # Equation 6 of the paper, row by row.
    total = losses.tckd(student, teacher, labels, temperature) + (doubt * torch.stack(nckd)).mean()
    assert total.item() == pytest.approx(losses.kl(student, teacher, temperature).item())


def test_tckd_sees_the_labelled_class_alone_and_nckd_the_others_alone():
    student, teacher, labels = pair()
    target = torch.nn.functional.one_hot(labels, 5).double()
    raised = teacher + 2 * target
    assert losses.nckd(raised, teacher, labels, 2.0).item() == pytest.approx(0, abs=1e-12)
    assert losses.tckd(raised, teacher, labels, 2.0).item() > 0.01
    losses.nckd(student, teacher, labels, 2.0).backward()
    assert not student.grad[target.bool()].any()
    # Whatever the others' order: their sum stays.
    others = teacher.detach().clone()
    others[0, 1:] = others[0, 1:].flip(0)
    assert losses.tckd(others[:1], teacher[:1], labels[:1], 1.0).item() == pytest.approx(0, abs=1e-12)
    assert losses.nckd(others[:1], teacher[:1], labels[:1], 1.0).item() > 0.01


def test_with_two_classes_nothing_is_left_for_nckd_and_tckd_is_kd():
    student, teacher, labels = pair(classes=2)
    assert losses.nckd(student, teacher, labels, 3.0).item() == 0
    got = losses.tckd(student, teacher, labels, 3.0).item()
    assert got == pytest.approx(losses.kl(student, teacher, 3.0).item())


def test_rows_without_a_label_contribute_nothing():
    student, teacher, labels = pair()
    half = labels.clone()
    half[::2] = -1
    for loss in (losses.tckd, losses.nckd):
        got = loss(student, teacher, half, 2.0)
        assert got.item() == pytest.approx(loss(student[1::2], teacher[1::2], labels[1::2], 2.0).item())
        gradient = torch.autograd.grad(got, student)[0]
        assert not gradient[::2].any()
        assert loss(student, teacher, torch.full_like(labels, -1), 2.0).item() == 0


@pytest.mark.parametrize("loss", [losses.tckd, losses.nckd])
def test_saturated_logits_give_finite_values_and_gradients_even_of_a_temperature(loss):
    far = torch.tensor([[400.0, -400.0, 0.0]], requires_grad=True)
    temperature = torch.tensor(1.0, requires_grad=True)
    for label in (0, 1):
        got = loss(far, -far.detach(), torch.tensor([label]), temperature)
        assert got.isfinite()
        for gradient in torch.autograd.grad(got, [far, temperature]):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", [losses.tckd, losses.nckd])
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16])
def test_the_parts_are_computed_in_float32_whatever_they_are_given(loss, given):
    student, teacher, labels = pair(dtype=torch.float32)
    student, teacher = student.detach().to(given), teacher.to(given)
    with torch.autocast("cpu", torch.bfloat16):
        got = loss(student, teacher, labels, 2.0)
    assert got.dtype == torch.float32
    assert torch.equal(got, loss(student.float(), teacher.float(), labels, 2.0))


def test_the_distillation_terms_warm_up_from_the_first_epoch_and_the_cross_entropy_does_not(tmp_path):
    dkd = Small(tmp_path, "dkd", config={"warmup_epochs": 4}).method
    logits = [x.detach().float() for x in pair(classes=4)[:2]]
    labels = torch.arange(6) % 4
    dkd.epoch = 9
    full = dkd.terms(*logits, labels)
    for epoch, share in ((0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0)):
        dkd.on_epoch_start(epoch, 10)
        terms = dkd.terms(*logits, labels)
        assert terms["tckd"].item() == pytest.approx(share * full["tckd"].item())
        assert terms["nckd"].item() == pytest.approx(share * full["nckd"].item())
        assert terms["ce"].item() == full["ce"].item()
    assert Small(tmp_path / "none", "dkd", config={"warmup_epochs": 0}).method.ramp() == 1


@pytest.mark.parametrize(
    ("epochs", "shares"), [(240, [1 / 20, 2 / 20, 3 / 20]), (24, [0.5, 1, 1]), (5, [1, 1])]
)
def test_the_default_warm_up_is_the_published_share_of_the_run(tmp_path, epochs, shares):
    dkd = Small(tmp_path, "dkd").method
    got = []
    for epoch in range(len(shares)):
        dkd.on_epoch_start(epoch, epochs)
        got.append(dkd.ramp())
    assert got == pytest.approx(shares)


def test_terms_have_the_weights_of_the_config(tmp_path):
    config = {"temperature": 2.0, "ce_weight": 0.5, "alpha": 3.0, "beta": 0.25, "warmup_epochs": 0}
    dkd = Small(tmp_path, "dkd", config=config).method
    student, teacher, labels = pair(classes=4)
    terms = dkd.terms(student, teacher, labels)
    assert terms["ce"].item() == pytest.approx(0.5 * losses.cross_entropy(student, labels).item())
    assert terms["tckd"].item() == pytest.approx(3 * losses.tckd(student, teacher, labels, 2.0).item())
    assert terms["nckd"].item() == pytest.approx(0.25 * losses.nckd(student, teacher, labels, 2.0).item())


def test_labels_are_always_needed():
    assert DKD.needs(DKD.Config(ce_weight=0.0)).labels
