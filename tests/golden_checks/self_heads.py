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


def heads_of(z):
    """Labels, and the logits of all heads, deepest first."""
    heads = range(sum(name.startswith("logits_") for name in z.names))
    return z.tensor("labels"), [z.tensor(f"logits_{i}").requires_grad_() for i in heads]


def byot_selfkdlib(z, dtype, compare):
    labels, logits = heads_of(z)
    maps = [z.tensor(f"fmap_{i}").requires_grad_() for i in range(len(logits))]
    # The weight of the hint is in the README alone.
    byot = method(
        "byot", logits[0].shape[1], temperature=z.number("T"), alpha=1.0, ce_weight=1.0, soft="kl",
        squared_factor=True, hint="mean_squared", hint_weight=0.05, hint_reads="map", hinted="all",
        adapters=False,
    )  # fmt: skip
    terms = byot.terms(logits, maps, [torch.nn.Identity()] * (len(maps) - 1), labels)
    compare("loss_cls", terms["ce"] + terms["ce_heads"])
    compare("kl_sum", terms["soft"])
    compare("hint_sum", terms["hint"])
    compare("loss_div", terms["soft"] + terms["hint"])
    total = sum(terms.values())
    compare("total", total)
    for i, (rows, features) in enumerate(zip(logits, maps, strict=True)):
        compare(f"grad_logits_{i}", gradients(total, [rows])[0])
        compare(f"grad_fmap_{i}", gradients(total, [features])[0])


def byot_luanyunteng(z, dtype, compare):
    labels, logits = heads_of(z)
    features = [z.tensor(f"feat_{i}").requires_grad_() for i in range(len(logits))]
    temperature, alpha = z.number("T"), z.number("alpha")
    settings = {
        "temperature": temperature, "alpha": alpha, "deepest_ce_weight": 1 - alpha, "squared_factor": True,
        "hint": "active_sum", "hint_weight": z.number("beta"), "hinted": "all", "adapters": False,
    }  # fmt: skip
    byot = method("byot", logits[0].shape[1], **settings)
    for i in range(1, len(logits)):
        compare(f"kd_{i}", byot.soft_term(logits[i], logits[0].detach()))
        compare(f"feat_loss_{i}", losses.active_squared_sum(features[i], features[0].detach()))
    terms = byot.terms(logits, features, [torch.nn.Identity()] * (len(logits) - 1), labels)
    total = sum(terms.values())
    compare("total", total)
    for i, (rows, vectors) in enumerate(zip(logits, features, strict=True)):
        compare(f"grad_logits_{i}", gradients(total, [rows])[0])
        compare(f"grad_feat_{i}", gradients(total, [vectors])[0])


CHECKS = {
    "byot_journal": byot_journal,
    "byot_luanyunteng": byot_luanyunteng,
    "byot_selfkdlib": byot_selfkdlib,
}
