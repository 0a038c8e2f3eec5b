"""Branches of one network: gated and attentive mixtures, an average of the whole network."""

from __future__ import annotations

import math

import torch

from golden_checks.method import gradients, method
from kdcompress.methods.moving_average import MovingAverage
from kdcompress.methods.online.okddip import Attention
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
    gate.linear.weight.data = weight
    # The method's gate has none; the authors' has one, which only the running mean knows.
    gate.linear.bias = torch.nn.Parameter(z.tensor("in_gate_b"))
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
                compare(stored, grad, limit=1e3 * torch.finfo(dtype).eps)
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
    clilr = method("okddip", logits[0].shape[1], leader=False, target="mean_of_others", **arguments)
    total = sum(clilr.terms(logits, None, labels).values())
    compare("out_clilr_total_w1", total)
    for i, grad in enumerate(gradients(total, logits)):
        compare(f"grad_clilr_wrt_logits{i}", grad)


def okddip(z, dtype, compare):
    labels, logits = z.tensor("in_labels"), numbered(z, "in_logits")
    features = numbered(z, "in_feat")
    count, classes = len(logits), logits[0].shape[1]
    arguments = {
        "peers": count - 1, "ramp_epochs": 0.0,
        "temperature": z.number("hp_T"), "shift": z.number("hp_kl_eps"),
    }  # fmt: skip
    factor, alpha = z.number("hp_factor"), z.number("hp_alpha")
    attention = Attention(features[0].shape[1], factor).to(dtype)
    attention.query.weight.data, attention.key.weight.data = z.tensor("in_Wq"), z.tensor("in_Wk")
    maps = {"Wq": attention.query.weight, "Wk": attention.key.weight}

    # The file counts the leader last, the method first.
    peers, leader = logits[:-1], logits[-1]
    names = ["leader", *(f"peer{i}" for i in range(1, count))]
    made = method("okddip", classes, weight=alpha, **arguments)
    between, stack = attention(torch.stack(features[:-1], 1)), torch.stack(peers, 1)
    terms = made.terms([leader, *peers], between, labels)
    compare("out_attention", between)
    compare("out_peer_logits_stack", stack.transpose(1, 2))
    compare("out_agg_logits", made.targets(stack, between).transpose(1, 2))
    compare("out_leader_logits", leader)
    compare("out_ce_leader", terms["ce_leader"])
    compare("out_kl_leader", terms["mimicry_leader"])
    compare("out_ce_peers", sum(terms[f"ce_{name}"] for name in names[1:]))
    compare("out_kl_peers", sum(terms[f"mimicry_{name}"] for name in names[1:]))
    for i, name in enumerate(names[1:]):
        compare(f"out_kl_peer{i}", terms[f"mimicry_{name}"])
    inputs = {
        **maps,
        **{f"feat{i}": own for i, own in enumerate(features)},
        **{f"logits{i}": own for i, own in enumerate(logits)},
    }

    def compare_gradients(total, prefix):
        for name, grad in zip(inputs, gradients(total, list(inputs.values())), strict=True):
            if f"{prefix}_{name}" in z.names:
                compare(f"{prefix}_{name}", grad)

    for key in [name for name in z.names if name.startswith("out_total_w")]:
        weight = key.removeprefix("out_total_w")
        made = method("okddip", classes, weight=alpha * float(weight), **arguments)
        total = sum(made.terms([leader, *peers], between, labels).values())
        compare(key, total)
        compare_gradients(total, f"grad_total_w{weight}_wrt")
    made = method("okddip", classes, weight=alpha, detach=True, **arguments)
    total = sum(made.terms([leader, *peers], between, labels).values())
    compare("out_total_w1", total)
    compare_gradients(total, "grad_total_w1_detached_wrt")

    made = method("okddip", classes, leader=False, weight=alpha, **arguments)
    between, stack = attention(torch.stack(features, 1)), torch.stack(logits, 1)
    compare("out_en_agg_logits", made.targets(stack, between).transpose(1, 2))
    total = sum(made.terms(logits, between, labels).values())
    compare("out_en_total_w1", total)
    compare_gradients(total, "grad_en_total_wrt")


def pcl_reproduction(z, dtype, compare):
    labels, logits = z.tensor("in_labels"), numbered(z, "in_logits")
    averaged = [own.detach() for own in numbered(z, "in_mean_logits")]
    ensemble = z.tensor("in_ens_logits").requires_grad_()
    made = method(
        "pcl", ensemble.shape[1], peers=len(logits) - 1, temperature=z.number("hp_T"), ramp_epochs=80.0
    )
    names = ["student", *(f"peer{i}" for i in range(1, len(logits)))]
    made.on_epoch_start(10**6, 10**6)
    terms = made.terms(logits, ensemble, averaged, labels)
    compare("out_ce_ens", terms["ce_ensemble"])
    for i, name in enumerate(names):
        own = [terms[f"{term}_{name}"] for term in ("ce", "ensemble", "average")]
        for part, term in zip(("ce", "pe", "pm"), own, strict=True):
            compare(f"out_{part}{i}", term)
        compare(f"out_peer{i}_loss", sum(own))
    supervised = sum(term for key, term in terms.items() if key.startswith("ce_"))
    distilled = sum(terms.values()) - supervised
    for key in [name for name in z.names if name.endswith("_intended")]:
        epoch = int(key.removeprefix("out_rampup_epoch").removesuffix("_intended"))
        made.on_epoch_start(epoch, 300)
        compare(key, scalar(made.ramp(), dtype))
        # The reproduction divides by 1 instead of 80 within its ramp: repeated here, and nowhere else.
        slip = math.exp(-5 * (1 - epoch) ** 2) if epoch < 81 else 1.0
        compare(f"out_rampup_epoch{epoch}_as_published", scalar(slip, dtype))
        compare(f"out_total_epoch{epoch}_as_published", supervised + slip * distilled)
    inputs = {f"logits{i}": own for i, own in enumerate(logits)} | {"ens_logits": ensemble}
    for key in [name for name in z.names if name.startswith("grad_total_epoch")]:
        epoch, name = key.removeprefix("grad_total_epoch").split("_wrt_")
        made.on_epoch_start(int(epoch), 300)
        total = sum(made.terms(logits, ensemble, averaged, labels).values())
        compare(f"out_total_epoch{epoch}_as_published", total)
        compare(key, gradients(total, [inputs[name]])[0])
    steps = z.tensor("in_ema_params_per_step")
    average, moving = torch.zeros_like(steps[0]), MovingAverage(z.number("hp_ema_decay"))
    rows = []
    for values in steps:
        moving.update([average], [values])
        rows.append(average.clone())
    compare("out_ema_params_per_step", torch.stack(rows))


CHECKS = {
    "okddip": okddip,
    "one": one,
    "one_okddip_repo_variants": one_okddip_repo_variants,
    "pcl_reproduction": pcl_reproduction,
}
