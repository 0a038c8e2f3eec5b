"""Averages the logged figures of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from kdcompress.train.processes import Processes

SECONDS = "_seconds"
"""Last part of the names of logged figures that are times."""


@dataclass(slots=True)
class Means:
    """Running means of the terms and of the other logged figures over the batches of an epoch.

    A figure counts in the batches that have it: the loss of every fiftieth step is no fiftieth of itself.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    logged: set[str] = field(default_factory=set)

    def add(self, terms: Mapping[str, Tensor], logged: Mapping[str, Tensor]) -> None:
        """Adds the figures of one batch."""
        for name, value in {**terms, **logged}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.logged |= logged.keys()

    def share(self, processes: Processes) -> None:
        """Replaces the sums of the terms, which each process has of its own batches, by their means."""
        names = sorted(self.sums.keys() - self.logged)
        if processes.world == 1 or not names:
            return
        means = processes.all_reduce_mean(torch.stack([self.sums[name] for name in names]))
        self.sums.update(zip(names, means.unbind(), strict=True))

    def values(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns the means of the terms and of the other figures."""
        means = {name: value.item() / self.counts[name] for name, value in self.sums.items()}
        losses = {name: value for name, value in means.items() if name not in self.logged}
        return losses, {name: value for name, value in means.items() if name in self.logged}

    def time_shares(self, seconds: float) -> dict[str, float]:
        """Returns, for every logged figure NAME_seconds, its sum's share of a time as NAME_time_share.

        Args:
            seconds: The time, such as that of the epoch so far.
        """
        timed = sorted(name for name in self.logged if name.endswith(SECONDS))
        return {f"{n.removesuffix(SECONDS)}_time_share": self.sums[n].item() / seconds for n in timed}

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resume needs."""
        return {"sums": self.sums, "counts": self.counts, "logged": sorted(self.logged)}

    @classmethod
    def restored(cls, state: dict[str, Any], batches: int, device: torch.device) -> Self:
        """Restores the means from a checkpoint.

        Args:
            state: The checkpoint; before version 0.2 it holds only "sums".
            batches: Number of batches behind it in the present epoch.
            device: Device of the sums.
        """
        own = state.get("means") or {
            "sums": state["sums"], "counts": dict.fromkeys(state["sums"], batches), "logged": [],
        }  # fmt: skip
        sums = {name: value.to(device) for name, value in own["sums"].items()}
        return cls(sums, dict(own["counts"]), set(own["logged"]))
