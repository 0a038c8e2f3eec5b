"""A network and its own deeper layers."""

from __future__ import annotations

import torch

from golden_checks.method import gradients, method
from kdcompress.methods import losses


def byot_journal(z, dtype, compare):
    labels = z.tensor("labels")
    heads = range(sum(name.startswith("logits_") for name in z.names))
    logits = [z.tensor(f"logits_{i}").requires_grad_() for i in heads]
    features = [z.tensor(f"feat_{i}").requires_grad_() for i in heads]
    adapters = {}
    for i in heads[1:]:
        adapters[i] = torch.nn.Linear(features[i].shape[1], features[0].shape[1], dtype=dtype)
        adapters[i].weight.data, adapters[i].bias.data = z.tensor(f"adapt_w_{i}"), z.tensor(f"adapt_b_{i}")
    temperature = z.number("T")
    byot = method(
        "byot",
        logits[0].shape[1],
        temperature=temperature,
        alpha=z.number("alpha"),
        hint_weight=z.number("lam"),
    )
    for i in heads:
        compare(f"ce_{i}", byot.cross_entropy(logits[i], labels))
    for i in heads[1:]:
        compare(f"softce_{i}", losses.soft_cross_entropy(logits[i], logits[0].detach(), temperature))
        compare(f"hint_l2_{i}", losses.euclidean(adapters[i](features[i]), features[0].detach()))
    total = sum(byot.terms(logits, features, [adapters[i] for i in heads[2:]], labels).values())
    compare("total", total)
    for i in heads:
        compare(f"grad_logits_{i}", gradients(total, [logits[i]])[0])
        compare(f"grad_feat_{i}", gradients(total, [features[i]])[0])
    for i in heads[1:]:
        compare(f"grad_adapt_w_{i}", gradients(total, [adapters[i].weight])[0])
        compare(f"grad_adapt_b_{i}", gradients(total, [adapters[i].bias])[0])


CHECKS = {"byot_journal": byot_journal}
