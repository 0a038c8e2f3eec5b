"""One of the two processes of test_ffl.py: batch norm over the rows of both, alone and in trainings."""

from __future__ import annotations

import torch
from small_training import Small
from two_processes import join_and_run

from kdcompress.methods.shared_norm import SharedBatchNorm2d

torch.manual_seed(3)
MAPS = torch.randn(6, 3, 2, 2, dtype=torch.float64) * torch.arange(1, 7).reshape(-1, 1, 1, 1) + 5


def train(folder, name, live, processes):
    """Trains with the networks' batch norm frozen, and that of the fusion module live or frozen."""
    small = Small(folder, name, held_out=0, processes=processes, float64=True, train={"freeze_bn": True})
    if live:
        for module in small.method.fusion.modules():
            module.eval = lambda module=module: module
    small.run()
    return small.tensors()


def main(folder, processes):
    norm = SharedBatchNorm2d(3).double()
    maps = MAPS[3 * processes.rank : 3 * processes.rank + 3].clone().requires_grad_()
    output = norm(maps)
    output.sin().mul(torch.arange(3.0)[:, None, None]).mean().backward()
    seen = {
        "output": output.detach(), "input_gradient": maps.grad, "weight": norm.weight.grad,
        "bias": norm.bias.grad, "running_mean": norm.running_mean, "running_var": norm.running_var,
    }  # fmt: skip
    for name in ("ffl", "mfef"):
        for live in (False, True):
            seen[name, live] = train(folder / f"{name}{live}", name, live, processes)
    torch.save(seen, folder / f"{processes.rank}.pt")


if __name__ == "__main__":
    join_and_run(main)
