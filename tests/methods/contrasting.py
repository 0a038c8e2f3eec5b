"""One of the two processes of test_moco.py: trainings without labels, with batch norm frozen and live."""

from __future__ import annotations

import torch
from small_training import Small, Watcher
from two_processes import join_and_run

from kdcompress.errors import Interrupted

FROZEN = ("moco", "simsiam")


def train(folder, name, processes):
    small = Small(
        folder, name, processes=processes, held_out=0, labelled=False, float64=True,
        train={"freeze_bn": True},
    )  # fmt: skip
    small.run()
    return small.tensors()


def live(folder, processes, watcher=None):
    small = Small(
        folder, "moco", config={"norm_groups": 4}, processes=processes, watcher=watcher, held_out=0,
        labelled=False,
    )  # fmt: skip
    small.run()
    return small.tensors()


def keys(folder, processes):
    """The keys of the first batch, whose batch norms are live, of this process's rows."""
    small = Small(folder, "moco", config={"norm_groups": 4}, processes=processes, float64=True)
    view = next(small.loader.epoch(0)).views[1]
    return small.method.keys(view.images, small.method.groups(len(view.images)))


def main(folder, processes):
    seen = {name: train(folder / name, name, processes) for name in FROZEN}
    seen["keys"] = keys(folder / "keys", processes)
    seen["unbroken"] = live(folder / "unbroken", processes)
    try:
        live(folder / "cut", processes, Watcher(7) if processes.rank else None)
    except Interrupted:
        seen["stopped"] = True
    seen["resumed"] = live(folder / "cut", processes)
    torch.save(seen, folder / f"{processes.rank}.pt")


if __name__ == "__main__":
    join_and_run(main)
