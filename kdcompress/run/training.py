"""Describes the trainings of a run (teacher, preparations, student, int8) and runs them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdcompress.data.batch import Replay
from kdcompress.data.dataset import Data
from kdcompress.data.loader import TrainingLoader
from kdcompress.data.orders import BatchOrder, FirstBatches, batch_order
from kdcompress.data.random_bits import permutation
from kdcompress.data.splits import DATA_SEED
from kdcompress.methods.base import Method, Needs, configured
from kdcompress.networks.from_recipe import LoadedNetwork, seeded
from kdcompress.networks.networks import Networks
from kdcompress.networks.teacher import Teacher
from kdcompress.recipe import OptimSection, TrainSection
from kdcompress.run.context import Run
from kdcompress.run.networks import info, tapped
from kdcompress.train import result_store
from kdcompress.train.bn_statistics import StatisticsImages, sample_size, shipping_size
from kdcompress.train.job import Job, Outcome
from kdcompress.train.journal import Journal
from kdcompress.train.processes import Processes
from kdcompress.train.result_store import StoredResult
from kdcompress.train.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Training:
    """One training of a run.

    Args:
        label: Names its checkpoint and its log lines: teacher, student, ....
        method: The method, on the run's device.
        seed: Seed of its sample order, augmentation and dropout.
        epochs: Number of epochs.
        train: The recipe's section, adapted to this training.
        optim: The recipe's section, adapted to this training.
        choose: True chooses the best epoch on held-out data, if there is any.
        exits: True if the method's early exits ship too.
        replay: Views that repeat, for a teacher whose outputs are kept; None: every epoch has new ones.
        batches: Batches of an epoch, for a training that is only measured; None: all.
    """

    label: str
    method: Method
    seed: int
    epochs: int
    train: TrainSection
    optim: OptimSection
    choose: bool = True
    exits: bool = False
    replay: Replay | None = None
    batches: int | None = None


def student_training(run: Run, method: Method, replay: Replay | None = None) -> Training:
    """Describes the training of the recipe's student.

    Args:
        run: The run.
        method: On the run's device.
        replay: Views that repeat; None: every epoch has new ones.
    """
    recipe = run.recipe
    return Training(
        "student", method, recipe.seed, recipe.epochs, recipe.train, recipe.optim,
        exits=recipe.export.exits, replay=replay,
    )  # fmt: skip


def run_training(run: Run, training: Training) -> Outcome:
    """Trains to the end and returns the outcome; continues from a checkpoint of the same label.

    Args:
        run: The run; the training uses those of its images that the method can use.
        training: The training to run.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a resume continues within this training.
    """
    method, seed = training.method, training.seed
    data = for_method(run, type(method), method.config).data
    needs = method.needs(method.config)
    loader = training_loader(run, needs, data, seed, training.replay, batches=training.batches)
    job = Job(
        label=training.label,
        folder=run.folder.checkpoints,
        train=training.train,
        optim=training.optim,
        epochs=training.epochs,
        fp16=run.precision == "fp16",
        resume_hint=_resume_hint(run.command, run.processes),
        class_names=tuple(run.data.class_names),
        exits=training.exits,
    )
    journal = Journal(run.folder.path if run.processes.first else None, training.train.tensorboard)
    # Each process has its own dropout: its rows are different ones.
    purpose = f"training of {training.label}"
    seeded(seed, f"{purpose} in process {run.processes.rank}" if run.processes.rank else purpose)
    with contextlib.closing(loader), contextlib.ExitStack() as stack:
        held_out = None
        if training.choose and data.held_out is not None:
            held_out = stack.enter_context(run.evaluation(data.held_out, shared=True))
        statistics = None
        if training.train.bn_statistics == "auto" and not training.train.freeze_bn:
            statistics = _statistics_images(run, _images_seen(run, training, loader), stack)
        return Trainer(method, loader, held_out, job, run.processes, journal, run.progress, statistics).run()


def training_loader(
    run: Run,
    needs: Needs,
    data: Data,
    seed: int,
    replay: Replay | None = None,
    *,
    batches: int | None = None,
) -> TrainingLoader:
    """Opens the training batches of a method.

    Args:
        run: The run.
        needs: Of the method.
        data: With the training images that the method uses.
        seed: Seed of order and augmentation.
        replay: Views that repeat; None: every epoch has new ones.
        batches: Batches of an epoch; None: all.
    """
    order = _order(run, needs, data, seed)
    return TrainingLoader(
        data.train,
        batch_size=run.recipe.batch_size,
        views=needs.views,
        order=order if batches is None else FirstBatches(order, batches),
        seed=seed,
        augment=needs.augment or data.augment,
        device=run.device,
        rank=run.processes.rank,
        world=run.processes.world,
        workers=run.workers,
        replay=replay,
    )


def _images_seen(run: Run, training: Training, loader: TrainingLoader) -> int:
    """Returns the number of images that a training sees in all its epochs, on all processes."""
    batches, train = training.epochs * loader.steps, training.train
    if train.max_steps is not None:
        batches = min(batches, train.max_steps * train.accumulate)
    return batches * run.recipe.batch_size


def _statistics_images(run: Run, seen: int, stack: contextlib.ExitStack) -> StatisticsImages:
    """Opens the real training images, labelled or not, that batch-norm statistics are re-estimated on."""
    train = run.data.train
    order = permutation(DATA_SEED, 0, len(train))
    sample, shipping_images = (
        stack.enter_context(run.evaluation(train.subset(order[:count])))
        for count in (sample_size(len(train)), shipping_size(len(train), seen))
    )
    return StatisticsImages(sample, shipping_images)


def stored_training(
    run: Run,
    stem: str,
    key: str,
    training: Callable[[], Training],
    note: dict[str, Any],
    fits: result_store.ResultCheck,
) -> StoredResult:
    """Returns the stored result of a training, or trains and stores it.

    Args:
        run: The run.
        stem: Name of the stored files, without suffix.
        key: Hash of everything that the result depends on.
        training: Builds the training; called only if there is no stored result.
        note: Facts to store beside it; the held-out figures and the chosen epoch are added.
        fits: Returns True if a stored result has the tensors that are expected.
    """

    def make() -> tuple[dict[str, Any], dict[str, Any]]:
        outcome = run_training(run, training())
        return outcome.state, {**note, "held_out": outcome.best, "epoch": outcome.epoch}

    return result_store.result(run.folder.checkpoints, stem, key, run.processes, make, fits)


def build_method(run: Run, loaded: dict[str, LoadedNetwork], teacher: Teacher | None) -> Method:
    """Builds the recipe's method beside its networks, all on the run's device."""
    recipe = run.recipe
    networks = Networks(
        tapped(run, recipe.student, loaded["student"]),
        teacher,
        tuple(tapped(run, peer, loaded[f"peer{i + 1}"]) for i, peer in enumerate(recipe.peers)),
    )
    cls, config = configured(recipe.method)
    seeded(recipe.seed, "method")
    return cls(config, networks, info(for_method(run, cls, config), cls.needs(config))).to(run.device)


def for_method(run: Run, method: type[Method], config: Any) -> Run:
    """Returns the run with the training images that a method can use.

    Raises:
        DataError: The method needs labels, and no image has one.
    """
    needs = method.needs(config)
    data = run.data.for_method(labels=needs.labels, unlabelled=needs.unlabelled)
    return dataclasses.replace(run, data=data)


def steps_per_epoch(run: Run) -> int:
    """Returns the number of batches of an epoch of the recipe's method.

    Raises:
        UserError: A batch is too small to hold images of every kind.
    """
    method, config = configured(run.recipe.method)
    return _order(run, method.needs(config), for_method(run, method, config).data, seed=0).steps


def _order(run: Run, needs: Needs, data: Data, seed: int) -> BatchOrder:
    size = run.recipe.batch_size
    order = data.order if needs.order == "shuffled" else needs.order
    return batch_order(order, data.train.labels, batch_size=size, seed=seed, pools=data.pools)


def _resume_hint(command: str, processes: Processes) -> str:
    if "--resume" not in command:
        command = f"{command.replace(' --overwrite', '')} --resume"
    world, local = processes.world, processes.local_world
    if world > local:
        options = f"--nnodes {world // local} --nproc_per_node {local} --rdzv_endpoint …"
        return f"torchrun {options} -m {command} (on each machine)"
    return f"torchrun --nproc_per_node {world} -m {command}" if world > 1 else command
