"""Networks taught by a head on several of their own maps."""

from __future__ import annotations

from torch import nn

from golden_checks.method import gradients, method
from kdcompress.methods import losses
from kdcompress.methods.losses.maps import _attention
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


def frskd(z, dtype, compare):
    labels = z.tensor("labels")
    logits, taught = z.tensor("logits").requires_grad_(), z.tensor("teacher_logits").requires_grad_()
    stages = range(sum(name.startswith("feat_") for name in z.names))
    maps = [z.tensor(f"feat_{i}").requires_grad_() for i in stages]
    refined = [z.tensor(f"teacher_feat_{i}").requires_grad_() for i in stages]
    alpha, beta = z.number("alpha"), z.number("beta")
    made = method(
        "frskd", logits.shape[1], temperature=z.number("T"), soft_weight=alpha, attention_weight=beta
    )
    terms = made.terms(logits, taught, maps, refined, labels)
    compare("ce_student", terms["ce"])
    compare("ce_teacher", terms["ce_self_teacher"])
    compare("kl", terms["soft"] / alpha)
    compare("at_sum", terms["attention"] / beta)
    compare("distill", terms["soft"] + terms["attention"])
    total = sum(terms.values())
    compare("total", total)
    inputs = {"logits": logits, "teacher_logits": taught}
    inputs |= {f"feat_{i}": maps[i] for i in stages} | {f"teacher_feat_{i}": refined[i] for i in stages}
    for (name, _), gradient in zip(inputs.items(), gradients(total, list(inputs.values())), strict=True):
        compare(f"grad_{name}", gradient)


def at_pair(z, dtype, compare):
    shallow, deep = z.tensor("shallow").requires_grad_(), z.tensor("deep")
    size = deep.shape[2:]
    compare("att_shallow_pooled", _attention(shallow, size, 2.0))
    compare("att_deep", _attention(deep, size, 2.0))
    loss = losses.attention_transfer(shallow, deep)
    compare("loss", loss)
    compare("grad_shallow", gradients(loss, [shallow])[0])


CHECKS = {"mixskd": mixskd, "frskd": frskd, "at_pair": at_pair}
