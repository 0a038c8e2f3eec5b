"""Training: a method, its networks and the data go through the loop."""

from __future__ import annotations

import contextlib

from kdcompress.data.loader import TrainingLoader
from kdcompress.methods.base import Method, find_method
from kdcompress.networks.from_recipe import Start, seeded
from kdcompress.networks.networks import Networks
from kdcompress.networks.teacher import Teacher
from kdcompress.recipe import TrainSection
from kdcompress.steps.context import Run
from kdcompress.steps.networks import info, tapped
from kdcompress.train.job import Job, Outcome
from kdcompress.train.journal import Journal
from kdcompress.train.trainer import Trainer


def build_method(run: Run, found: dict[str, Start], teacher: Teacher | None) -> Method:
    """The recipe's method beside its networks, all on the run's device."""
    recipe = run.recipe
    networks = Networks(
        tapped(run, recipe.student, found["student"]),
        teacher,
        tuple(tapped(run, peer, found[f"peer{i + 1}"]) for i, peer in enumerate(recipe.peers)),
    )
    cls = find_method(recipe.method["name"])
    config = cls.Config.model_validate({k: v for k, v in recipe.method.items() if k != "name"})
    seeded(recipe.seed, "method")
    return cls(config, networks, info(run)).to(run.device)


def train(run: Run, method: Method) -> Outcome:
    """Trains the student by its method."""
    recipe = run.recipe
    views = method.needs(method.config).views
    return loop(
        run, method, "student", seed=recipe.seed, epochs=recipe.train.epochs, train=recipe.train,
        lr=recipe.optim.lr, views=views,
    )  # fmt: skip


def loop(
    run: Run,
    method: Method,
    label: str,
    *,
    seed: int,
    epochs: int,
    train: TrainSection,
    lr: float,
    views: int = 1,
) -> Outcome:
    """One training through the loop.

    Args:
        run: The run.
        method: What is minimised.
        label: student or teacher; names its checkpoint and its log lines.
        seed: Of its sample order, augmentation and dropout.
        epochs: How many.
        train: The section, as this training needs it.
        lr: Base learning rate.
        views: Augmentations of each image a batch holds.
    """
    data, recipe = run.data, run.recipe
    loader = TrainingLoader(
        data.train,
        batch_size=recipe.data.batch_size,
        views=views,
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
        optim=recipe.optim.model_copy(update={"lr": lr}),
        epochs=epochs,
        fp16=run.precision == "fp16",
        resume_hint=_resume_hint(run.command, run.processes.world),
    )
    journal = Journal(run.folder.path if run.processes.first else None, train.tensorboard)
    # Each process drops out by its own dice: their rows are different ones.
    seeded(seed, f"training of {label}" + (f" in process {run.processes.rank}" if run.processes.rank else ""))
    with contextlib.closing(loader), contextlib.ExitStack() as stack:
        held_out = None if data.held_out is None else stack.enter_context(run.evaluation(data.held_out))
        return Trainer(method, loader, held_out, job, run.processes, journal, run.progress).run()


def _resume_hint(command: str, processes: int) -> str:
    if "--resume" not in command:
        command = f"{command.replace(' --overwrite', '')} --resume"
    return f"torchrun --nproc_per_node {processes} -m {command}" if processes > 1 else command
