"""Finds losses and gradients that are not finite without waiting for the device at every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcompress.train.processes import Processes

STEPS_BETWEEN_READS = 25
"""Optimiser steps between two reads. Until then the records of so many steps stay on the device."""


@dataclass(frozen=True, slots=True)
class NotFinite:
    """The first value that was not finite.

    Args:
        step: 0-based optimiser step.
        what: "the loss" or "the gradient".
        figures: Names and values.
    """

    step: int
    what: str
    figures: str


def reads_late(device: torch.device) -> bool:
    """Returns True if reading a value would wait for the device; on a CPU it costs nothing."""
    return device.type != "cpu"


class LateCheck:
    """Records values on the device and reads them all together, every `STEPS_BETWEEN_READS` steps.

    From the first value on that is not finite, `found` is 1, and fused optimisers that were given it change
    no parameter any more: the weights stay those of the last good step until the check is read and the run
    ends.

    Args:
        device: Device of the values.

    Attributes:
        found: Float32 scalar, 0 or 1, for `found_inf` of torch's fused optimisers; changed in place.
    """

    def __init__(self, device: torch.device) -> None:
        self.found = torch.zeros((), device=device)
        self._records: list[tuple[int, str, tuple[str, ...], Tensor]] = []

    def add(self, step: int, what: str, names: Sequence[str], values: Tensor) -> None:
        """Records values of a step.

        Args:
            step: 0-based optimiser step.
            what: "the loss" or "the gradient".
            names: M names.
            values: `[M]` float32 without gradients.
        """
        # x - x is 0, or NaN if x is not finite: two operations where isfinite takes five.
        wrong = (values - values).ne(0).any()
        torch.maximum(self.found, wrong.to(self.found.dtype), out=self.found)
        self._records.append((step, what, tuple(names), values))

    def read(self, processes: Processes) -> NotFinite | None:
        """Reads the records since the last call, in one wait; None: all values were finite in all processes.

        Args:
            processes: All must call it after the same records; a value is then the mean over them.
        """
        records, self._records = self._records, []
        if not records:
            return None
        flat = processes.all_reduce_mean(torch.cat([values for *_, values in records])).tolist()
        for step, what, names, values in records:
            own, flat = flat[: len(values)], flat[len(values) :]
            figures = [f"{n} = {v}" for n, v in zip(names, own, strict=True) if not math.isfinite(v)]
            if figures:
                return NotFinite(step, what, ", ".join(figures))
        return None
