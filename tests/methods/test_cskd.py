from __future__ import annotations

import torch
from small_training import Small

from kdcompress.methods.losses import next_of_class


def test_the_partner_is_the_next_image_of_the_class_and_a_single_image_is_its_own():
    labels = torch.tensor([3, 1, 3, 2, 1, 3])
    assert next_of_class(labels).tolist() == [2, 4, 5, 3, 1, 0]


def test_images_that_agree_cost_nothing_and_batches_hold_pairs_of_a_class(tmp_path):
    method = Small(tmp_path, "cskd").method
    row = torch.randn(1, 4, dtype=torch.float64)
    assert method.terms(row, row)["class_wise"].item() == 0
    assert method.needs(method.config).order == "class_paired"


def test_the_partners_prediction_is_a_constant(tmp_path):
    small = Small(tmp_path, "cskd", float64=True)
    batch = next(small.loader.epoch(0))
    loss = small.method.losses(batch)["class_wise"]
    # Batch norm in training mode: equal batches give equal logits.
    logits = small.student(batch.images).logits
    target = logits.detach()[next_of_class(batch.labels)].div(4).softmax(1)
    divergence = (target * (target.log() - logits.div(4).log_softmax(1))).sum(1).mean()
    expected = 16 * divergence
    assert expected.item() > 0
    torch.testing.assert_close(loss, expected)
    parameters = list(small.student.network.parameters())
    for got, want in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-10)
