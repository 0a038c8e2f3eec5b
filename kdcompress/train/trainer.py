"""The training loop of every method.

A training consists of phases and of epochs, both of steps. The method computes a step, `Minimiser`
updates the parameters, and everything around it (schedules, processes, logs, choice on held-out data,
checkpoints, signals) is here.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdcompress.data.loader import EvaluationLoader, TrainingLoader
from kdcompress.errors import Interrupted, UserError
from kdcompress.methods.base import Method, Phase
from kdcompress.networks.compiled import graphed_batch
from kdcompress.networks.load_state import load_state
from kdcompress.progress import Bar, Progress
from kdcompress.schemas.run import CheckpointFacts
from kdcompress.train import checkpoint
from kdcompress.train.average import Average
from kdcompress.train.bn_statistics import StatisticsImages
from kdcompress.train.choice import Choice
from kdcompress.train.finite import STEPS_BETWEEN_READS
from kdcompress.train.interrupt import StopRequest, deferred_stop
from kdcompress.train.job import Job, Outcome
from kdcompress.train.journal import Journal, describe_epoch
from kdcompress.train.means import Means
from kdcompress.train.minimiser import Minimiser
from kdcompress.train.processes import Processes, batch_norm_statistics

STEPS_BETWEEN_SAMPLES = 50
"""Optimiser steps between two lines of `steps.jsonl`."""
SINGLE_CLASS_EPOCHS = 3
"""Consecutive scored epochs with a single predicted class before a warning."""

STEPS_BETWEEN_ASKS, SECONDS_BETWEEN_ASKS = 20, 1.0
"""Steps after which several processes ask each other for an action again: fewer if they take longer than this
time, at least one."""
SAVE, SAVE_AND_STOP = 1.0, 2.0
"""Actions that the processes agree on after a step; the largest one of all counts."""


@dataclass(slots=True)
class Position:
    """Counters of a training: phase, epoch, batch and step that come next."""

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    phase_step: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0


class Trainer:
    """Runs one training of a method.

    Args:
        method: Placed on its device.
        loader: The training batches.
        held_out: This process's batches to choose the best epoch on; None: the last epoch is the choice.
        job: Settings of the training.
        processes: This process among all.
        journal: Receives the log lines.
        progress: Receives the progress and warnings.
        statistics: Images to re-estimate batch-norm statistics on; None: the running statistics are used.
    """

    def __init__(
        self,
        method: Method,
        loader: TrainingLoader,
        held_out: EvaluationLoader | None,
        job: Job,
        processes: Processes,
        journal: Journal,
        progress: Progress,
        statistics: StatisticsImages | None = None,
    ) -> None:
        self.method, self.loader, self.job = method, loader, job
        self.processes, self.journal, self.progress = processes, journal, progress
        student = method.networks.student
        self.average = None if job.train.ema is None else Average(student.network, job.train.ema)
        exits = method.early_exits() if job.exits else {}
        self.average_exits: Average | None = None
        if exits and job.train.ema is not None:
            self.average_exits = Average(nn.ModuleDict(exits), job.train.ema)
        averages = {} if self.average_exits is None else dict(self.average_exits.network.named_children())
        self.choice = Choice(
            method, self.average, held_out, processes, job.train.ship, statistics, exits=exits,
            average_exits=averages,
        )  # fmt: skip
        self.at = Position()
        self.means = Means()
        self.path = job.folder / f"{job.label}.pt"
        self.steps_per_epoch = -(-loader.steps // job.train.accumulate)
        self.total_steps = job.epochs * self.steps_per_epoch
        if job.train.max_steps is not None:
            self.total_steps = min(self.total_steps, job.train.max_steps)
        self.sets = method.parameter_sets()
        self.phases = method.phases()
        self._own_statistics: list[Tensor] | None = None
        self._single_class_epochs = 0
        self._next_ask = 0
        compiles, graphs = job.train.compile is True, job.train.cuda_graphs
        for network in (student, *method.networks.peers):
            network.compile(compiles, graphs=graphs)
        if compiles and method.networks.teacher is not None:
            method.networks.teacher.compile(graphs=graphs)

    def run(self) -> Outcome:
        """Trains to the end, from the checkpoint if there is one.

        Raises:
            Interrupted: Ctrl-C or SIGTERM came; the checkpoint is written.
            NonFiniteLoss: A term is not finite; nothing was updated with it.
            WorldError: Another process ended, or the disk is full.
        """
        # The others may be on machines that do not see the run folder.
        loaded = self.processes.broadcast(checkpoint.load(self.path) if self.processes.first else None)
        state: dict[str, Any] | None = None
        resumed_phase: int | None = None
        if loaded is not None:
            if loaded.warning is not None and self.processes.first:
                self.progress.warn(loaded.warning)
            with checkpoint.fitting(self.path):
                state = loaded.state
                facts = {"position": state["position"], "log_sizes": state["log_sizes"]}
                CheckpointFacts.model_validate(facts)
                resumed_phase = state["position"]["phase"]
                if resumed_phase >= len(self.phases):
                    raise IndexError(f"phase {resumed_phase} of {len(self.phases)}")
                self._restore(state)
        # Started from one seed, but another machine may round a random number differently.
        self.processes.broadcast_buffers(self._modules().values(), parameters=True)
        if self._own_statistics is not None:
            for tensor, value in zip(self._statistics(), self._own_statistics, strict=True):
                tensor.copy_(value)
        ends = phase_ends(self.phases, self.job.epochs, self.steps_per_epoch, self.total_steps)
        description = f"{self.job.label}: {self.method.networks.student.model}"
        minimise: Minimiser | None = None
        with deferred_stop() as stop, self.progress.bar(description, self.total_steps, self.at.step) as bar:
            for number in range(self.at.phase, len(self.phases)):
                if number != self.at.phase:
                    self.at.phase, self.at.phase_step = number, 0
                if self._done():
                    continue
                phase_state = state if resumed_phase == number else None
                minimise = self._run_phase(number, ends[number], phase_state, minimise, stop, bar)
        return dataclasses.replace(self.choice.outcome(self.at.epoch, self.at.seconds), steps=self.at.step)

    def _run_phase(
        self,
        number: int,
        end: int,
        state: dict[str, Any] | None,
        earlier: Minimiser | None,
        stop: StopRequest,
        bar: Bar,
    ) -> Minimiser:
        phase = self.phases[number]
        if number > 0 and state is None:
            # A phase may begin within an epoch: what the method copies then must be equal in all processes.
            self.processes.average_statistics(self._modules().values())
            self.processes.broadcast_buffers(self._modules().values())
        self.method.on_phase_start(phase.name, resumed=state is not None)
        for name, parameter_set in self.sets.items():
            for parameter in parameter_set.parameters:
                parameter.requires_grad_(name in phase.sets)
        trained_sets = {name: self.sets[name] for name in phase.sets}
        keeps = phase.keep_optimiser and number > 0
        minimise = Minimiser(self.method, trained_sets, self.job, self.processes, earlier if keeps else None)
        if state is not None:
            with checkpoint.fitting(self.path):
                minimise.load_state_dict(state["optimisers"])
        end = min(end, self.total_steps)
        while self.at.step < end:
            rate = self._run_steps(phase, end, minimise, stop, bar)
            if self.at.batch < self.loader.steps and not self._done():
                minimise.check()
                break  # the phase ends within the epoch, which the next phase closes
            self._close_epoch(phase, rate, minimise, bar)
            if self.processes.all_reduce_max(float(stop.requested)):
                raise self._interrupted()
        for parameter_set in self.sets.values():
            for parameter in parameter_set.parameters:
                parameter.requires_grad_(True)
        return minimise

    def _run_steps(self, phase: Phase, end: int, minimise: Minimiser, stop: StopRequest, bar: Bar) -> float:
        """Runs the remaining steps of one epoch, up to the phase's end; returns the last learning rate."""
        at, job = self.at, self.job
        phase_steps = end - (at.step - at.phase_step)
        accumulate, batches = job.train.accumulate, self.loader.steps
        self._train_mode(phase)
        self.method.on_epoch_start(at.epoch, job.epochs)
        if at.batch == 0:
            self.means, at.epoch_seconds = Means(), 0.0
        saved = last = time.perf_counter()
        rate = 0.0
        for number, batch in enumerate(self.loader.epoch(at.epoch, at.batch), start=at.batch):
            index_in_step = number % accumulate
            # The last step of an epoch may have fewer batches left than the others.
            batches_in_step = min(accumulate, batches - (number - index_in_step))
            if index_in_step == 0:
                rate = minimise.set_rate(
                    at.phase_step, phase_steps, self.steps_per_epoch, schedule=phase.schedule
                )
            minimise.begin(at.step, index_in_step, batches_in_step)
            with graphed_batch(job.train.cuda_graphs):
                self.method.step(batch, minimise)
            self.means.add(minimise.terms, minimise.logged)
            if index_in_step + 1 < batches_in_step:
                continue
            self.method.after_step(batch)
            for average in (self.average, self.average_exits):
                if average is not None:
                    average.update(at.step)
            at.step, at.phase_step, at.batch = at.step + 1, at.phase_step + 1, number + 1
            now = time.perf_counter()
            taken, last = now - last, now
            at.seconds, at.epoch_seconds = at.seconds + taken, at.epoch_seconds + taken
            bar.advance(1, f"epoch {at.epoch + 1}/{job.epochs}  {self._images_per_s():,.0f} images/s")
            if at.step % STEPS_BETWEEN_READS == 0:
                minimise.check()
            if at.step % STEPS_BETWEEN_SAMPLES == 0:
                self._log_step(minimise, rate)
            if at.batch == batches or self._done():
                break  # the end of an epoch saves in any case
            due = now - saved > 60 * job.train.checkpoint_minutes
            action = self._agreed_action(SAVE_AND_STOP if stop.requested else SAVE * due, taken)
            if action:
                self._save(minimise)
                saved = now
            if action == SAVE_AND_STOP:
                raise self._interrupted()
            if at.step == end:
                break
        return rate

    def _agreed_action(self, action: float, seconds: float) -> float:
        """Returns the action of all processes after this step: they must save and stop at the same step.

        Args:
            action: This process's own; 0: none.
            seconds: Time of the last step, by which the next step to ask at is agreed.
        """
        if self.processes.world == 1:
            return action
        if self.at.step < self._next_ask:
            return 0.0
        action, seconds = self.processes.all_reduce_maxima([action, seconds])
        steps = int(SECONDS_BETWEEN_ASKS / max(seconds, 1e-9))
        self._next_ask = self.at.step + min(max(steps, 1), STEPS_BETWEEN_ASKS)
        return action

    def _close_epoch(self, phase: Phase, rate: float, minimise: Minimiser, bar: Bar) -> None:
        at, label = self.at, self.job.label
        began = time.perf_counter()
        minimise.check()
        self.method.on_epoch_end()
        if self.method.networks.teacher is not None:
            self.method.networks.teacher.on_epoch_end()
        self.processes.average_statistics(self._modules().values())
        for average in (self.average, self.average_exits):
            if average is not None:
                average.copy_buffers()
        self.processes.broadcast_buffers(self._modules().values())
        figures = None
        if (at.epoch + 1) % self.job.train.evaluate_every == 0 or self._done():
            figures = self.choice.score(at.epoch + 1, frozen_statistics=phase.freeze_bn)
            self._warn_of_single_class(figures)
        if minimise.late:
            self.means.share(self.processes)
        losses, logged = self.means.values()
        logged |= self.means.time_shares(at.epoch_seconds)
        line = {
            "phase": label if len(self.phases) == 1 else f"{label}/{phase.name}",
            "epoch": at.epoch + 1,
            "step": at.step,
            "seconds": round(at.epoch_seconds + time.perf_counter() - began, 3),
            "images_per_s": round(self._images_per_s(), 1),
            "lr": rate,
            "losses": losses,
            **({"logged": logged} if logged else {}),
            "held_out": figures,
        }
        self.journal.epoch(line)
        bar.report(describe_epoch(line, self.job.epochs))
        at.epoch, at.batch = at.epoch + 1, 0
        self._save(minimise)

    def _warn_of_single_class(self, figures: dict[str, Any] | None) -> None:
        """Warns once when a network gives all held-out images one class after several epochs in a row."""
        number: int | None = (figures or {}).get("single_class")
        self._single_class_epochs = 0 if number is None else self._single_class_epochs + 1
        if number is None or self._single_class_epochs != SINGLE_CLASS_EPOCHS or not self.processes.first:
            return
        name = self.job.class_names[number] if self.job.class_names else f"class {number}"
        epochs = SINGLE_CLASS_EPOCHS * self.job.train.evaluate_every
        self.progress.warn(
            f"{self.job.label}: for {epochs} epochs it has given nearly all held-out images the "
            f"class {name!r}, so it tells no classes apart yet. If that lasts: more train.epochs, a lower "
            "optim.lr, or train.class_weights: balanced"
        )

    def _images_per_s(self) -> float:
        return self.at.batch * self.loader.batch_size / self.at.epoch_seconds

    def _train_mode(self, phase: Phase) -> None:
        freeze = self.job.train.freeze_bn or phase.freeze_bn
        for network in (self.method.networks.student, *self.method.networks.peers):
            network.train_mode(True, freeze_bn=freeze)
        self.method.train()
        if freeze:
            for layer in self.method.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    def _log_step(self, minimise: Minimiser, rate: float) -> None:
        means = Means()
        means.add(minimise.terms, minimise.logged)
        if minimise.late:
            means.share(self.processes)
        losses, logged = means.values()
        line = {"phase": self.job.label, "step": self.at.step, "lr": rate, "losses": losses}
        self.journal.step({**line, **({"logged": logged} if logged else {})})

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
        if self.average_exits is not None:
            modules["ema_exits"] = self.average_exits.network
        return modules

    def _save(self, minimise: Minimiser) -> None:
        minimise.check()
        if minimise.late:
            self.means.share(self.processes)
        self.processes.broadcast_buffers(self._modules().values())
        # Within an epoch each process has its own batch-norm statistics; a resume continues with them.
        several = self.processes.world > 1
        statistics = self.processes.gather([t.cpu() for t in self._statistics()]) if several else []
        random_states = self.processes.gather(_random_state(self.processes.device))
        if self.processes.first:
            state = {
                "position": asdict(self.at),
                "modules": {name: module.state_dict() for name, module in self._modules().items()},
                "optimisers": minimise.state_dict(),
                "choice": self.choice.state_dict(),
                "means": self.means.state_dict(),
                "log_sizes": self.journal.sizes(),
                "random_states": random_states,
                "statistics": statistics,
            }
            checkpoint.save(self.path, state)
        self.processes.barrier()

    def _restore(self, state: dict[str, Any]) -> None:
        for name, module in self._modules().items():
            load_state(module, state["modules"][name])
        self.at = Position(**state["position"])
        self.means = Means.restored(state, self.at.batch, self.processes.device)
        self.choice.load_state_dict(state["choice"])
        if not self._done():  # A finished training's later log lines belong to the trainings after it.
            self.journal.truncate(state["log_sizes"])
        # With more processes than before, the new ones keep the seeds they were started with.
        rank = self.processes.rank
        if rank < len(state["random_states"]):
            _set_random_state(state["random_states"][rank], self.processes.device)
        self._own_statistics = dict(enumerate(state.get("statistics", []))).get(rank)

    def _statistics(self) -> list[Tensor]:
        return [t for module in self._modules().values() for t in batch_norm_statistics(module)]


def phase_ends(
    phases: list[Phase], epochs: int, steps_per_epoch: int, total_steps: int | None = None
) -> list[int]:
    """Returns the step at which each phase ends, as its share and `Phase.whole_epochs` say.

    Args:
        phases: Their shares add up to 1.
        epochs: Number of epochs of all of them together.
        steps_per_epoch: Optimiser steps.
        total_steps: Steps of the run if `train.max_steps` cuts it short. A phase that may end within an epoch
            has its share of these.

    Raises:
        UserError: There is not an epoch for each phase, or not a step for one that may be shorter.
    """
    whole = epochs * steps_per_epoch
    cut = min(whole, total_steps or whole)
    least = [steps_per_epoch if phase.whole_epochs else 1 for phase in phases]
    if whole < sum(least):
        names = ", ".join(phase.name for phase in phases)
        raise UserError(
            f"train.epochs: {epochs}, but the method has {len(phases)} phases ({names}): one each "
            "at least; set more train.epochs"
        )
    ends: list[int] = []
    share, before = 0.0, 0
    for number, phase in enumerate(phases, start=1):
        share += phase.share
        if phase.whole_epochs:
            earliest = before // steps_per_epoch + 1
            end = max(round(share * epochs), earliest) * steps_per_epoch
        else:
            end = max(round(share * cut), before + 1)
        before = min(end, whole - sum(least[number:]))
        ends.append(before)
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
