from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from small_training import Small


def by_hand(method, views):
    """The loss of the paper's pseudo-code, from the student's and the heads' outputs."""
    z = [method.projector(method.networks.student(view, frozenset({"pooled"})).pooled) for view in views]
    p = [method.predictor(each) for each in z]

    def distance(predicted, target):
        target = target.detach()
        return -(F.normalize(predicted, dim=1) * F.normalize(target, dim=1)).sum(1).mean()

    return distance(p[0], z[1]) / 2 + distance(p[1], z[0]) / 2


def test_the_loss_is_that_of_the_papers_pseudo_code(tmp_path):
    small = Small(tmp_path, "simsiam", float64=True)
    batch = next(small.loader.epoch(0))
    loss = small.method.losses(batch)["agreement"]
    expected = by_hand(small.method, [view.images for view in batch.views])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = [*small.student.network.parameters(), *small.method.parameters()]
    for got, want in zip(
        torch.autograd.grad(loss, parameters, allow_unused=True),
        torch.autograd.grad(expected, parameters, allow_unused=True),
        strict=True,
    ):
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_the_other_views_projection_is_a_constant(tmp_path):
    method = Small(tmp_path, "simsiam").method
    vectors = [torch.randn(4, 6, requires_grad=True) for _ in range(4)]
    method.agreement(vectors[:2], vectors[2:]).backward()
    assert all(vector.grad.abs().max() > 0 for vector in vectors[:2])
    assert all(vector.grad is None for vector in vectors[2:])


def test_the_predictors_rate_stays_as_it_begins(tmp_path):
    small = Small(tmp_path, "simsiam", optim={"schedule": "cosine"})
    rates, step = [], small.method.step

    def noted(batch, minimise):
        rates.append((minimise.rate("main"), minimise.rate("predictor")))
        step(batch, minimise)

    small.method.step = noted
    small.run()
    assert {predictor for _, predictor in rates} == {0.02}
    assert rates[-1][0] < 0.002


def test_a_backbone_ships_without_the_heads(tmp_path):
    small = Small(tmp_path, "simsiam")
    outcome = small.run()
    assert list(outcome.state) == list(small.student.network.state_dict())
    assert not any(key.startswith("fc.") for key in outcome.state)
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert -1 <= line["losses"]["agreement"] <= 1
