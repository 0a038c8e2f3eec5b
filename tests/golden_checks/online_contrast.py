"""Networks contrast their embeddings by class: in a batch, and against banks."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from golden_checks.method import gradients, method
from kdcompress.methods.base import find_method
from kdcompress.methods.losses import unit_rows
from kdcompress.methods.memory import SampleMemory

WEIGHTS = {"vcl": "alpha_vcl", "soft_vcl": "gamma_soft_vcl", "icl": "beta_icl", "soft_icl": "lam_soft_icl"}


def numbered(z, prefix):
    """The tensors PREFIX0, PREFIX1, ... of a file."""
    names = [f"{prefix}{i}" for i in range(len(z.names)) if f"{prefix}{i}" in z.names]
    return [z.tensor(name).requires_grad_() for name in names]


def contrasting(name, z, classes=2, **config):
    """The method with a file's temperatures, all four weights 1."""
    # A file without temperatures has those of the Config.
    named = {"contrast_temperature": "hp_tau", "soft_temperature": "hp_kd_T"}
    temperatures = {field: z.number(key) for field, key in named.items() if key in z.names}
    weights = {f"{term}_weight": 1.0 for term in WEIGHTS}
    return method(name, classes, **temperatures, **weights, **config)


def published_sum(z, terms):
    default = find_method("mcl").Config()
    weights = {
        term: z.number(f"hp_{key}") if f"hp_{key}" in z.names else getattr(default, f"{term}_weight")
        for term, key in WEIGHTS.items()
    }
    return sum(weight * terms[term] for term, weight in weights.items())


def mcl_inbatch(z, dtype, compare):
    raw = numbered(z, "in_z")
    made = contrasting("mcl", z)
    sets = [name.removeprefix("in_labels_") for name in z.names if name.startswith("in_labels_")]
    for labels, k in itertools.product(sets, range(2, len(raw) + 1)):
        prefix = f"{labels}_K{k}"
        terms = made.contrast([unit_rows(rows) for rows in raw[:k]], z.tensor(f"in_labels_{labels}"))
        terms |= {"total": published_sum(z, terms), "unweighted_sum": sum(terms.values())}
        for term, value in terms.items():
            # NaN in the file where a class stands in the batch once: the code that trains leaves it out.
            if z.tensor(f"out_{prefix}_{term}").isfinite():
                compare(f"out_{prefix}_{term}", value)
            else:
                assert labels == "single"
                assert value.isfinite()
            if f"grad_{prefix}_{term}_wrt_z0" in z.names:
                for i, grad in enumerate(gradients(value, raw[:k])):
                    compare(f"grad_{prefix}_{term}_wrt_z{i}", grad)


def mcl_heads_and_logit_kd(z, dtype, compare):
    features, logits = numbered(z, "in_rep"), numbered(z, "in_logits")
    made = contrasting("mcl", z, width=z.tensor("in_head0_b1").shape[0])
    student = torch.autocast("cpu", enabled=False)
    made.networks.student = type("Student", (), {"autocast": lambda self: student})()
    weights, embeddings = {}, []
    for i, rows in enumerate(features):
        head = made.embedding_head(rows.shape[1])
        for layer, number in ((head[0], 1), (head[2], 2)):
            for kind in ("weight", "bias"):
                key = f"head{i}_{'W' if kind == 'weight' else 'b'}{number}"
                weights[key] = nn.Parameter(z.tensor(f"in_{key}"))
                setattr(layer, kind, weights[key])
        embeddings.append(made.embed(head, rows))
        compare(f"out_embed{i}", embeddings[-1])
    terms = made.contrast(embeddings, z.tensor("in_labels"))
    for term, value in (terms | {"total": published_sum(z, terms)}).items():
        compare(f"out_{term}", value)
    total = published_sum(z, terms)
    inputs = {f"rep{i}": rows for i, rows in enumerate(features)} | weights
    for name, grad in zip(inputs, gradients(total, list(inputs.values())), strict=True):
        compare(f"grad_total_wrt_{name}", grad)
    for k, imagenet in itertools.product(range(2, len(logits) + 1), (False, True)):
        learners = "last" if imagenet or k > 2 else "all"
        adds = method(
            "mcl", logits[0].shape[1], logit_weight=1.0, logit_learners=learners, logit_detach=not imagenet
        )  # fmt: skip
        key = f"logit_kd{'_imagenet' if imagenet else ''}_K{k}"
        loss = adds.logit_imitation(logits[:k])
        compare(f"out_{key}", loss)
        for i, grad in enumerate(gradients(loss, logits[:k])):
            compare(f"grad_{key}_wrt_logits{i}", grad)


def banks_of(z, made, count):
    made.draws = type("Draws", (), {"advance": lambda self: None})()
    made.banks = nn.ModuleList()
    for i in range(count):
        rows = z.tensor(f"in_memory{i}")
        made.banks.append(SampleMemory(*rows.shape, dtype=rows.dtype, device="method"))
        made.banks[i].rows.copy_(rows)


def mcl_memory(z, dtype, compare):
    raw = numbered(z, "in_z")
    columns = torch.cat([z.tensor("in_pos_idx"), z.tensor("in_neg_idx")], 1)
    for k in range(2, len(raw) + 1):
        made = contrasting("mcl", z, form="memory", bank_momentum=z.number("hp_memory_momentum"))
        banks_of(z, made, k)
        embeddings = [unit_rows(rows) for rows in raw[:k]]
        terms = made.bank_contrast(embeddings, columns)
        terms["total"] = published_sum(z, terms)
        for term, value in terms.items():
            compare(f"out_K{k}_{term}", value)
            for i, grad in enumerate(gradients(value, raw[:k])):
                compare(f"grad_K{k}_{term}_wrt_z{i}", grad)
        made.keep(columns[:, 0], embeddings)
        made.after_step(None)
        for i, bank in enumerate(made.banks):
            compare(f"out_K{k}_memory{i}_after", bank.rows)


CHECKS = {
    "mcl_inbatch": mcl_inbatch,
    "mcl_heads_and_logit_kd": mcl_heads_and_logit_kd,
    "mcl_memory": mcl_memory,
}
