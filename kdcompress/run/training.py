"""Training: a method, its networks and the data go through the loop."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from kdcompress.data import pools
from kdcompress.data.loader import TrainingLoader
from kdcompress.methods.base import Method, configured
from kdcompress.networks.from_recipe import LoadedNetwork, seeded
from kdcompress.networks.networks import Networks
from kdcompress.networks.teacher import Teacher
from kdcompress.recipe import OptimSection, TrainSection
from kdcompress.run.context import Run
from kdcompress.run.networks import info, tapped
from kdcompress.train.job import Job, Outcome
from kdcompress.train.journal import Journal
from kdcompress.train.trainer import Trainer


def build_method(run: Run, found: dict[str, LoadedNetwork], teacher: Teacher | None) -> Method:
    """The recipe's method beside its networks, all on the run's device."""
    recipe = run.recipe
    networks = Networks(
        tapped(run, recipe.student, found["student"]),
        teacher,
        tuple(tapped(run, peer, found[f"peer{i + 1}"]) for i, peer in enumerate(recipe.peers)),
    )
    cls, config = configured(recipe.method)
    seeded(recipe.seed, "method")
    return cls(config, networks, info(taught_by(run, cls, config))).to(run.device)


def taught_by(run: Run, method: type[Method], config: Any) -> Run:
    """The run with the training images that a method trains on.

    Raises:
        DataError: The method needs labels, and no image has one.
    """
    needs = method.needs(config)
    data = run.data.taught(labels=needs.labels, unlabelled=needs.unlabelled)
    return dataclasses.replace(run, data=data)


def steps_per_epoch(run: Run) -> int:
    """Batches that the recipe's method takes in an epoch.

    Raises:
        UserError: A batch is too small to hold images of every kind.
    """
    data = taught_by(run, *configured(run.recipe.method)).data
    return pools.steps_per_epoch(data.pools, len(data.train), run.recipe.data.batch_size)


def train(run: Run, method: Method) -> Outcome:
    """Trains the student by its method."""
    recipe = run.recipe
    return loop(
        run, method, "student", seed=recipe.seed, epochs=recipe.train.epochs, train=recipe.train,
        optim=recipe.optim,
    )  # fmt: skip


def loop(
    run: Run,
    method: Method,
    label: str,
    *,
    seed: int,
    epochs: int,
    train: TrainSection,
    optim: OptimSection,
    choose: bool = True,
) -> Outcome:
    """One training through the loop.

    Args:
        run: The run.
        method: What is minimised.
        label: student, teacher or preparation; names its checkpoint and its log lines.
        seed: Of its sample order, augmentation and dropout.
        epochs: How many.
        train: The section, as this training needs it.
        optim: Likewise.
        choose: Whether the best epoch on held-out data is chosen, if there is any.
    """
    recipe, data = run.recipe, taught_by(run, type(method), method.config).data
    loader = TrainingLoader(
        data.train,
        batch_size=recipe.data.batch_size,
        views=method.needs(method.config).views,
        pools=data.pools,
        seed=seed,
        augment=data.augment,
        device=run.device,
        rank=run.processes.rank,
        world=run.processes.world,
        workers=run.workers,
    )
    job = Job(
        label=label,
        folder=run.folder.checkpoints,
        train=train,
        optim=optim,
        epochs=epochs,
        fp16=run.precision == "fp16",
        resume_hint=_resume_hint(run.command, run.processes.world),
    )
    journal = Journal(run.folder.path if run.processes.first else None, train.tensorboard)
    # Each process drops out by its own dice: their rows are different ones.
    seeded(seed, f"training of {label}" + (f" in process {run.processes.rank}" if run.processes.rank else ""))
    with contextlib.closing(loader), contextlib.ExitStack() as stack:
        held_out = None
        if choose and data.held_out is not None:
            held_out = stack.enter_context(run.evaluation(data.held_out))
        return Trainer(method, loader, held_out, job, run.processes, journal, run.progress).run()


def _resume_hint(command: str, processes: int) -> str:
    if "--resume" not in command:
        command = f"{command.replace(' --overwrite', '')} --resume"
    return f"torchrun --nproc_per_node {processes} -m {command}" if processes > 1 else command
