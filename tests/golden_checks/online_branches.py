"""Branches of one network: gated and attentive mixtures, an average of the whole network."""

from __future__ import annotations

import torch

from golden_checks.method import gradients, method
from kdcompress.methods.online.one import Gate


def numbered(z, prefix):
    """Tensors `PREFIX0`, `PREFIX1`, ..., with gradients."""
    count = sum(name.startswith(prefix) and name[len(prefix) :].isdigit() for name in z.names)
    return [z.tensor(f"{prefix}{i}").requires_grad_() for i in range(count)]


def scalar(value, dtype):
    return torch.tensor(value, dtype=dtype)


def gate_of(z, dtype):
    weight = z.tensor("in_gate_W")
    gate = Gate(weight.shape[1], weight.shape[0]).to(dtype)
    gate.linear.weight.data, gate.linear.bias.data = weight, z.tensor("in_gate_b")
    gate.norm.weight.data, gate.norm.bias.data = z.tensor("in_gate_bn_weight"), z.tensor("in_gate_bn_bias")
    return gate


def one(z, dtype, compare):
    labels, logits = z.tensor("in_labels"), numbered(z, "in_logits")
    names = ["student", *(f"peer{i}" for i in range(1, len(logits)))]
    made = method(
        "one", logits[0].shape[1], peers=len(logits) - 1,
        temperature=z.number("hp_T"), shift=z.number("hp_kl_eps"), ramp_epochs=z.number("hp_rampup_length"),
    )  # fmt: skip
    features, gate = z.tensor("in_gate_feat").requires_grad_(), gate_of(z, dtype)
    weights = gate(features)
    compare("out_gate", weights)
    compare("out_ensemble_logits", made.ensemble(logits, weights))
    compare("out_bn_running_mean", gate.norm.running_mean)
    compare("out_bn_running_var", gate.norm.running_var)
    made.on_epoch_start(10**6, 10**6)
    terms = made.terms(logits, weights, labels)
    compare("out_ce_ens", terms["ce_ensemble"])
    compare("out_ce_sum", terms["ce_ensemble"] + sum(terms[f"ce_{name}"] for name in names))
    for i, name in enumerate(names):
        compare(f"out_ce_{i}", terms[f"ce_{name}"])
        compare(f"out_kl{i}", terms[f"mimicry_{name}"])
    inputs = {
        "gate_feat": features, "gate_W": gate.linear.weight, "gate_b": gate.linear.bias,
        "gate_bn_weight": gate.norm.weight, "gate_bn_bias": gate.norm.bias,
        **{f"logits{i}": own for i, own in enumerate(logits)},
    }  # fmt: skip
    for key in [name for name in z.names if name.startswith("out_rampup_epoch")]:
        epoch = key.removeprefix("out_rampup_epoch")
        made.on_epoch_start(int(epoch), 300)
        compare(key, scalar(made.ramp(), dtype))
        total = sum(made.terms(logits, weights, labels).values())
        compare(f"out_total_epoch{epoch}", total)
        for name, grad in zip(inputs, gradients(total, list(inputs.values())), strict=True):
            stored = f"grad_total_epoch{epoch}_wrt_{name}"
            if stored not in z.names:
                continue
            if name == "gate_b":  # before batch norm a bias has no gradient but rounding
                assert (grad - z.tensor(stored)).abs().max() < 1e3 * torch.finfo(dtype).eps
            else:
                compare(stored, grad)


def one_okddip_repo_variants(z, dtype, compare):
    labels, logits = z.tensor("in_labels"), numbered(z, "in_logits")
    arguments = {"peers": len(logits) - 1, "ramp_epochs": 0.0}
    undetached = method("one", logits[0].shape[1], detach=False, **arguments)
    total = sum(undetached.terms(logits, z.tensor("in_gate"), labels).values())
    compare("out_one_undetached_total_w1", total)
    for i, grad in enumerate(gradients(total, logits)):
        compare(f"grad_one_undetached_wrt_logits{i}", grad)


CHECKS = {"one": one, "one_okddip_repo_variants": one_okddip_repo_variants}
