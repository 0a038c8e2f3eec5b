"""Peers among each other, on logits."""

from __future__ import annotations

import itertools

from golden_checks.method import gradients, method


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


CHECKS = {"dml": dml}
