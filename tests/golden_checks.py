"""How each golden file is checked: through the functions and classes that training uses.

A check is given the file's arrays, the number format and `compare(name, got)`, which compares with the stored
array at the file's tolerance. Nothing assumes how many rows or classes a file has.
"""

from __future__ import annotations

import itertools
import types

import torch

from kdcompress.data.batch import DataInfo
from kdcompress.methods import losses
from kdcompress.methods.base import find_method


def method(name, num_classes, *, peers=0, label_smoothing=0.0, **config):
    """A method with its Config, beside networks that nobody runs: golden files give the outputs
    themselves."""
    cls = find_method(name)
    info = DataInfo(
        num_classes, torch.zeros(0, dtype=torch.int64), (8, 8), 1, label_smoothing=label_smoothing
    )
    made = cls.__new__(cls)
    networks = types.SimpleNamespace(student=None, teacher=None, peers=(None,) * peers)
    super(cls, made).__init__(cls.Config(**config), networks, info)
    return made


def gradients(total, inputs):
    """d(total)/d(input), zeros where nothing flows."""
    found = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def kd_T4(z, dtype, compare):
    student = z.tensor("logits_s").requires_grad_()
    teacher = z.tensor("logits_t")
    for suffix, temperature in (("", z.number("hp_T")), ("_T1", 1.0), ("_T2", 2.0)):
        loss = losses.kl(student, teacher, temperature)
        compare(f"loss{suffix}", loss)
        compare(f"grad_logits_s{suffix}", gradients(loss, [student])[0])
    kd = method(
        "kd",
        student.shape[1],
        temperature=z.number("hp_T"),
        ce_weight=z.number("hp_gamma_ce"),
        kd_weight=z.number("hp_alpha_kd"),
    )
    target = z.tensor("target")
    compare("loss_ce", kd.cross_entropy(student, target))
    terms = kd.terms(student, teacher, target)
    compare("loss_total", sum(terms.values()))
    compare("grad_logits_s_total", gradients(sum(terms.values()), [student])[0])


def dml(z, dtype, compare):
    labels = z.tensor("in_labels")
    names = sorted(key for key in z.names if key.startswith("in_logits"))
    logits = [z.tensor(name).requires_grad_() for name in names]
    classes, count = logits[0].shape[1], len(logits)
    guard = {"guard": 1e-8}
    for smoothing in (0.0, 0.1):
        plain = method("dml", classes, label_smoothing=smoothing)
        for i, own in enumerate(logits):
            compare(f"out_ce{i}_ls{smoothing}", plain.cross_entropy(own, labels))
    for (form, config), (i, j) in itertools.product(
        {"tf": guard, "exact": {}}.items(), itertools.permutations(range(count), 2)
    ):
        loss = method("dml", classes, **config).mimicry([logits[i], logits[j]], 0)
        compare(f"out_kl_{form}_{i}from{j}", loss)
        compare(f"grad_kl_{form}_{i}from{j}_wrt_logits{i}", gradients(loss, [logits[i]])[0])
    later = {"temperature": z.number("hp_T_okd_mclokd"), "over_peers": "mean"}
    joint = {
        "okd_dml_pairwise": {**later, "shift": 1e-7, "detach": False},
        "okd_dml_ensfirst": {**later, "shift": 1e-7, "detach": False, "target": "mean_logits"},
        "mclokd_dml": later,
    }
    for k in range(2, count + 1):
        some = logits[:k]
        for form, config in {"tf": guard, "paper": {"over_peers": "mean"}}.items():
            made = method("dml", classes, **config)
            for i in range(k):
                loss = made.cross_entropy(some[i], labels) + made.mimicry(some, i)
                compare(f"out_net_loss_{form}_K{k}_{i}", loss)
                compare(f"grad_net_loss_{form}_K{k}_{i}_wrt_logits{i}", gradients(loss, [some[i]])[0])
        for form, config in joint.items():
            made = method("dml", classes, **config)
            loss = sum(made.cross_entropy(some[i], labels) + made.mimicry(some, i) for i in range(k))
            compare(f"out_{form}_K{k}", loss)
            for i, grad in enumerate(gradients(loss, some)):
                compare(f"grad_{form}_K{k}_wrt_logits{i}", grad)


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


CHECKS = {"kd_T4": kd_T4, "dml": dml, "byot_journal": byot_journal}
