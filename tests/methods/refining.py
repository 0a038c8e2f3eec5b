"""One of the two processes of test_mixskd.py."""

from __future__ import annotations

import torch
from small_training import Small, Watcher
from two_processes import join_and_run

from kdcompress.errors import Interrupted

FORMS = {
    "mixskd": ("mixskd", {}),
    "mixskd published": ("mixskd", {"discriminator": "published", "mixup_ce": False}),
}


def train(folder, name, processes):
    method, config = FORMS[name]
    small = Small(
        folder,
        method,
        config=config,
        processes=processes,
        held_out=0,
        float64=True,
        train={"freeze_bn": True},
    )
    small.run()
    return small.tensors()


def live(folder, processes, watcher=None):
    small = Small(folder, "mixskd", processes=processes, watcher=watcher, held_out=0)
    small.run()
    return small.tensors()


def main(folder, processes):
    seen = {name: train(folder / name, name, processes) for name in FORMS}
    seen["unbroken"] = live(folder / "unbroken", processes)
    try:
        live(folder / "cut", processes, Watcher(7) if processes.rank else None)
    except Interrupted:
        seen["stopped"] = True
    seen["resumed"] = live(folder / "cut", processes)
    torch.save(seen, folder / f"{processes.rank}.pt")


if __name__ == "__main__":
    join_and_run(main)
