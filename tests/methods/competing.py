"""One of the two processes of test_afd.py."""

from __future__ import annotations

import torch
from small_training import Small, Watcher
from two_processes import join_and_run

from kdcompress.errors import Interrupted

PEERS = ["cifar/wrn-10-2"]  # other channels, so that there are transfer layers
LARGE = {"feature_lr": 1e-3, "discriminator_lr": 1e-2}  # so that all updates are seen in a few steps


def train(folder, processes, *, freeze=True, watcher=None, **arguments):
    small = Small(
        folder, "afd", peers=PEERS, config=LARGE, processes=processes, watcher=watcher, held_out=0,
        float64=True, train={"freeze_bn": freeze, **arguments},
    )  # fmt: skip
    small.run()
    return small.tensors()


def main(folder, processes):
    seen = {
        "frozen": train(folder / "frozen", processes),
        "accumulated": train(folder / "accumulated", processes, accumulate=2),
        "live": train(folder / "live", processes, freeze=False),
    }
    try:
        train(folder / "cut", processes, freeze=False, watcher=Watcher(7) if processes.rank else None)
    except Interrupted:
        seen["stopped"] = True
    seen["resumed"] = train(folder / "cut", processes, freeze=False)
    torch.save(seen, folder / f"{processes.rank}.pt")


if __name__ == "__main__":
    join_and_run(main)
