"""Settings and result of one training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from kdcompress.networks.tapped import Tapped
from kdcompress.recipe import OptimSection, TrainSection


@dataclass(frozen=True, slots=True)
class Job:
    """Settings of one training.

    Args:
        label: teacher, student, ...; names the log lines and the checkpoint.
        folder: Folder of its checkpoint.
        train: The recipe's section.
        optim: The recipe's section.
        epochs: Number of epochs of all phases together.
        fp16: True if gradients need a loss scaler.
        resume_hint: The command that continues after an interruption.
        class_names: By class number, for messages; empty: not known.
        exits: True if the method's early exits ship too, so that their states are recorded.
    """

    label: str
    folder: Path
    train: TrainSection
    optim: OptimSection
    epochs: int
    fp16: bool
    resume_hint: str
    class_names: tuple[str, ...] = ()
    exits: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one training.

    Args:
        state: State dictionary of the chosen candidate, on the CPU.
        candidate: Name of the chosen candidate.
        like: A network of its plain class, with its input normalisation.
        epoch: 1-based epoch of the chosen state.
        last: Held-out figures of the last epoch's default candidate; None if nothing is held out.
        best: Held-out figures of the chosen epoch and candidate; None if nothing is held out.
        seconds: Duration of the training, all sessions together.
        ensemble: State dictionaries of the ensemble's members, by name; empty if none ships.
        ensemble_best: Held-out figures of the ensemble at its chosen epoch; None if none ships or nothing is
            held out.
        candidates: Best held-out figures of each candidate, with their epoch; empty if nothing is held out.
        steps: Optimiser steps of the training.
        exits: State dictionaries of the early exits that belong to the chosen state, by stage; empty if none
            ship.
        bn_statistics: Facts about its batch-norm statistics (`train.choice`); None: they are the running
            ones.
    """

    state: dict[str, Tensor]
    candidate: str
    like: Tapped
    epoch: int
    last: dict[str, Any] | None
    best: dict[str, Any] | None
    seconds: float
    ensemble: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    ensemble_best: dict[str, Any] | None = None
    bn_statistics: dict[str, Any] | None = None
    candidates: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: int = 0
    exits: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """`FAMILY/NAME` of the plain class that the state fits."""
        return self.like.model
