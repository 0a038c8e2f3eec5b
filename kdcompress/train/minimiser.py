"""The one place that moves parameters: scaling, accumulation, processes, clipping and the finite check."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdcompress.errors import NonFiniteLoss
from kdcompress.methods.base import ParameterSet
from kdcompress.train import optimisers
from kdcompress.train.job import Job
from kdcompress.train.processes import Processes


class Minimiser:
    """Moves parameter sets down a loss; what a method's `step` is handed.

    Args:
        sets: What this phase trains.
        job: Clipping, accumulation, optimiser settings.
        processes: Gradients and terms are averaged over all of them.

    Attributes:
        terms: Of the present batch, means over the processes, without gradients.
    """

    def __init__(self, sets: dict[str, ParameterSet], job: Job, processes: Processes) -> None:
        self.sets, self.job, self.processes = sets, job, processes
        self.optimisers = {name: optimisers.build(job.optim, s) for name, s in sets.items()}
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=job.fp16)
        self.terms: dict[str, Tensor] = {}
        self._opens = self._closes = True
        self._batches = 1
        self._step = 0

    def begin(self, step: int, place: int, batches: int) -> None:
        """Says where the coming batch stands.

        Args:
            step: 0-based optimiser step that it belongs to.
            place: 0-based among the batches of that step.
            batches: How many that step accumulates.
        """
        self._step, self._batches = step, batches
        self._opens, self._closes = place == 0, place + 1 == batches
        self.terms = {}

    def __call__(self, terms: dict[str, Tensor], *sets: str) -> None:
        """Checks the terms, accumulates their gradient, and with a step's last batch moves the sets.

        Raises:
            NonFiniteLoss: In all processes, if a term is not finite in any of them; nothing has moved.
        """
        self.terms.update(self._checked(terms))
        names = sets or tuple(self.sets)
        if self._opens:
            for name in names:
                self.optimisers[name].zero_grad(set_to_none=True)
        total = torch.stack([value.float() for value in terms.values()]).sum() / self._batches
        # A loss of some sets must not leave gradients behind in the others.
        only = None if len(names) == len(self.sets) else [p for n in names for p in self.sets[n].parameters]
        torch.autograd.backward(self.scaler.scale(total), inputs=only)
        if not self._closes:
            return
        # Before anything reads them: every process must clip, skip and move alike.
        self.processes.average_gradients([p for name in names for p in self.sets[name].parameters])
        if self.job.train.clip_norm is not None:
            for name in names:
                self._clip(name, self.job.train.clip_norm)
        for name in names:
            self.scaler.step(self.optimisers[name])
        self.scaler.update()

    def set_rate(self, factor: float) -> float:
        """Sets the learning rate of every set.

        Args:
            factor: Of the schedule.

        Returns:
            The recipe's rate times the factor.
        """
        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = self.job.optim.lr * self.sets[name].lr_scale * factor
        return self.job.optim.lr * factor

    def state_dict(self) -> dict[str, Any]:
        """Of every optimiser and of the scaler."""
        states = {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}
        return {"sets": states, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["sets"][name])
        self.scaler.load_state_dict(state["scaler"])

    def _checked(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms' means over the processes; a NaN of one process is a NaN for all, so that all stop."""
        means = self.processes.mean(torch.stack([value.detach().float() for value in terms.values()]))
        if not bool(means.isfinite().all()):
            named = zip(terms, means.tolist(), strict=True)
            bad = [f"{name} = {value}" for name, value in named if not torch.tensor(value).isfinite()]
            raise self._not_finite("the loss", ", ".join(bad))
        return dict(zip(terms, means.unbind(), strict=True))

    def _clip(self, name: str, limit: float) -> None:
        self.scaler.unscale_(self.optimisers[name])
        norm = nn.utils.clip_grad_norm_(self.sets[name].parameters, limit)
        # With fp16 the scaler itself passes over such a step and lowers its scale.
        if not self.job.fp16 and not bool(norm.isfinite()):
            raise self._not_finite("the gradient", f"norm of {name} = {norm.item()}")

    def _not_finite(self, what: str, figures: str) -> NonFiniteLoss:
        return NonFiniteLoss(
            f"{self.job.label}, step {self._step + 1}: {what} is not finite ({figures}); the optimiser has "
            "not moved. Lower optim.lr, set train.clip_norm, or set train.precision: fp32"
        )
