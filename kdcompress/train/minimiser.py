"""The one place that moves parameters: scaling, accumulation, processes, clipping and the finite check."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdcompress.data.batch import Batch
from kdcompress.errors import NonFiniteLoss
from kdcompress.methods.base import Method, ParameterSet
from kdcompress.train import optimisers
from kdcompress.train.job import Job
from kdcompress.train.processes import Processes

# Buffers are shared at the borders of epochs and checkpoints, not at every step. The argument was renamed in
# torch 2.13, which warns of the old name.
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_BUFFERS_STAY: dict[str, Any] = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}


class Minimiser:
    """Moves parameter sets down a loss; what a method's `step` is handed.

    Args:
        method: Whose losses are minimised.
        sets: What this phase trains.
        job: Clipping, accumulation, optimiser settings.
        processes: Terms and, by DistributedDataParallel around the losses, gradients are averaged over them.

    Attributes:
        terms: Of the present batch, means over the processes, without gradients.
    """

    def __init__(self, method: Method, sets: dict[str, ParameterSet], job: Job, processes: Processes) -> None:
        self.sets, self.job, self.processes = sets, job, processes
        self._method = method
        self._wrapped: DistributedDataParallel | None = None
        if processes.world > 1:
            ids = [processes.device.index] if processes.device.type == "cuda" else None
            self._wrapped = DistributedDataParallel(_Trainable(method), ids, **_BUFFERS_STAY)
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

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The method's losses, through the wrapper that averages their gradients over the processes."""
        if self._wrapped is None:
            return self._method.losses(batch)
        # What is only accumulated need not be averaged yet: the last batch of a step carries the sum.
        with contextlib.nullcontext() if self._closes else self._wrapped.no_sync():
            terms: dict[str, Tensor] = self._wrapped(batch)
        return terms

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
        assert only is None or self.processes.world == 1, "DistributedDataParallel moves all sets of a phase"
        torch.autograd.backward(self.scaler.scale(total), inputs=only)
        if not self._closes:
            return
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


class _Trainable(nn.Module):
    """What DistributedDataParallel must see: the method's parameters and those of the networks beside it."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        self.networks = nn.ModuleList(method.networks.trained())

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.method(batch)
        return terms
