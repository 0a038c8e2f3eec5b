from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from small_training import Small
from torch import nn


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


def test_the_heads_are_those_of_the_paper(tmp_path):
    # Chen & He 2021, section 3: the projector has batch norm on all of its three layers, the output included
    # (their code: there without weights), and no ReLU behind the output; the predictor has two layers with a
    # hidden width of a quarter, and neither norm nor ReLU behind its output.
    method = Small(tmp_path, "simsiam", config={"width": 64}).method
    pooled = method.networks.student.shapes().pooled.shape[1]
    assert layers(method.projector) == [
        ("Linear", pooled, 64), ("BatchNorm1d", 64), "ReLU",
        ("Linear", 64, 64), ("BatchNorm1d", 64), "ReLU",
        ("Linear", 64, 64), ("BatchNorm1d without weights", 64),
    ]  # fmt: skip
    assert layers(method.predictor) == [
        ("Linear", 64, 16), ("BatchNorm1d", 16), "ReLU", ("Linear with bias", 16, 64)
    ]  # fmt: skip


def layers(head):
    """Type and widths of each layer of a head."""
    found = []
    for layer in head:
        name = type(layer).__name__
        if isinstance(layer, nn.Linear):
            bias = "" if layer.bias is None else " with bias"
            found.append((name + bias, layer.in_features, layer.out_features))
        elif isinstance(layer, nn.BatchNorm1d):
            found.append((name + ("" if layer.affine else " without weights"), layer.num_features))
        else:
            found.append(name)
    return found


def test_the_projections_are_as_wide_as_published_unless_the_features_are_few(tmp_path):
    assert Small(tmp_path / "few", "simsiam").method.projector[0].out_features == 4 * 64
    many = Small(tmp_path / "many", "simsiam", student="torchvision/mobilenet_v3_small").method
    assert many.projector[0].out_features == 2048
    assert many.predictor[0].out_features == 512


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
