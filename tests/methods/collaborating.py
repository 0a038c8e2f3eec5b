"""One of the two processes of test_kdcl.py."""

from __future__ import annotations

import torch
from small_training import Small, Watcher, images
from two_processes import join_and_run

from kdcompress.data.loader import EvaluationLoader
from kdcompress.errors import Interrupted

FORMS = {
    "linear": {"target": "linear"},
    "general": {"target": "general"},
    "minlogit": {"target": "minlogit", "peers": 2},
}


def train(folder, name, processes):
    small = Small(
        folder, "kdcl", config=FORMS[name], processes=processes, float64=True, train={"freeze_bn": True},
        # Three held-out batches, so that the processes do not have equally many.
        data={"held_out": lambda: EvaluationLoader(images(12, 8, 1), batch_size=4, device="cpu")},
    )  # fmt: skip
    small.run()
    return small.tensors()


def live(folder, processes, watcher=None):
    small = Small(folder, "kdcl", config=FORMS["general"], processes=processes, watcher=watcher)
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
