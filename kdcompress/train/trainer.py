"""The training loop: one for every method, and it names none.

A run is phases of epochs of steps. What a step computes is the method's; what surrounds it (schedules,
processes, logs, held-out choice, checkpoints, signals) is here, and what moves parameters is `Minimiser`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdcompress.data.batch import Batch
from kdcompress.data.loader import TrainingLoader
from kdcompress.errors import Interrupted, UserError
from kdcompress.methods.base import Method, Phase
from kdcompress.progress import Bar, Progress
from kdcompress.train import checkpoint, optimisers
from kdcompress.train.average import Average
from kdcompress.train.choice import Choice
from kdcompress.train.interrupt import StopRequest, deferred_stop
from kdcompress.train.job import Job, Outcome
from kdcompress.train.journal import Journal
from kdcompress.train.minimiser import Minimiser
from kdcompress.train.processes import Processes

STEPS_BETWEEN_SAMPLES = 50
"""Every so many optimiser steps a line goes to `steps.jsonl`."""


@dataclass(slots=True)
class Position:
    """Where a training stands; what is next, not what is done."""

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    phase_step: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0


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
        self.method, self.loader, self.job = method, loader, job
        self.processes, self.journal, self.progress = processes, journal, progress
        student = method.networks.student
        self.average = None if job.train.ema is None else Average(student.network, job.train.ema)
        self.choice = Choice(method, self.average, held_out, processes)
        self.at = Position()
        self.sums: dict[str, Tensor] = {}
        self.path = job.folder / f"{job.label}.pt"
        self.steps_per_epoch = -(-loader.steps // job.train.accumulate)
        self.total_steps = job.epochs * self.steps_per_epoch
        if job.train.max_steps is not None:
            self.total_steps = min(self.total_steps, job.train.max_steps)
        self.sets = method.parameter_sets()
        self.phases = method.phases()
        if job.train.compile:
            student.compiled = torch.compile(student.network)
            if method.networks.teacher is not None:
                method.networks.teacher.compile()

    def run(self) -> Outcome:
        """Trains to the end, from the checkpoint if there is one.

        Raises:
            Interrupted: Ctrl-C or SIGTERM came; the checkpoint is written.
            NonFiniteLoss: A term is not finite; nothing moved on it.
            WorldError: Another process ended, or the disk is full.
        """
        state = checkpoint.load(self.path)
        if state is not None:
            self._restore(state)
        # Started from one seed, but another machine may round a random number differently.
        self.processes.share(self._modules().values(), parameters=True)
        ends = phase_ends(self.phases, self.job.epochs)
        description = f"{self.job.label}: {self.method.networks.student.model}"
        with deferred_stop() as stop, self.progress.bar(description, self.total_steps, self.at.step) as bar:
            for number in range(self.at.phase, len(self.phases)):
                if number != self.at.phase:
                    self.at.phase, self.at.phase_step = number, 0
                start = ends[number - 1] if number else 0
                if self._done():
                    continue
                in_phase = state if state is not None and state["position"]["phase"] == number else None
                self._run_phase(self.phases[number], start, ends[number], in_phase, stop, bar)
        return self.choice.outcome(self.job.train.ship, self.at.epoch, self.at.seconds)

    def _run_phase(
        self, phase: Phase, start: int, end: int, state: dict[str, Any] | None, stop: StopRequest, bar: Bar
    ) -> None:
        self.method.on_phase_start(phase.name)
        for name, held in self.sets.items():
            for parameter in held.parameters:
                parameter.requires_grad_(name in phase.sets)
        moving = {name: self.sets[name] for name in phase.sets}
        minimise = Minimiser(self.method, moving, self.job, self.processes)
        if state is not None:
            minimise.load_state_dict(state["optimisers"])
        steps_before = self.at.step - self.at.phase_step
        phase_steps = min((end - start) * self.steps_per_epoch, self.total_steps - steps_before)
        while self.at.epoch < end and not self._done():
            rate = self._run_steps(phase, phase_steps, minimise, stop, bar)
            self._close_epoch(phase, rate, minimise)
            if self.processes.largest(float(stop.requested)):
                raise self._interrupted()
        for held in self.sets.values():
            for parameter in held.parameters:
                parameter.requires_grad_(True)

    def _run_steps(
        self, phase: Phase, phase_steps: int, minimise: Minimiser, stop: StopRequest, bar: Bar
    ) -> float:
        """The steps of one epoch, or the rest of them after a resume; gives the last learning rate."""
        at, job = self.at, self.job
        accumulate, batches = job.train.accumulate, self.loader.steps
        self._train_mode(phase)
        self.method.on_epoch_start(at.epoch, job.epochs)
        if at.batch == 0:
            self.sums, at.epoch_seconds = {}, 0.0
        saved = last = time.perf_counter()
        rate = 0.0
        for number, batch in enumerate(self.loader.epoch(at.epoch, at.batch), start=at.batch):
            place = number % accumulate
            # The last step of an epoch may have fewer batches left than the others.
            parts = min(accumulate, batches - (number - place))
            if place == 0:
                factor = optimisers.factor(job.optim, at.phase_step, phase_steps, self.steps_per_epoch)
                rate = minimise.set_rate(factor)
            minimise.begin(at.step, place, parts)
            self.method.step(batch, minimise)
            for name, value in minimise.terms.items():
                self.sums[name] = self.sums[name] + value if name in self.sums else value
            if place + 1 < parts:
                continue
            self.method.after_step(batch)
            if self.average is not None:
                self.average.update(at.step)
            at.step, at.phase_step, at.batch = at.step + 1, at.phase_step + 1, number + 1
            now = time.perf_counter()
            at.seconds, at.epoch_seconds, last = at.seconds + now - last, at.epoch_seconds + now - last, now
            bar.advance(1, f"epoch {at.epoch + 1}/{job.epochs}  {self._images_per_s():,.0f} images/s")
            if at.step % STEPS_BETWEEN_SAMPLES == 0:
                self._log_step(minimise, rate)
            if at.batch == batches or self._done():
                break  # the end of an epoch saves in any case
            # Every process must save and stop at the same step, so they ask each other.
            due = now - saved > 60 * job.train.checkpoint_minutes
            wish = self.processes.largest(2.0 if stop.requested else float(due))
            if wish:
                self._save(minimise)
                saved = now
            if wish == 2:
                raise self._interrupted()
        return rate

    def _close_epoch(self, phase: Phase, rate: float, minimise: Minimiser) -> None:
        at, label = self.at, self.job.label
        began = time.perf_counter()
        self.method.on_epoch_end()
        self.processes.share(self._modules().values())
        figures = self.choice.score(at.epoch + 1)
        self.journal.epoch(
            {
                "phase": label if len(self.phases) == 1 else f"{label}/{phase.name}",
                "epoch": at.epoch + 1,
                "step": at.step,
                "seconds": round(at.epoch_seconds + time.perf_counter() - began, 3),
                "images_per_s": round(self._images_per_s(), 1),
                "lr": rate,
                "losses": {name: value.item() / at.batch for name, value in self.sums.items()},
                "held_out": figures,
            }
        )
        at.epoch, at.batch = at.epoch + 1, 0
        self._save(minimise)

    def _images_per_s(self) -> float:
        return self.at.batch * self.loader.batch_size / self.at.epoch_seconds

    def _train_mode(self, phase: Phase) -> None:
        freeze = self.job.train.freeze_bn or phase.freeze_bn
        for network in (self.method.networks.student, *self.method.networks.peers):
            network.train_mode(True, freeze_bn=freeze)
        self.method.train()
        if self.job.train.freeze_bn:
            for layer in self.method.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    def _log_step(self, minimise: Minimiser, rate: float) -> None:
        losses = {name: value.item() for name, value in minimise.terms.items()}
        self.journal.step({"phase": self.job.label, "step": self.at.step, "lr": rate, "losses": losses})

    def _done(self) -> bool:
        return self.at.step >= self.total_steps

    def _interrupted(self) -> Interrupted:
        return Interrupted(
            f"stopped at step {self.at.step} of {self.total_steps}; go on with: {self.job.resume_hint}"
        )

    def _modules(self) -> dict[str, nn.Module]:
        networks = self.method.networks
        modules = {"student": networks.student.network, "method": self.method}
        modules.update({f"peer{i + 1}": peer.network for i, peer in enumerate(networks.peers)})
        if self.average is not None:
            modules["ema"] = self.average.network
        return modules

    def _save(self, minimise: Minimiser) -> None:
        self.processes.share(self._modules().values())
        random_states = self.processes.gather(_random_state(self.processes.device))
        if self.processes.first:
            state = {
                "position": asdict(self.at),
                "modules": {name: module.state_dict() for name, module in self._modules().items()},
                "optimisers": minimise.state_dict(),
                "choice": self.choice.state_dict(),
                "sums": self.sums,
                "log_sizes": self.journal.sizes(),
                "random_states": random_states,
            }
            checkpoint.save(self.path, state)
        self.processes.wait()

    def _restore(self, state: dict[str, Any]) -> None:
        for name, module in self._modules().items():
            module.load_state_dict(state["modules"][name])
        self.at = Position(**state["position"])
        self.sums = {name: value.to(self.processes.device) for name, value in state["sums"].items()}
        self.choice.load_state_dict(state["choice"])
        if not self._done():  # else what stands behind it is of a later training
            self.journal.cut_back(state["log_sizes"])
        # With more processes than before, the new ones keep the seeds they were started with.
        if self.processes.rank < len(state["random_states"]):
            _set_random_state(state["random_states"][self.processes.rank], self.processes.device)


def phase_ends(phases: list[Phase], epochs: int) -> list[int]:
    """The epoch at which each phase ends: its share of the epochs, but at least one.

    Args:
        phases: Their shares add up to 1.
        epochs: Of all of them together.

    Raises:
        UserError: There are fewer epochs than phases.
    """
    if epochs < len(phases):
        names = ", ".join(phase.name for phase in phases)
        raise UserError(
            f"train.epochs: {epochs}, but the method has {len(phases)} phases ({names}): one each"
        )
    ends: list[int] = []
    share = 0.0
    for number, phase in enumerate(phases, start=1):
        share += phase.share
        before = ends[-1] if ends else 0
        ends.append(min(max(round(share * epochs), before + 1), epochs - (len(phases) - number)))
    return ends


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
