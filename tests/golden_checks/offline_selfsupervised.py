"""Teacher to student on turned images: selected soft labels and similarities, the pretext task."""

from __future__ import annotations

import torch

from golden_checks.method import gradients, method
from kdcompress.methods import losses
from kdcompress.methods.offline.sskd import SSKD


def sskd(z, dtype, compare):
    logits, projected = z.tensor("logits_s").requires_grad_(), z.tensor("proj_s").requires_grad_()
    made = method(
        "sskd",
        logits.shape[1],
        **{f"{term}_weight": z.number(f"hp_{term}_weight") for term in ("ce", "kd", "tf", "ss")},
        **{f"{term}_temperature": z.number(f"hp_{term}_T") for term in ("tf", "ss")},
        **{f"{term}_ratio": z.number(f"hp_ratio_{term}") for term in ("tf", "ss")},
        temperature=z.number("hp_kd_T"),
    )
    taught, target = z.tensor("proj_t"), z.tensor("target")
    cosines = losses.turned_cosines(taught)
    compare("out_simi_s", losses.turned_cosines(projected))
    compare("out_simi_t", cosines)
    ranks = losses.rank_of(cosines, losses.own_images(cosines))
    z.equal("out_rank_ss", ranks)
    kept = losses.top_ratio_correct(ranks, made.config.ss_ratio)
    z.equal("out_distill_index_ss", kept.nonzero().squeeze(1))
    ranks = losses.rank_of(losses.rotation_rows(z.tensor("logits_t")), target.repeat_interleave(3))
    kept = losses.top_ratio_correct(ranks, made.config.tf_ratio)
    z.equal("out_distill_index_tf", kept.nonzero().squeeze(1))
    terms = made.terms(logits, z.tensor("logits_t"), projected, taught, target)
    for name, term in terms.items():
        compare(f"loss_{name}", term / z.number(f"hp_{name}_weight"))
    total = sum(terms.values())
    compare("loss", total)
    compare("grad_logits_s", gradients(total, [logits])[0])
    compare("grad_proj_s", gradients(total, [projected])[0])


def sskd_teacher_pretext(z, dtype, compare):
    projected = z.tensor("proj_t").requires_grad_()
    cosines = losses.turned_cosines(projected)
    compare("out_simi", cosines)
    assert torch.equal(losses.own_images(cosines), z.tensor("target"))
    made = SSKD.Pretext.__new__(SSKD.Pretext)
    loss = made.terms(projected)["pretext"]
    compare("loss", loss)
    compare("grad_proj_t", gradients(loss, [projected])[0])


CHECKS = {"sskd": sskd, "sskd_teacher_pretext": sskd_teacher_pretext}
