"""One of the two processes of test_gather.py: first and second derivatives of gathered rows."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from kdcompress.methods.gather import gather_rows
from kdcompress.train.processes import join, leave

ROWS = torch.arange(12, dtype=torch.float64).reshape(4, 3) / 10


def loss_of(rows):
    """A loss that is no mean over rows, with a second derivative."""
    return rows.cumsum(0).sin().sum()


def main(folder, rank):
    rows = ROWS[2 * rank : 2 * rank + 2].clone().requires_grad_()
    gathered = gather_rows(rows)
    (first,) = torch.autograd.grad(loss_of(gathered), rows, create_graph=True)
    seen = {"gathered": gathered.detach(), "first": first.detach(), "second": ""}
    try:
        first.square().sum().backward()
    except RuntimeError as error:
        seen["second"] = f"{type(error).__name__}: {error}"
    seen["left_behind"] = rows.grad
    # An inner gradient of the gathered rows themselves has no collective in its graph.
    gathered = gather_rows(rows)
    (inner,) = torch.autograd.grad(loss_of(gathered), gathered, create_graph=True)
    inner.square().sum().backward()
    seen["of_gathered"] = rows.grad / 2
    torch.save(seen, folder / f"{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    mine = join("cpu")
    try:
        main(Path(sys.argv[1]), mine.rank)
    finally:
        leave()
