"""Networks taught by a head on several of their own maps."""

from __future__ import annotations

from torch import nn

from golden_checks.method import gradients, method
from kdcompress.methods.selfkd.mixskd import discriminator, interpolated_and_mixed


def mixskd(z, dtype, compare):
    labels, order, share = z.tensor("labels"), z.tensor("index"), z.number("mix_lambda")
    count = sum(name.startswith("logits_") for name in z.names)
    logits = [z.tensor(f"logits_{k}").requires_grad_() for k in range(count)]
    maps = [z.tensor(f"feat_{k}").requires_grad_() for k in range(count)]
    taught = [z.tensor(f"teacher_logits_{side}").requires_grad_() for side in ("interp", "mixed")]
    judges = []
    for k in range(count):
        hidden, channels = z.tensor(f"disc_{k}_w1").shape
        judges.append(discriminator(channels, hidden))
        for layer, number in ((judges[k][0], 1), (judges[k][2], 2)):
            layer.weight = nn.Parameter(z.tensor(f"disc_{k}_w{number}"))
            layer.bias = nn.Parameter(z.tensor(f"disc_{k}_b{number}"))
    sides = [interpolated_and_mixed(m, share, order) for m in maps]
    inputs = {f"logits_{k}": x for k, x in enumerate(logits)} | {f"feat_{k}": x for k, x in enumerate(maps)}
    inputs |= {"teacher_interp": taught[0], "teacher_mixed": taught[1]}
    for script, mixup_ce in (("cifar", False), ("full", True)):
        made = method(
            "mixskd",
            logits[0].shape[1],
            temperature=z.number("T"),
            mixup_ce=mixup_ce,
            discriminator="published",
        )
        terms = made.terms(
            logits, sides, taught, made.scores(sides, judges), (labels, labels[order]), share, order
        )
        total = sum(terms.values())
        compare(f"total_{script}", total)
        for (name, _), gradient in zip(inputs.items(), gradients(total, list(inputs.values())), strict=True):
            compare(f"grad_{script}_{name}", gradient)
    compare("loss_cls", terms["ce"] + terms["ce_branches"])
    compare("loss_mixcls", terms["ce_mixed"])
    compare("loss_cls_full", terms["ce"] + terms["ce_branches"] + terms["ce_mixed"])
    compare("loss_div", terms["mutual"] + terms["self_teacher"])
    compare("loss_div_selfteacher_part", terms["self_teacher"])
    compare("loss_fea", terms["maps"])
    compare("loss_gan", terms["discriminator"])


CHECKS = {"mixskd": mixskd}
