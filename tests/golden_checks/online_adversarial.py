"""Networks, and discriminators of their maps."""

from __future__ import annotations

from golden_checks.method import gradients, method
from kdcompress.methods import losses


def afd(z, dtype, compare):
    labels = z.tensor("in_labels")
    count = len([key for key in z.names if key.startswith("in_logits")])
    logits = [z.tensor(f"in_logits{i}").requires_grad_() for i in range(count)]
    made = method("afd", logits[0].shape[1], temperature=z.number("hp_T"))
    for i in range(count):
        own, peer = (z.tensor(f"in_d{i}_{who}").requires_grad_() for who in ("own", "peer"))
        judging, imitating = losses.discriminator_loss(own, peer), losses.imitation_loss(own)
        compare(f"out_LD{i}", judging)
        compare(f"out_LG{i}", imitating)
        for name, grad in zip(("own", "peer"), gradients(judging, [own, peer]), strict=True):
            compare(f"grad_LD{i}_wrt_{name}", grad)
        compare(f"grad_LG{i}_wrt_own", gradients(imitating, [own])[0])
        # The file's two networks learn from each other; with more, each learns from the one before.
        loss = sum(made.logit_loss(logits[i], logits[i - 1], labels))
        compare(f"out_Llogit{i}", loss)
        compare(f"grad_Llogit{i}_wrt_logits{i}", gradients(loss, [logits[i]])[0])


CHECKS = {"afd_formula": afd}
