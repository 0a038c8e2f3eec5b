"""What one training is asked to do, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kdcompress.recipe import OptimSection, TrainSection


@dataclass(frozen=True, slots=True)
class Job:
    """What one training is asked to do.

    Args:
        label: teacher or student; names the log lines and the checkpoint.
        folder: Where its checkpoint lives.
        train: The recipe's section.
        optim: The recipe's section.
        epochs: Of all phases together.
        fp16: Whether gradients need a loss scaler.
        resume_hint: The command that goes on after an interruption.
    """

    label: str
    folder: Path
    train: TrainSection
    optim: OptimSection
    epochs: int
    fp16: bool
    resume_hint: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training gave.

    Args:
        state: The chosen candidate's state dictionary, on the CPU.
        model: The `FAMILY/NAME` whose plain class it fits.
        candidate: Which candidate it is.
        epoch: 1-based, from which it is.
        last: Held-out figures of the last epoch's default candidate; None if nothing is held out.
        best: Held-out figures of the best epoch and candidate; None if nothing is held out.
        seconds: Of the training, all sessions together.
    """

    state: dict[str, Tensor]
    model: str
    candidate: str
    epoch: int
    last: dict[str, Any] | None
    best: dict[str, Any] | None
    seconds: float
