from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small_training import CLASSES, Small

from kdcompress.methods import losses
from kdcompress.methods.offline.crd import CRD


def made(folder, **config):
    return Small(folder, "crd", config={"negatives": 500, **config}).method


def test_negatives_are_drawn_evenly_from_all_images_of_the_other_classes(tmp_path):
    method = made(tmp_path, negatives=20)
    indices = torch.tensor([0, 5, 39])
    drawn = []
    for _ in range(1000):
        columns = method.columns(indices)
        assert torch.equal(columns[:, 0], indices)
        drawn.append(columns[:, 1:])
        method.after_step(None)
    columns = torch.cat([indices.unsqueeze(1), *drawn], 1)
    for index, drawn in zip(indices, columns[:, 1:], strict=True):
        counts = drawn.bincount(minlength=40)
        own = method.draws.labels == method.draws.labels[index]
        assert not counts[own].any()
        expected = 20_000 / (~own).sum()
        # Six standard deviations.
        assert (counts[~own] - expected).abs().max() < 6 * math.sqrt(expected)


@pytest.mark.parametrize(("wanted", "drawn"), [(6, 6), (30, 30), (500, 30)])
def test_a_row_has_no_more_negatives_than_there_are_images_of_other_classes(tmp_path, wanted, drawn):
    method = made(tmp_path, negatives=wanted)  # 40 images of 4 classes
    assert method.draws.negatives == drawn
    assert method.columns(torch.arange(8)).shape == (8, 1 + drawn)


def test_the_largest_class_bounds_the_negatives_of_all_rows(tmp_path):
    small = Small(tmp_path, "crd")
    data = replace(small.method.data, labels=torch.tensor([0] * 8 + [1, 2]))
    uneven = CRD(CRD.Config(), small.method.networks, data)
    assert uneven.draws.negatives == 2
    columns = uneven.columns(torch.arange(10))[:, 1:]
    assert (uneven.draws.labels[columns] != uneven.draws.labels.unsqueeze(1)).all()


def test_at_the_start_the_term_is_what_the_docstring_says(tmp_path):
    small = Small(tmp_path, "crd", count=400, config={"weight": 0.8}, data={"num_classes": 4})
    assert small.method.draws.negatives == 300
    got = small.method.losses(next(small.loader.epoch(0)))["contrast"].item()
    assert got == pytest.approx(2 * 0.8 * (math.log(300) + 1), rel=0.15)
    auto = Small(tmp_path / "auto", "crd", count=400, data={"num_classes": 4})
    begins = auto.method.losses(next(auto.loader.epoch(0)))["contrast"].item()
    assert begins == pytest.approx(2, rel=0.15)


def test_columns_are_determined_by_seed_step_and_image_whoever_draws_them(tmp_path):
    method = made(tmp_path)
    indices = torch.tensor([3, 17, 8, 30])
    together = method.columns(indices)
    apart = torch.cat([method.columns(indices[2:]), method.columns(indices[:2])])
    assert torch.equal(together, apart.roll(2, 0))
    assert torch.equal(together, made(tmp_path).columns(indices))
    assert not torch.equal(together[0], together[1])
    method.after_step(None)
    assert not torch.equal(method.columns(indices), together)
    method.draws.steps -= 1
    method.draws.seed += 1 << 40
    assert not torch.equal(method.columns(indices), together)


def test_a_relaxed_positive_is_any_image_of_the_class(tmp_path):
    method = made(tmp_path, positive="relax", negatives=1)
    indices = torch.arange(40)
    seen = []
    for _ in range(100):
        positives = method.columns(indices)[:, 0]
        assert torch.equal(method.draws.labels[positives], method.draws.labels[indices])
        seen.append(positives[0].item())
        method.after_step(None)
    assert set(seen) == set(range(0, 40, CLASSES))


def test_the_loss_is_one_decision_per_column():
    scores = torch.tensor([[0.5, 0.25, 2.0], [1.5, 0.1, 0.2]], dtype=torch.float64)
    noise = 2 / 40
    expected = 0.0
    for positive, *negatives in scores.tolist():
        expected -= math.log(positive / (positive + noise + 1e-7))
        expected -= sum(math.log(noise / (p + noise + 1e-7)) for p in negatives)
    assert losses.noise_contrastive(scores, 40).item() == pytest.approx(expected / 2)


@pytest.mark.parametrize("columns", [3, 30])
def test_scores_are_the_same_whether_the_bank_is_read_whole_or_by_row(columns):
    torch.manual_seed(0)
    embedding, bank = torch.randn(4, 5, requires_grad=True), torch.randn(40, 5)
    # 40 rows against 3 · 5 and 30 · 5 numbers: one of each kind; the wanted rows come several times.
    wanted = torch.randint(40, (4, columns))
    scores = losses.bank_scores(embedding, bank, wanted, 2.0)
    expected = ((embedding.unsqueeze(1) * bank[wanted]).sum(2) / 2).exp()
    torch.testing.assert_close(scores, expected)
    gradients = [torch.autograd.grad(s.sum(), embedding)[0] for s in (scores, expected)]
    torch.testing.assert_close(*gradients)


def test_the_first_batch_sets_the_normalisation_for_good(tmp_path):
    small = Small(tmp_path, "crd", config={"negatives": 20})
    method = small.method
    assert not method.normalisation.any()
    ours, theirs = torch.randn(8, 64), torch.randn(8, 64)
    columns = method.columns(torch.arange(8))
    scores = method.scores(*method.embeddings(ours, theirs), columns)
    first = method.normalisation.clone()
    # Divided by their mean times the number of images.
    assert [side.mean().item() for side in scores] == pytest.approx([1 / 40, 1 / 40])
    method.scores(*method.embeddings(theirs, ours), columns)
    assert torch.equal(method.normalisation, first)
    again = Small(tmp_path, "crd", config={"negatives": 20}).method
    again.load_state_dict(method.state_dict())
    again.on_epoch_start(1, 2)
    again.scores(*again.embeddings(theirs, ours), columns)
    assert torch.equal(again.normalisation, first)


def test_banks_remember_every_batch_of_a_step_once_it_is_done(tmp_path):
    method = made(tmp_path, momentum=0.25)
    before = method.bank_student.clone(), method.bank_teacher.clone()
    embedded = []
    for start in (0, 8):
        indices = torch.arange(start, start + 8)
        ours, theirs = torch.randn(8, 64), torch.randn(8, 64)
        embedded.append(method.embeddings(ours, theirs))
        method.contrast(ours, theirs, indices, method.columns(indices))
    assert torch.equal(method.bank_student, before[0])
    method.after_step(None)
    for bank, was, new in zip(
        (method.bank_student, method.bank_teacher), before, zip(*embedded, strict=True), strict=True
    ):
        mixed = 0.25 * was[:16] + 0.75 * torch.cat(new)
        torch.testing.assert_close(bank[:16], mixed / mixed.norm(dim=1, keepdim=True))
        assert torch.equal(bank[16:], was[16:])
    assert method.draws.steps == 1
    method.after_step(None)
    assert method.draws.steps == 2


def test_banks_counter_and_normalisation_are_part_of_the_checkpoint_and_what_follows_from_labels_is_not(
    tmp_path,
):
    kept = {key for key in made(tmp_path).state_dict() if not key.startswith("embed_")}
    assert kept == {"bank_student", "bank_teacher", "normalisation", "draws.seed", "draws.steps"}


def test_a_step_moves_both_embeddings_and_nothing_of_the_teacher(tmp_path):
    method = made(tmp_path)
    ours, theirs = torch.randn(8, 64, requires_grad=True), torch.randn(8, 64)
    indices = torch.arange(8)
    method.contrast(ours, theirs, indices, method.columns(indices)).backward()
    for module in (method.embed_student, method.embed_teacher):
        assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    assert ours.grad.abs().sum() > 0


def test_labels_are_needed_whatever_the_weight_of_the_cross_entropy():
    needs = CRD.needs(CRD.Config(ce_weight=0.0, kd_weight=1.0))
    assert needs.labels
    assert needs.read_of_teacher == {"logits", "pooled"}
