"""Networks and a classifier on their fused maps."""

from __future__ import annotations

import itertools

from golden_checks.method import fill, gradients, method
from kdcompress.methods.online.ffl import Fusion

LAYERS = {
    "conv1": "depthwise",
    "bn1": "norm",
    "conv1_1": "pointwise",
    "bn1_1": "pointwise_norm",
    "fc2": "classifier",
}


def ffl(z, dtype, compare):
    labels = z.tensor("in_labels")
    count = len([key for key in z.names if key.startswith("in_logits")])
    logits = [z.tensor(f"in_logits{i}").requires_grad_() for i in range(count)]
    maps = [z.tensor(f"in_fmap{i}").requires_grad_() for i in range(count)]
    fusion = Fusion([m.shape[1] for m in maps], logits[0].shape[1])
    for name, layer in LAYERS.items():
        fill(z, getattr(fusion, layer), f"in_fm_{name}")
    fused = fusion(maps)
    compare("out_fused_logits", fused)
    made = method(
        "ffl", logits[0].shape[1], peers=count - 1, temperature=z.number("hp_T"), shift=z.number("hp_kl_eps"),
        ramp_epochs=0.0,
    )  # fmt: skip
    terms = made.terms(logits, fused, labels)
    for i, name in enumerate(made.names()):
        compare(f"out_kl{i}", terms[f"fused_to_{name}"])
    compare(f"out_kl{count}", terms["mean_to_fused"])
    compare("out_ce_sum", sum(term for name, term in terms.items() if name.startswith("ce_")))
    total = sum(terms.values())
    compare("out_total_w1", total)
    weights = {
        f"fm_{name}_{key}": parameter
        for name, layer in LAYERS.items()
        for key, parameter in getattr(fusion, layer).named_parameters()
    }
    inputs = {f"fmap{i}": m for i, m in enumerate(maps)} | {f"logits{i}": x for i, x in enumerate(logits)}
    every = list(itertools.chain(inputs.items(), weights.items()))
    for (name, _), grad in zip(every, gradients(total, [x for _, x in every]), strict=True):
        compare(f"grad_total_w1_wrt_{name}", grad)


CHECKS = {"ffl": ffl}
