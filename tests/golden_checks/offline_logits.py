"""Teacher to student, on logits."""

from __future__ import annotations

from golden_checks.method import gradients, method
from kdcompress.methods import losses


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


CHECKS = {"kd_T4": kd_T4}
