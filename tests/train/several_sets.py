"""One of the processes of test_several_sets.py: methods that DistributedDataParallel cannot train."""

from __future__ import annotations

import torch
from small_training import Small, Watcher
from torch import nn
from two_processes import join_and_run

from kdcompress.errors import Interrupted
from kdcompress.methods.base import ParameterSet, Phase


def two_sets(small):
    """Adds a second set whose parameters no loss of every other step uses, and that has weight decay."""
    network = small.student.network
    torch.manual_seed(5)
    extra = nn.Linear(4, 4).double()
    small.method.extra = extra
    small.trainer.sets = {
        "main": ParameterSet(tuple(network.parameters())),
        "extra": ParameterSet(tuple(extra.parameters()), lr_scale=0.5),
    }
    small.trainer.phases = [Phase("main", 1.0, ("main", "extra"))]
    small.method.parameter_sets = lambda: small.trainer.sets
    return small


def unused_in_every_other_step(small):
    two_sets(small)

    def losses(batch):
        logits = small.student(batch.images).logits
        if small.trainer.at.step % 2:
            logits = small.method.extra(logits)
        return {"ce": small.method.cross_entropy(logits, batch.labels)}

    small.method.losses = losses
    return small


def inner_gradient(small):
    """A step that differentiates once inside, then moves one set after the other with several losses."""
    two_sets(small)

    def step(batch, minimise):
        terms = minimise.losses(batch)
        (inner,) = torch.autograd.grad(terms["ce"], small.student.network.fc.weight, create_graph=True)
        # A mean over all rows and processes: the square of a mean is no mean of squares, so it is gathered.
        logits = small.method.extra(small.student(batch.images).logits)
        again = small.method.cross_entropy(logits, batch.labels)
        minimise({"extra": again}, "extra")
        minimise({"ce": minimise.losses(batch)["ce"], "slope": 0.0 * inner.sum()}, "main")
        minimise.log({"slope": inner.detach().norm()})

    small.method.step = step
    # As a class attribute would: the minimiser looks at the class.
    small.method.__class__ = type("OwnStep", (type(small.method),), {"step": lambda self, b, m: step(b, m)})
    return small


TOYS = {"unused": unused_in_every_other_step, "inner": inner_gradient}


def train(folder, name, processes, *, freeze=True, watcher=None):
    small = Small(
        folder, "none", held_out=0, processes=processes, watcher=watcher, float64=True,
        train={"freeze_bn": freeze, "epochs": 2}, optim={"weight_decay": 0.01},
    )  # fmt: skip
    TOYS[name](small)
    small.run()
    return small.tensors()


def main(folder, processes):
    seen = {}
    for name in TOYS:
        seen[name] = train(folder / name, name, processes)
        seen[f"{name} live"] = train(folder / f"{name}_live", name, processes, freeze=False)
    watcher = Watcher(7) if processes.rank == 1 else Watcher()
    try:
        train(folder / "cut", "unused", processes, freeze=False, watcher=watcher)
    except Interrupted:
        seen["stopped"] = True
    seen["resumed"] = train(folder / "cut", "unused", processes, freeze=False)
    torch.save(seen, folder / f"{processes.rank}.pt")


if __name__ == "__main__":
    join_and_run(main)
