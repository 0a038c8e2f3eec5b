"""One target made of the logits of several networks."""

from __future__ import annotations

import torch

from golden_checks.method import gradients, method
from kdcompress.methods import losses

TARGETS = {
    "naive": {"target": "naive"},
    "minlogit": {"target": "minlogit"},
    "linear_batch": {"target": "linear"},
    "linear_persample": {"target": "linear", "linear_over": "image"},
    "general_logits": {"target": "general", "ridge": 0.0},
}


def kdcl(z, dtype, compare):
    labels = z.tensor("in_labels")
    count = len([key for key in z.names if key.startswith("in_logits")])
    every = [z.tensor(f"in_logits{i}").requires_grad_() for i in range(count)]
    classes = every[0].shape[1]
    # The file's mixtures come from a solver of its own, which was less exact.
    solver = 1e-5 if dtype == torch.float64 else 1e-4
    for k in range(2, count + 1):
        logits = every[:k]
        stacked = torch.stack(logits).detach()
        share = z.number("hp_alpha_meanlogit")
        reproduction = method(
            "kdcl", classes, peers=k - 1, target="mean_logits", temperature=z.number("hp_T_meanlogit"),
            ce_weight=1 - share, weight=share,
        )  # fmt: skip
        terms = reproduction.terms(logits, labels)
        for i, name in enumerate(reproduction.names()):
            loss = terms[f"ce_{name}"] + terms[f"kl_{name}"]
            compare(f"out_meanlogit_K{k}_net{i}", loss)
            compare(f"grad_meanlogit_K{k}_net{i}_wrt_logits{i}", gradients(loss, [logits[i]])[0])
        compare(f"out_linear_batch_alpha_K{k}", losses.mixture_weights(stacked, labels), solver)
        per_row = losses.mixture_weights(stacked, labels, per_row=True)
        compare(f"out_linear_persample_alpha_K{k}", per_row, solver)
        products = losses.error_products(stacked, labels) / len(labels)
        weights = losses.generalization_weights(products)
        compare(f"out_general_C_K{k}", products.to(dtype))
        compare(f"out_general_w_K{k}", weights.to(dtype))
        for name, config in TARGETS.items():
            made = method(
                "kdcl", classes, peers=k - 1, temperature=z.number("hp_T"), weight=z.number("hp_lambda"),
                **config,
            )  # fmt: skip
            made.weights = weights
            tolerance = solver if name.startswith("linear") else None
            compare(f"out_target_{name}_K{k}", made.target(logits, labels), tolerance)
            total = sum(made.terms(logits, labels).values())
            compare(f"out_total_{name}_K{k}", total, tolerance)
            for i, grad in enumerate(gradients(total, logits)):
                compare(f"grad_total_{name}_K{k}_wrt_logits{i}", grad, tolerance)


CHECKS = {"kdcl_formula": kdcl}
