"""The one place that updates parameters: loss scaling, accumulation, processes, clipping, finite checks."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdcompress.data.batch import Batch
from kdcompress.errors import NonFiniteLoss
from kdcompress.methods.base import Method, ParameterSet
from kdcompress.networks.tapped import wide
from kdcompress.recipe import OptimSection
from kdcompress.train import optimisers
from kdcompress.train.finite import LateCheck, reads_late
from kdcompress.train.job import Job
from kdcompress.train.processes import Processes

FP16_SKIPS = 25
"""With fp16 a step that overflows is skipped and the loss scale halved. So many in a row mean divergence: the
scale of 2^16 has then fallen to 2^-9."""

_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_DDP: dict[str, Any] = {
    # Buffers are synchronised at the end of an epoch, not at every step. The argument was renamed in torch
    # 2.13, which warns of the old name.
    "forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False,
    # Nor at the beginning of a phase: the trainer has done that, and after a resume within an epoch each
    # process has batch-norm statistics of its own.
    "init_sync": False,
    # Gradients are parts of the buffers that travel, not copies of them.
    "gradient_as_bucket_view": True,
}


class Minimiser:
    """Updates parameter sets by gradient descent; the `minimise` argument of a method's `step`.

    Several processes average their gradients in one of two ways, which a method does not notice.
    DistributedDataParallel serves the ordinary case: one parameter set and the default `step`. It demands
    that `losses` runs once per step and that every parameter takes part. For every other method the gradients
    are averaged after the backward pass by one all-reduce of all of them together; then parts of the sets,
    several calls of `losses`, unused parameters and `torch.autograd.grad` are all allowed.

    Args:
        method: Its losses are minimised.
        sets: Parameter sets that this phase trains.
        job: Clipping, accumulation, optimiser settings.
        processes: Terms and gradients are averaged over them.
        earlier: Minimiser of the phase before, to continue its optimisers; None: start with fresh ones.

    Attributes:
        terms: Terms of the present batch, without gradients: means over the processes, or with `late` this
            process's own.
        logged: Figures of the present batch that are not minimised.
        late: True if values are checked by `check`, some steps later, so that no step waits for the device.
            With fp16 the loss scale is read at every step in any case.
    """

    def __init__(
        self,
        method: Method,
        sets: dict[str, ParameterSet],
        job: Job,
        processes: Processes,
        earlier: Minimiser | None = None,
    ) -> None:
        self.sets, self.job, self.processes = sets, job, processes
        self._method = method
        self._wrapped: DistributedDataParallel | None = None
        if processes.world > 1 and needs_no_more_than_ddp(method):
            ids = [processes.device.index] if processes.device.type == "cuda" else None
            self._wrapped = DistributedDataParallel(_Trainable(method), ids, **_DDP)
        self.optimisers = {
            name: optimisers.build(self._optim(name), parameters) for name, parameters in sets.items()
        }
        if earlier is not None:
            self.optimisers |= {n: o for n, o in earlier.optimisers.items() if n in self.optimisers}
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=job.fp16)
        self._check = LateCheck(processes.device) if reads_late(processes.device) and not job.fp16 else None
        self.late = self._check is not None
        if self._check is not None:
            for optimiser in self.optimisers.values():
                # The fused forms change nothing while this is 1.
                optimiser.found_inf = self._check.found  # type: ignore[attr-defined]
        self.terms: dict[str, Tensor] = {}
        self.logged: dict[str, Tensor] = {}
        self._skips_in_a_row: dict[str, int] = {}
        self._last_in_step = True
        # Sets that hold gradients of earlier batches of the present step.
        self._accumulated: set[str] = set()
        self._batches = 1
        self._step = 0

    def begin(self, step: int, place: int, batches: int) -> None:
        """Announces the coming batch.

        Args:
            step: 0-based optimiser step that it belongs to.
            place: 0-based among the batches of that step.
            batches: Number of batches that the step accumulates.
        """
        self._step, self._batches = step, batches
        self._last_in_step = place + 1 == batches
        if place == 0:
            self._accumulated.clear()
        self.terms, self.logged = {}, {}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the method's losses; their gradients will be averaged over the processes."""
        if self._wrapped is None:
            return self._method.losses(batch)
        # Batches that are only accumulated need no averaging yet: the last batch of a step carries the sum.
        with contextlib.nullcontext() if self._last_in_step else self._wrapped.no_sync():
            terms: dict[str, Tensor] = self._wrapped(batch)
        return terms

    @property
    def is_last_batch(self) -> bool:
        """True in the last batch of an optimiser step, in which a call updates parameters."""
        return self._last_in_step

    def rate(self, name: str) -> float:
        """Returns the present learning rate of a parameter set."""
        return float(self.optimisers[name].param_groups[0]["lr"])

    def log(self, figures: Mapping[str, float | Tensor]) -> None:
        """Adds scalars to the log that are not minimised; in a run of several processes, the first one's."""
        device = self.processes.device
        for name, value in figures.items():
            self.logged[name] = (
                value.detach().to(device, torch.float32)
                if isinstance(value, Tensor)
                else torch.full((), value, device=device)  # a copy from the CPU would wait for the device
            )

    def __call__(self, terms: Mapping[str, Tensor], *sets: str) -> None:
        """Checks the terms, accumulates their gradients, and with a step's last batch updates the sets.

        Raises:
            NonFiniteLoss: In all processes, if a term is not finite in any of them; nothing was updated. With
                `late` it is `check` that raises it.
        """
        stacked = torch.stack([wide(value) for value in terms.values()])
        means, finite = self._means(terms, stacked.detach())
        if finite:
            self.terms.update(means)
        names = sets or tuple(self.sets)
        for name in names:
            # A method may leave a set to a later batch of the step than the first.
            if name not in self._accumulated:
                self.optimisers[name].zero_grad(set_to_none=True)
        total = stacked.sum() / self._batches
        # A loss of some sets must not leave gradients behind in the others.
        only = None if len(names) == len(self.sets) else [p for n in names for p in self.sets[n].parameters]
        torch.autograd.backward(self.scaler.scale(total), inputs=only)
        if not self._last_in_step:
            self._accumulated.update(names)
            return
        self._accumulated.difference_update(names)
        if self.processes.world > 1 and self._wrapped is None:
            self.processes.average_gradients(p for n in names for p in self.sets[n].parameters)
        if self.job.train.clip_norm is not None:
            for name in names:
                self._clip(name, self.job.train.clip_norm)
        for name in names:
            self.scaler.step(self.optimisers[name])
        self._update_scale(names, means, finite)

    def check(self) -> None:
        """Reads the late checks of the steps so far; all processes must call it at the same step.

        Raises:
            NonFiniteLoss: In all processes, if a value was not finite in any of them. This process updated
                nothing with its own value, and nothing is to be saved.
        """
        problem = None if self._check is None else self._check.read(self.processes)
        if problem is not None:
            raise self._not_finite(problem.what, problem.figures, problem.step)

    def set_rate(
        self, step: int, total_steps: int, steps_per_epoch: int, *, schedule: str = "recipe"
    ) -> float:
        """Sets the learning rate of every set by its own schedule.

        Args:
            step: 0-based optimiser step within the phase.
            total_steps: Number of steps of the phase.
            steps_per_epoch: Unit of milestones and warm-up that are given in epochs.
            schedule: Schedule of all sets in this phase after the warm-up; recipe: their own.

        Returns:
            Learning rate of the recipe's schedule.
        """

        def rate(optim: OptimSection) -> float:
            if schedule != "recipe":
                optim = optim.model_copy(update={"schedule": schedule})
            return optim.lr * optimisers.factor(optim, step, total_steps, steps_per_epoch)

        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = rate(self._optim(name)) * self.sets[name].lr_scale
        return rate(self.job.optim)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of every optimiser and of the loss scaler."""
        states = {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}
        return {"sets": states, "scaler": self.scaler.state_dict(), "skips_in_a_row": self._skips_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["sets"][name])
        if state["scaler"]:  # a training that began without fp16 has none
            self.scaler.load_state_dict(state["scaler"])
        skips = state.get("skips_in_a_row")
        self._skips_in_a_row = dict(skips) if isinstance(skips, dict) else {}

    def _optim(self, name: str) -> OptimSection:
        parameter_set = self.sets[name]
        optim = parameter_set.optim or self.job.optim
        own = {"weight_decay": parameter_set.weight_decay, "schedule": parameter_set.schedule}
        changes = {key: value for key, value in own.items() if value is not None}
        return optim.model_copy(update=changes) if changes else optim

    def _means(self, terms: Mapping[str, Tensor], stacked: Tensor) -> tuple[dict[str, Tensor], bool]:
        """Averages the terms over the processes: a NaN of one process is a NaN for all, so that all stop.

        With fp16 a term that is not finite is left to the loss scaler, which skips the step.
        """
        if self._check is not None:
            self._check.add(self._step, "the loss", tuple(terms), stacked)
            return dict(zip(terms, stacked.unbind(), strict=True)), True
        stacked = self.processes.all_reduce_mean(stacked)
        means = dict(zip(terms, stacked.unbind(), strict=True))
        finite = bool(stacked.isfinite().all())
        if not finite and not self.job.fp16:
            raise self._not_finite("the loss", _not_finite_terms(means))
        return means, finite

    def _update_scale(self, names: tuple[str, ...], means: dict[str, Tensor], finite: bool) -> None:
        before = self.scaler.get_scale() if self.job.fp16 else 1.0
        self.scaler.update()
        if not self.job.fp16:
            return
        skipped = self.scaler.get_scale() < before
        # By sets: the other calls of a step may succeed while these sets are never updated again.
        sets = "+".join(names)
        self._skips_in_a_row[sets] = self._skips_in_a_row.get(sets, 0) + 1 if skipped else 0
        if self._skips_in_a_row[sets] >= FP16_SKIPS:
            figures = "gradients overflow" if finite else _not_finite_terms(means)
            raise self._not_finite(f"after {FP16_SKIPS} skipped steps the loss", figures)

    def _clip(self, name: str, limit: float) -> None:
        self.scaler.unscale_(self.optimisers[name])
        norm = nn.utils.clip_grad_norm_(self.sets[name].parameters, limit)
        if self._check is not None:
            self._check.add(self._step, "the gradient", (f"norm of {name}",), norm.detach()[None])
        # With fp16 the scaler skips such a step and lowers its scale.
        elif not self.job.fp16 and not bool(norm.isfinite()):
            raise self._not_finite("the gradient", f"norm of {name} = {norm.item()}")

    def _not_finite(self, what: str, figures: str, step: int | None = None) -> NonFiniteLoss:
        step = self._step if step is None else step
        return NonFiniteLoss(
            f"{self.job.label}, step {step + 1}: {what} is not finite ({figures}); the optimiser has "
            "not moved. Lower optim.lr, set train.clip_norm, or set train.precision: fp32"
        )


def needs_no_more_than_ddp(method: Method) -> bool:
    """Returns True if DistributedDataParallel can average the method's gradients."""
    return not method.has_own_step and len(method.parameter_sets()) == 1


def _not_finite_terms(means: Mapping[str, Tensor]) -> str:
    figures = {name: value.item() for name, value in means.items()}
    return ", ".join(f"{name} = {value}" for name, value in figures.items() if not math.isfinite(value))


class _Trainable(nn.Module):
    """Registers the method's parameters and those of the networks for DistributedDataParallel."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        self.networks = nn.ModuleList(method.networks.trained())

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.method(batch)
        return terms
