"""Teacher to student on pooled features of rotated images: alignment, correlation, contrast."""

from __future__ import annotations

from golden_checks.method import gradients, method
from kdcompress.methods import losses
from kdcompress.methods.offline.mlkd import Projections


def mlkd(z, dtype, compare):
    student, teacher = z.tensor("feat_s").requires_grad_(), z.tensor("feat_t")
    logits, target = z.tensor("logits_s").requires_grad_(), z.tensor("target")
    made = method(
        "mlkd",
        logits.shape[1],
        **{f"{term}_weight": z.number(f"hp_w_{term}") for term in ("ce", "corr", "sup", "align")},
        kd_weight=0.0,
        corr_temperature=z.number("hp_tau_corr"),
        sup_temperature=z.number("hp_tau_sup"),
        embedding_width=len(z.arrays["param_sup_embed_s_linear_weight"]),
        expansion=z.number("hp_align_hidden") // teacher.shape[1],
    )
    made.projections = Projections(made.config, student.shape[1], teacher.shape[1]).to(dtype)
    stored = {
        "align": "align_mlp_net_",
        "corr": "corr_mlp_net_",
        "embed_student": "sup_embed_s_linear_",
        "embed_teacher": "sup_embed_t_linear_",
    }
    for name, parameter in made.projections.named_parameters():
        module, rest = name.split(".", 1)
        parameter.data = z.tensor(f"param_{stored[module]}{rest.replace('.', '_')}")
    terms = made.terms(logits, made.projections(student, teacher), teacher, target)
    for name, term in terms.items():
        loss = term / z.number(f"hp_w_{name}")
        compare(f"loss_{name}", loss)
        if name != "ce":
            compare(f"grad_feat_s_{name}", gradients(loss, [student])[0])
            compare(f"loss_own_transcription_{name}", loss)
    total = sum(terms.values())
    compare("loss", total)
    compare("grad_feat_s", gradients(total, [student])[0])
    compare("grad_logits_s", gradients(total, [logits])[0])


def mlkd_paper_reconstruction(z, dtype, compare):
    assert z.number("note")
    student, augmented = z.tensor("h_zs").requires_grad_(), z.tensor("h_zs_aug").requires_grad_()
    teacher, target = z.tensor("zt"), z.tensor("target")
    loss = losses.squared_alignment(student, teacher)
    compare("loss_align_eq2", loss)
    compare("grad_h_zs_align_eq2", gradients(loss, [student])[0])
    loss = losses.relation_kl(augmented, student, z.tensor("zt_aug"), teacher, z.number("hp_tau_corr"))
    compare("loss_corr_eq4_5", loss)
    compare("grad_h_zs_corr", gradients(loss, [student])[0])
    compare("grad_h_zs_aug_corr", gradients(loss, [augmented])[0])
    loss = losses.supervised_contrast(student, teacher, target, z.number("hp_tau_sup"), across=True)
    compare("loss_sup_cross_only", loss)
    compare("grad_h_zs_sup_cross_only", gradients(loss, [student])[0])


CHECKS = {"mlkd": mlkd, "mlkd_paper_reconstruction": mlkd_paper_reconstruction}
