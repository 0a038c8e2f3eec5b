"""Networks that learn without labels, and figures of clusters."""

from __future__ import annotations

import torch
from torch import nn

from golden_checks.method import gradients, method
from kdcompress.methods import losses


def moco_infonce(z, dtype, compare):
    student, copy = (nn.Linear(*reversed(z.tensor("wq").shape), dtype=dtype) for _ in range(2))
    for layer, names in ((student, ("wq", "bq")), (copy, ("wk_before", "bk_before"))):
        layer.weight.data, layer.bias.data = (z.tensor(name) for name in names)
    made = method("moco", 0, temperature=z.number("T"), momentum=z.number("m"))
    made._unqueued = []
    made.queue, made.pointer = z.tensor("queue_before"), torch.zeros((), dtype=torch.int64)
    # The file's step begins with what ends a step of a training.
    made.follow(copy.parameters(), student.parameters())
    compare("wk_after", copy.weight)
    compare("bk_after", copy.bias)
    queries, keys = student(z.tensor("xq")), copy(z.tensor("xk")).detach()
    rows = losses.unit_rows(queries), losses.unit_rows(keys)
    compare("logits", losses.queue_logits(*rows, made.queue, z.number("T")))
    loss = made.contrast(queries, keys)
    compare("loss", loss)
    for name, gradient in zip(("wq", "bq"), gradients(loss, list(student.parameters())), strict=True):
        compare(f"grad_{name}", gradient)
    made.enqueue()
    compare("queue_after", made.queue)
    compare("queue_ptr_after", made.pointer.to(dtype).reshape(1))


CHECKS = {"moco_infonce": moco_infonce}
