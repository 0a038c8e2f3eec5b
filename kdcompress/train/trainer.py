"""The training loop: one for every method, and it names none.

A run is phases of epochs of steps. What a step computes is the method's; what surrounds it (precision,
accumulation, clipping, the finite check, processes, schedules, logs, held-out choice, checkpoints, signals)
is here.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdcompress.data.batch import Batch
from kdcompress.data.loader import TrainingLoader
from kdcompress.errors import Interrupted, NonFiniteLoss
from kdcompress.methods.base import Candidate, Method, ParameterSet, Phase
from kdcompress.progress import Bar, Progress
from kdcompress.recipe import OptimSection, TrainSection
from kdcompress.train import checkpoint, optimisers
from kdcompress.train.evaluate import predict, score
from kdcompress.train.interrupt import StopRequest, deferred_stop
from kdcompress.train.journal import Journal
from kdcompress.train.processes import Processes

STEPS_BETWEEN_SAMPLES = 50
"""Every so many optimiser steps a line goes to `steps.jsonl`."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one training is asked to do.

    Args:
        label: teacher, student or baseline; names the log lines and the checkpoint.
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


@dataclass(slots=True)
class Position:
    """Where a training stands; what is next, not what is done."""

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    phase_step: int = 0
    seconds: float = 0.0


class Trainer:
    """Trains what a method asks for.

    Args:
        method: Placed on its device.
        loader: The training batches.
        held_out: Batches to choose on; None: the last epoch is the choice.
        job: What the recipe asks of the loop.
        processes: This process among all.
        journal: Where lines go.
        progress: What a watcher sees.
    """

    def __init__(
        self,
        method: Method,
        loader: TrainingLoader,
        held_out: Iterable[Batch] | None,
        job: Job,
        processes: Processes,
        journal: Journal,
        progress: Progress,
    ) -> None:
        self.method, self.loader, self.held_out, self.job = method, loader, held_out, job
        self.processes, self.journal, self.progress = processes, journal, progress
        self.student = method.networks.student
        self.ema = copy.deepcopy(self.student.network) if job.train.ema else None
        self.at = Position()
        self.best: dict[str, Any] | None = None
        self.last: dict[str, Any] | None = None
        self.sums: dict[str, Tensor] = {}
        self.path = job.folder / f"{job.label}.pt"
        self.steps_per_epoch = -(-loader.steps // job.train.accumulate)
        self.total_steps = min(job.epochs * self.steps_per_epoch, job.train.max_steps or 10**12)
        self.sets = method.parameter_sets()
        if job.train.compile:
            self.student.compiled = torch.compile(self.student.network)

    def run(self) -> Outcome:
        """Trains to the end, from the checkpoint if there is one.

        Raises:
            Interrupted: Ctrl-C or SIGTERM came; the checkpoint is written.
            NonFiniteLoss: A term is not finite; nothing moved on it.
        """
        state = checkpoint.load(self.path, self.processes.device)
        if state is not None:
            self._restore(state)
        phases = self.method.phases()
        ends = _phase_ends(phases, self.job.epochs)
        description = f"{self.job.label}: {self.student.model}"
        with deferred_stop() as stop, self.progress.bar(description, self.total_steps, self.at.step) as bar:
            for number in range(self.at.phase, len(phases)):
                if number != self.at.phase:
                    self.at.phase, self.at.phase_step = number, 0
                start = ends[number - 1] if number else 0
                if ends[number] == start or self._done():
                    continue
                in_phase = state if state is not None and state["position"]["phase"] == number else None
                self._run_phase(phases[number], start, ends[number], in_phase, stop, bar)
        return self._outcome()

    def _run_phase(
        self, phase: Phase, start: int, end: int, state: dict[str, Any] | None, stop: StopRequest, bar: Bar
    ) -> None:
        for name, parameters in self.sets.items():
            for parameter in parameters.parameters:
                parameter.requires_grad_(name in phase.sets)
        minimise = Minimiser(
            self.method, {name: self.sets[name] for name in phase.sets}, self.job, self.processes
        )
        if state is not None:
            minimise.load_state_dict(state["optimisers"])
        steps_before = self.at.step - self.at.phase_step
        phase_steps = min((end - start) * self.steps_per_epoch, self.total_steps - steps_before)
        while self.at.epoch < end and not self._done():
            self._run_epoch(phase, phase_steps, minimise, stop, bar)
        for parameters in self.sets.values():
            for parameter in parameters.parameters:
                parameter.requires_grad_(True)

    def _run_epoch(
        self, phase: Phase, phase_steps: int, minimise: Minimiser, stop: StopRequest, bar: Bar
    ) -> None:
        at, train = self.at, self.job.train
        self._train_mode(phase)
        self.method.on_epoch_start(at.epoch, self.job.epochs)
        if at.batch == 0:
            self.sums = {}
        images, seconds_before, began = 0, at.seconds, time.perf_counter()
        saved, rate = began, 0.0
        for number, batch in enumerate(self.loader.epoch(at.epoch, at.batch), start=at.batch):
            opens = number % train.accumulate == 0
            closes = (number + 1) % train.accumulate == 0 or number + 1 == self.loader.steps
            if opens:
                factor = optimisers.factor(self.job.optim, at.phase_step, phase_steps, self.steps_per_epoch)
                rate = minimise.set_rate(factor)
            minimise.opens, minimise.closes, minimise.step = opens, closes, at.step
            self.method.step(batch, minimise)
            self._add(minimise.terms)
            images += len(batch) * self.processes.world
            if not closes:
                continue
            self.method.after_step(batch)
            self._update_ema()
            at.step, at.phase_step, at.batch = at.step + 1, at.phase_step + 1, number + 1
            now = time.perf_counter()
            bar.advance(1, f"epoch {at.epoch + 1}/{self.job.epochs}  {images / (now - began):,.0f} images/s")
            if at.step % STEPS_BETWEEN_SAMPLES == 0:
                self._log_step(minimise, rate)
            at.seconds = seconds_before + now - began
            if self._done():
                break
            # Every process must save and stop at the same step, so they ask each other.
            due = now - saved > 60 * train.checkpoint_minutes
            wish = self.processes.largest(2.0 if stop.requested else float(due))
            if wish:
                self._save(minimise)
                saved = now
            if wish == 2:
                raise Interrupted(
                    f"stopped at step {at.step} of {self.total_steps}; go on with: {self.job.resume_hint}"
                )
        self._close_epoch(phase, rate, images, began, minimise)

    def _close_epoch(self, phase: Phase, rate: float, images: int, began: float, minimise: Minimiser) -> None:
        at = self.at
        trained_seconds = time.perf_counter() - began
        batches, at.batch, at.epoch = max(1, at.batch), 0, at.epoch + 1
        self.processes.share_buffers((*self.method.networks.trained(), self.method))
        figures = self._choose()
        self.journal.epoch(
            {
                "phase": self.job.label
                if len(self.method.phases()) == 1
                else f"{self.job.label}/{phase.name}",
                "epoch": at.epoch,
                "step": at.step,
                "seconds": round(time.perf_counter() - began, 3),
                "images_per_s": round(images / trained_seconds, 1),
                "lr": rate,
                "losses": {name: value.item() / batches for name, value in self.sums.items()},
                "held_out": figures,
            }
        )
        self._save(minimise)

    def _choose(self) -> dict[str, Any] | None:
        """Scores every candidate on held-out data and remembers the best; ties go to the earlier one."""
        if self.held_out is None:
            return None
        scores: dict[str, dict[str, Any]] = {}
        for name, candidate in self._candidates().items():
            if self.processes.first:
                scores[name] = score(*predict(candidate.module, self.student, self.held_out))
        scores = self.processes.agree(scores)
        name = max(scores, key=lambda key: scores[key]["top1"])
        self.last = scores[self._default()]
        if self.best is None or scores[name]["top1"] > self.best["top1"]:
            self.best = {
                **scores[name],
                "candidate": name,
                "epoch": self.at.epoch,
                "state": self._state_of(name),
            }
        return self.last if len(scores) == 1 else {**self.last, "candidates": scores}

    def _candidates(self) -> dict[str, Candidate]:
        candidates = self.method.candidates()
        if self.ema is not None:
            candidates["ema"] = Candidate(self.ema, self.student.model)
        return candidates

    def _default(self) -> str:
        """What ships where nothing is held out: the average if one was asked for, else the student."""
        return "ema" if self.ema is not None else next(iter(self.method.candidates()))

    def _state_of(self, name: str) -> dict[str, Tensor]:
        state = self._candidates()[name].module.state_dict()
        return {key: value.detach().cpu().clone() for key, value in state.items()}

    def _outcome(self) -> Outcome:
        figures = None if self.best is None else {k: v for k, v in self.best.items() if k != "state"}
        if self.best is not None and self.job.train.ship == "best":
            name, epoch, state = self.best["candidate"], self.best["epoch"], self.best["state"]
        else:
            name, epoch = self._default(), self.at.epoch
            state = self._state_of(name)
        model = self._candidates()[name].model
        return Outcome(state, model, name, epoch, self.last, figures, self.at.seconds)

    def _train_mode(self, phase: Phase) -> None:
        freeze = self.job.train.freeze_bn or phase.freeze_bn
        for network in (self.method.networks.student, *self.method.networks.peers):
            network.train_mode(True, freeze_bn=freeze)
        self.method.train()
        if self.job.train.freeze_bn:
            for layer in self.method.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    @torch.no_grad()
    def _update_ema(self) -> None:
        if self.ema is None or self.job.train.ema is None:
            return
        # Early on the average follows the weights, or it would remember the initialisation for 1/(1 - decay)
        # steps.
        decay = min(self.job.train.ema, (1 + self.at.step) / (10 + self.at.step))
        for average, value in zip(self.ema.parameters(), self.student.network.parameters(), strict=True):
            average.lerp_(value.detach(), 1 - decay)
        for mine, theirs in zip(self.ema.buffers(), self.student.network.buffers(), strict=True):
            mine.copy_(theirs)

    def _add(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _log_step(self, minimise: Minimiser, rate: float) -> None:
        losses = {name: value.item() for name, value in minimise.terms.items()}
        self.journal.step({"phase": self.job.label, "step": self.at.step, "lr": rate, "losses": losses})

    def _done(self) -> bool:
        return self.at.step >= self.total_steps

    def _modules(self) -> dict[str, nn.Module]:
        networks = self.method.networks
        modules = {"student": networks.student.network, "method": self.method}
        modules.update({f"peer{i + 1}": peer.network for i, peer in enumerate(networks.peers)})
        if self.ema is not None:
            modules["ema"] = self.ema
        return modules

    def _save(self, minimise: Minimiser) -> None:
        if self.processes.world > 1:
            self.processes.share_buffers((*self.method.networks.trained(), self.method))
        if self.processes.first:
            state = {
                "position": asdict(self.at),
                "modules": {name: module.state_dict() for name, module in self._modules().items()},
                "optimisers": minimise.state_dict(),
                "best": self.best,
                "last": self.last,
                "sums": self.sums,
                "log_sizes": self.journal.sizes(),
                "rng": _random_state(self.processes.device),
            }
            checkpoint.save(self.path, state)
        self.processes.wait()

    def _restore(self, state: dict[str, Any]) -> None:
        for name, module in self._modules().items():
            module.load_state_dict(state["modules"][name])
        self.at = Position(**state["position"])
        self.best, self.last, self.sums = state["best"], state["last"], state["sums"]
        if self.best is not None:
            self.best["state"] = {key: value.cpu() for key, value in self.best["state"].items()}
        self.journal.cut_back(state["log_sizes"])
        _set_random_state(state["rng"], self.processes.device)


class Minimiser:
    """Moves parameter sets down a loss; the only place that knows of scalers, accumulation and processes.

    Args:
        method: Whose losses are minimised.
        sets: What this phase trains.
        job: Clipping, accumulation, optimiser settings.
        processes: More than one: gradients are averaged by DistributedDataParallel around the losses.
    """

    def __init__(self, method: Method, sets: dict[str, ParameterSet], job: Job, processes: Processes) -> None:
        self.sets, self.job = sets, job
        self.optimisers = {name: optimisers.build(job.optim, s) for name, s in sets.items()}
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=job.fp16)
        self.opens = self.closes = True
        self.step = 0
        self.terms: dict[str, Tensor] = {}
        self._wrapped: nn.Module = method
        if processes.world > 1:
            ids = [processes.device.index] if processes.device.type == "cuda" else None
            self._wrapped = DistributedDataParallel(_Trainable(method), device_ids=ids)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The method's losses; with several processes, through the wrapper that averages their gradients."""
        between = isinstance(self._wrapped, DistributedDataParallel) and not self.closes
        with self._wrapped.no_sync() if between else contextlib.nullcontext():  # type: ignore[operator]
            terms: dict[str, Tensor] = self._wrapped(batch)
        return terms

    def __call__(self, terms: dict[str, Tensor], *sets: str) -> None:
        """Checks the terms, accumulates their gradient, and at its border moves the sets."""
        self.terms = {name: value.detach() for name, value in terms.items()}
        self._check_finite()
        names = sets or tuple(self.sets)
        if self.opens:
            for name in names:
                self.optimisers[name].zero_grad(set_to_none=True)
        total = torch.stack([value.float() for value in terms.values()]).sum() / self.job.train.accumulate
        # A loss of some sets must not leave gradients behind in the others.
        only = None if len(names) == len(self.sets) else [p for n in names for p in self.sets[n].parameters]
        torch.autograd.backward(self.scaler.scale(total), inputs=only)
        if not self.closes:
            return
        for name in names:
            if self.job.train.clip_norm is not None:
                self.scaler.unscale_(self.optimisers[name])
                nn.utils.clip_grad_norm_(self.sets[name].parameters, self.job.train.clip_norm)
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

    def _check_finite(self) -> None:
        values = torch.stack([value.float() for value in self.terms.values()])
        if bool(torch.isfinite(values).all()):
            return
        bad = [f"{name} = {value.item()}" for name, value in self.terms.items() if not torch.isfinite(value)]
        raise NonFiniteLoss(
            f"{self.job.label}, step {self.step + 1}: the loss is not finite ({', '.join(bad)}); "
            "the optimiser has not moved. Lower optim.lr, set train.clip_norm, or set train.precision: fp32"
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


def _phase_ends(phases: list[Phase], epochs: int) -> list[int]:
    """The epoch at which each phase ends; a phase whose share rounds to no epoch is skipped."""
    ends, share = [], 0.0
    for phase in phases:
        share += phase.share
        ends.append(round(share * epochs))
    ends[-1] = epochs
    return ends


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
