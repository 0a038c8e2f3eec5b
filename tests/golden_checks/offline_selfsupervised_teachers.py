"""Pooled features without labels: a head's prediction of them, similarities to a queue; and pure losses."""

from __future__ import annotations

import torch
from torch import nn

from golden_checks.method import fill, gradients
from golden_checks.offline_relations import built, shapes
from kdcompress.methods import losses

NO_LABELS = torch.full((0,), -1, dtype=torch.int64)


def simreg(z, dtype, compare):
    features, target = z.tensor("feat_s").requires_grad_(), z.tensor("target_feat")
    query = z.tensor("query").requires_grad_()
    layers = z.number("hp_n_mlp_layers")
    made = built("simreg", dtype, shapes(features), shapes(target), NO_LABELS, 0, head_layers=layers)
    loss = made.regression(query, target)
    compare("loss", loss)
    compare("loss_mse_nonorm_flag", loss)
    compare("grad_query", gradients(loss, [query])[0])
    z.equal("out_mlp_structure", [type(layer).__name__ for layer in made.head])
    for number, layer in enumerate(made.head):
        fill(z, layer, f"param_mlp_{number}")
    assert {m.eps for m in made.head if isinstance(m, nn.BatchNorm1d)} == {z.number("hp_bn_eps")}
    loss = made.regression(made.head(features), target)
    compare("loss_mlp", loss)
    compare("grad_feat_s_mlp", gradients(loss, [features])[0])


def seed(z, dtype, compare):
    student, teacher = z.tensor("emb_s").requires_grad_(), z.tensor("emb_t")
    for tag in ("", "_published"):
        temperatures = z.number(f"hp_t_student{tag}"), z.number(f"hp_t_teacher{tag}")
        made = built(
            "seed", dtype, shapes(student), shapes(teacher), NO_LABELS, 0,
            queue=z.number("hp_K"), student_temperature=temperatures[0], teacher_temperature=temperatures[1],
        )  # fmt: skip
        assert made.queue.shape == z.tensor("queue").shape
        made.queue.copy_(z.tensor("queue"))
        made.pointer.fill_(z.number("queue_ptr"))
        loss = made.similarities(student, teacher)
        compare(f"loss{tag}", loss)
        compare(f"grad_emb_s{tag}", gradients(loss, [student])[0])
        # The file holds embeddings that are not of unit length yet.
        ours, theirs = losses.unit_rows(student), losses.unit_rows(teacher)
        compare(f"out_logits_s{tag}", losses.queue_logits(ours, theirs, made.queue, temperatures[0]))
        target = losses.queue_logits(theirs, theirs, made.queue, temperatures[1])
        compare(f"out_soft_t{tag}", target.softmax(1))
        made.after_step(None)
        compare("out_queue", made.queue)
        compare("out_queue_ptr", made.pointer.to(dtype))


def cgan_cdre(z, dtype, compare):
    real, generated = z.tensor("ratio_real").requires_grad_(), z.tensor("ratio_fake").requires_grad_()
    compare("loss_sp", losses.density_ratio(real, generated, 0.0))
    loss = losses.density_ratio(real, generated, z.number("hp_lambda"))
    compare("loss", loss)
    for name, gradient in zip(("real", "fake"), gradients(loss, [real, generated]), strict=True):
        compare(f"grad_ratio_{name}", gradient)


def squeeze_and_span(z, dtype, compare):
    names = ("z_g", "z_f", "z_r1", "z_r2")
    generator, student, first, second = rows = [z.tensor(name).requires_grad_() for name in names]
    weights = [z.number(f"hp_{term}") for term in ("sim", "var", "cov")]
    share = z.number("hp_syn_ratio")
    compare("loss_sim", losses.mse(generator, student))
    compare("loss_var_f", losses.variance_shortfall(student))
    compare("loss_cov_f", losses.covariance_energy(student))
    squeezed, spanned = losses.squeeze(generator, student, *weights), losses.span(first, second, *weights)
    compare("loss_syn", squeezed)
    compare("loss_real", spanned)
    loss = share * squeezed + (1 - share) * spanned
    compare("loss", loss)
    for name, gradient in zip(names, gradients(loss, rows), strict=True):
        compare(f"grad_{name}", gradient)


def fkd_soft_labels(z, dtype, compare):
    logits, stored = z.tensor("logits_s").requires_grad_(), z.tensor("stored_label")
    classes, probabilities = stored[:, 0].long(), stored[:, 1]
    count = z.number("hp_num_classes")
    # The authors keep the targets in float32, so nothing that is made of them is known any better.
    known = 1e-6 if dtype == torch.float64 else None
    smoothed = losses.smoothed_soft_labels(classes, probabilities, count)
    compare("out_marginal_smoothing_k5", smoothed, known)
    compare("out_marginal_renorm", losses.renormalised_soft_labels(classes, probabilities, count), known)
    loss = losses.soft_label_cross_entropy(logits, smoothed)
    compare("loss", loss, known)
    compare("grad_logits_s", gradients(loss, [logits])[0], known)


CHECKS = {
    "simreg": simreg,
    "seed": seed,
    "cgan_cdre": cgan_cdre,
    "squeeze_and_span": squeeze_and_span,
    "fkd_soft_labels": fkd_soft_labels,
}
