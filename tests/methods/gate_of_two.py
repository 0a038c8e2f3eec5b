"""One of the two processes of test_one.py: the gate of ONE on half of the rows, with its gradients."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from kdcompress.methods.online.one import Gate
from kdcompress.train.processes import join, leave

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(6, 4, generator=GENERATOR, dtype=torch.float64)
FACTORS = torch.randn(6, 3, generator=GENERATOR, dtype=torch.float64)


def results(part):
    """The gate's weights for a part of the rows, and the gradients of a mean over them."""
    torch.manual_seed(1)
    gate, rows = Gate(4, 3).double(), ROWS[part].clone().requires_grad_()
    weights = gate(rows)
    (weights * FACTORS[part]).sum(1).mean().backward()
    return {
        "weights": weights.detach(),
        "rows": rows.grad,
        "parameters": {name: p.grad for name, p in gate.named_parameters()},
        "buffers": dict(gate.named_buffers()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    mine = join("cpu")
    try:
        half = slice(3 * mine.rank, 3 * mine.rank + 3)
        torch.save(results(half), Path(sys.argv[1]) / f"{mine.rank}.pt")
    finally:
        leave()
