from __future__ import annotations

import torch
from small_training import Small

from kdcompress.methods import losses


def test_views_that_are_predicted_alike_cost_cross_entropy_alone(tmp_path):
    method = Small(tmp_path, "ddgsd").method
    logits, labels = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    features = torch.randn(4, 6, dtype=torch.float64)
    terms = method.terms(logits, logits, (features, features), labels)
    assert terms["agreement"].item() == terms["features"].item() == 0
    # The sum over both views.
    torch.testing.assert_close(terms["ce"], 2 * losses.cross_entropy(logits, labels))


def test_both_views_of_a_batch_are_read(tmp_path):
    small = Small(tmp_path, "ddgsd", float64=True)
    batch = next(small.loader.epoch(0))
    assert len(batch.views) == 2
    assert small.method.losses(batch)["agreement"].item() > 0


def test_the_distance_is_between_means_over_the_batch():
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    assert losses.mean_difference(a, b).item() == 1.0**2 + 2.0**2
    assert losses.mean_difference(a, b, over="all").item() == 1.5**2
