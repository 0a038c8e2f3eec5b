"""Two images or two views that are to be predicted alike."""

from __future__ import annotations

import torch

from golden_checks.method import batch_of, gradients, method, student_of
from kdcompress.data.batch import DataInfo
from kdcompress.methods import losses
from kdcompress.methods.selfkd.dlb import DLB
from kdcompress.networks.networks import Networks


def cskd(z, dtype, compare):
    labels, logits = z.tensor("labels"), z.tensor("logits").requires_grad_()
    partner = z.tensor("logits_pair").requires_grad_()
    made = method("cskd", logits.shape[1], temperature=z.number("T"), weight=z.number("lam"))
    kd = made.terms(logits, partner)["class_wise"]
    ce = made.cross_entropy(logits, labels)
    compare("ce", ce)
    compare("kd", kd / z.number("lam"))
    compare("total", ce + kd)
    compare("grad_total_logits", gradients(ce + kd, [logits])[0])
    compare("grad_kd_logits", gradients(kd, [logits])[0])
    compare("grad_logits_pair", gradients(ce + kd, [partner])[0])


def ddgsd(z, compare, parts, *, features, **config):
    labels = z.tensor("labels")
    names = ["logits_a", "logits_b", *([] if features == "logits" else ["emb_a", "emb_b"])]
    inputs = [z.tensor(name).requires_grad_() for name in names]
    if "lmbda" in z.names:
        config["weight"] = z.number("lmbda")
    made = method(
        "ddgsd", inputs[0].shape[1], temperature=z.number("T"), feature_weight=z.number("mu"),
        features=features, **config,
    )  # fmt: skip
    terms = made.terms(inputs[0], inputs[1], tuple(inputs[2:]) or None, labels)
    total = sum(terms.values())
    parts(terms, inputs, labels)
    compare("total", total)
    for name, got in zip(names, gradients(total, inputs), strict=True):
        compare(f"grad_{name}", got)


def ddgsd_paper_transcription(z, dtype, compare):
    def parts(terms, inputs, labels):
        a, b = inputs[:2]
        for name, own in {"ce_a": a, "ce_b": b}.items():
            compare(name, losses.cross_entropy(own, labels))
        compare("kl_a_student", losses.kl(a, b.detach(), z.number("T")))
        compare("kl_b_student", losses.kl(b, a.detach(), z.number("T")))
        compare("mmd_linear", terms["features"] / z.number("mu"))

    ddgsd(z, compare, parts, features="mean_over_rows", ce_weight=2.0)


def ddgsd_selfkdlib(z, dtype, compare):
    def parts(terms, inputs, labels):
        a, b = inputs[:2]
        compare("loss_cls", terms["ce"])
        compare("kl_a_student", losses.kl(a, b.detach(), z.number("T")))
        compare("kl_b_student", losses.kl(b, a.detach(), z.number("T")))
        compare("mmd_scalar_weighted", terms["features"])
        compare("loss_div", terms["agreement"] + terms["features"])

    ddgsd(z, compare, parts, features="mean_over_all", ce_weight=0.5)


def ddgsd_youngerous(z, dtype, compare):
    def parts(terms, inputs, labels):
        compare("ce_sum", terms["ce"])
        compare("kd_mean_over_classes", terms["agreement"] / z.number("lmbda"))
        compare("mse_logits", terms["features"] / z.number("mu"))

    ddgsd(
        z, compare, parts, features="logits", ce_weight=2.0, divergence="rows_and_classes", detach=False,
    )  # fmt: skip


def dlb(z, dtype, compare):
    weight = z.tensor("weight").requires_grad_()
    width, classes = weight.shape
    rows = len(z.tensor("labels_0"))
    # An image here has one pixel of `width` channels, and the student is one matrix.
    student = student_of(lambda images: {"logits": images.flatten(1) @ weight})
    info = DataInfo(classes, torch.zeros(0, dtype=torch.int64), (1, 1), width, batch_size=rows)
    config = DLB.Config(temperature=z.number("T"), weight=z.number("alpha"), full_weight_epochs=0)
    made = DLB(config, Networks(student), info).to(dtype)
    made.on_epoch_start(0, 1)
    totals, slopes = [], []
    for step in range(len(z.tensor("losses"))):
        views = z.tensor(f"views_{step}").reshape(rows, 2, width, 1, 1).unbind(1)
        total = sum(made.losses(batch_of(views, z.tensor(f"labels_{step}"))).values())
        totals.append(total)
        slopes.append(gradients(total, [weight])[0])
    compare("losses", torch.stack(totals))
    compare("grads_weight", torch.stack(slopes))


CHECKS = {
    "cskd": cskd,
    "ddgsd_paper_transcription": ddgsd_paper_transcription,
    "ddgsd_selfkdlib": ddgsd_selfkdlib,
    "ddgsd_youngerous": ddgsd_youngerous,
    "dlb": dlb,
}
