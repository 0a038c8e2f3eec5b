"""The `distill` command: `distill` checks everything, `_run_to_end` has the steps. Read this file first.

recipe → data → `auto` values (→ pre-training → clusters) → networks → teacher → training (→ training for
int8) → baseline → export → benchmark → report
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdcompress.atomic import write_json
from kdcompress.cores import granted_cores
from kdcompress.data.dataset import Data, open_data
from kdcompress.deploy.files import check_installed
from kdcompress.deploy.image_graph import check_spec
from kdcompress.document_schemas import Results
from kdcompress.documents import read_document
from kdcompress.errors import (
    RESUMABLE,
    Interrupted,
    RecipeError,
    UnreadableImage,
    UserError,
    WorldError,
    join_problems,
)
from kdcompress.export.image_file import KEY
from kdcompress.networks.build import accepted_channels
from kdcompress.networks.from_recipe import LoadedNetwork, teacher_needs_training
from kdcompress.networks.teacher import FrozenTeacher
from kdcompress.networks.trainable import check_trainable
from kdcompress.progress import Progress
from kdcompress.recipe import NetworkSection, Recipe, TeacherSection, resolve_recipe, write_notice
from kdcompress.report import documents
from kdcompress.report.record import read_log
from kdcompress.run.auto import keep_recorded, resolve_auto
from kdcompress.run.context import Run
from kdcompress.run.delivery import deliver, report
from kdcompress.run.evaluation import check_calibrate
from kdcompress.run.extra_images import (
    check_extra_images,
    select_extra_images,
    with_extra,
    without_extra,
)
from kdcompress.run.licences import Policy, check_licences
from kdcompress.run.networks import load_networks, needs_of, tapped, with_classes
from kdcompress.run.preparation import build_preparation, prepare
from kdcompress.run.problems import data_problems, folder_problems
from kdcompress.run.pseudo_labels import (
    build_backbone,
    build_pretraining,
    load_pretrained_weights,
    pretrain,
    pretraining_figures,
    with_clusters,
    with_placeholder_labels,
)
from kdcompress.run.qat import check_int8_training, train_for_int8
from kdcompress.run.teacher import compare_with_baseline, load_teacher
from kdcompress.run.training import build_method, run_training, steps_per_epoch, student_training
from kdcompress.run_folder import RunFolder, same_recipe
from kdcompress.tasks import CLUSTERS
from kdcompress.train.choice import check_ship
from kdcompress.train.journal import require_tensorboard
from kdcompress.train.processes import Processes, join, leave
from kdcompress.train.trainer import phase_ends


@dataclass(frozen=True, slots=True)
class Request:
    """Options of the command line."""

    recipe: str
    data: str | None = None
    out: Path | None = None
    overrides: tuple[str, ...] = ()
    method: str | None = None
    preset: str | None = None
    resume: bool = False
    overwrite: bool = False
    baseline: bool = False
    seeds: int | None = None
    device: str = "auto"
    threads: int | None = None
    allow_code: bool = False
    license_policy: Policy = "any"
    command: str = ""


def distill(request: Request, progress: Progress) -> dict[str, Any] | None:
    """Trains, proves, exports and times what a recipe asks for.

    Returns:
        The results document with the run folder's path; None in the processes that are not the first.

    Raises:
        KdcompressError: See `kdcompress.errors`; user errors come before anything is written.
    """
    try:
        resolved = resolve_recipe(
            request.recipe,
            request.overrides,
            method=request.method,
            preset=request.preset,
            allow_code=request.allow_code,
        )
    except RecipeError as error:
        raise join_problems(
            [error, *folder_problems(request.out, request.data, request.resume, request.overwrite)]
        ) from None
    recipe, own_lr = resolved.recipe, resolved.sources["optim.lr"] == "--set"
    processes = join(request.device)
    if not processes.first:
        progress = Progress(quiet=True)  # one bar is enough
    for notice in resolved.notices if processes.first else ():
        write_notice(notice)
    folder = RunFolder(request.out or Path("runs") / recipe.name)
    try:
        try:
            complete = (
                _complete_recipe(recipe, request, processes, folder, own_lr) if processes.first else None
            )
        except UserError as error:
            raise join_problems([error, *data_problems(recipe, request.data)]) from None
        recipe = processes.broadcast(complete)
        torch.set_num_threads(recipe.train.threads)
        check_installed(recipe.export.formats, "export.formats")
        with processes.first_process_first():
            data = _open_data(recipe, progress)
            data = with_classes(
                recipe, data, allow_code=request.allow_code, progress=not progress.quiet and processes.first
            )
            with progress.counter() as tell:
                data = with_extra(recipe, data, tell)
        if request.baseline:
            _check_baseline(recipe, data)
        if recipe.export.embed_preprocess == "resize":
            check_spec(data.input_spec(), KEY)
        if processes.first:
            data_with_placeholders = with_placeholder_labels(recipe, data)
            resolution = resolve_auto(
                recipe,
                data_with_placeholders,
                progress=not progress.quiet,
                own_lr=own_lr,
                allow_code=request.allow_code,
            )
            recipe = resolution.recipe
            for notice in resolution.notices:
                write_notice(notice)
            for warning in resolution.warnings:
                progress.warn(warning)
        recipe = processes.broadcast(recipe)
        if recipe.batch_size % processes.world:
            raise UserError(
                f"data.batch_size: {recipe.batch_size} is no multiple of the {processes.world} processes; "
                f"set a multiple of {processes.world}"
            )
        run = Run(recipe, folder, data, processes, progress, request.allow_code, request.command)
        # Whatever does not fit is reported before anything is written.
        with processes.first_process_first():
            _check_buildable(run, request.license_policy)
        check_calibrate(recipe, data, needs_of(recipe).task)
        for warning in data.warnings if processes.first else ():
            progress.warn(warning)
        with folder.held() if processes.first else contextlib.nullcontext():
            if processes.first and request.overwrite:
                folder.clear()
            processes.barrier()
            logs = folder / "seeds" / "*" if request.seeds else folder.path
            progress.say(f"A line per epoch is written to {logs / 'log.jsonl'}")
            try:
                return (
                    _run_seeds(run, request) if request.seeds else _run_to_end(run, baseline=request.baseline)
                )
            except UnreadableImage as error:
                raise WorldError(
                    f"{error}: the data has changed since the run began; put it back and go on with --resume"
                ) from None
    except KeyboardInterrupt:
        kept = RESUMABLE if folder.has_saved() else "nothing was saved yet, run it again"
        raise Interrupted(f"interrupted; {kept}") from None
    finally:
        leave()


def _complete_recipe(
    recipe: Recipe, request: Request, processes: Processes, folder: RunFolder, own_lr: bool
) -> Recipe:
    """Adds the command line's options and the threads to the recipe, and checks it against the folder's."""
    folder.check(request.resume, request.overwrite, seeds=request.seeds is not None)
    recorded = folder.recorded_recipe(request.allow_code) if request.resume else None
    for log in ("log.jsonl", "baseline/log.jsonl") if request.resume else ():
        read_log(folder / log)  # the pages need it after the training, which must not be for nothing
    root = request.data or recipe.data.root
    extra = recipe.data.extra
    if extra is not None:
        extra = extra.model_copy(update={"root": str(Path(extra.root).expanduser().absolute())})
    data = recipe.data.model_copy(
        update={"root": str(Path(root).expanduser().absolute()) if root else None, "extra": extra}
    )
    threads = request.threads or recipe.train.threads
    if threads is None and recorded is not None:
        threads = recorded.train.threads  # bits depend on it, so a resume keeps it
    if threads is None:
        threads = max(1, granted_cores() // processes.world)
    recipe = recipe.replace(data=data, train=recipe.train.model_copy(update={"threads": threads}))
    if recorded is not None:
        recipe = keep_recorded(recipe, recorded, own_lr=own_lr)
        same_recipe(recorded, recipe, folder.path)
    return recipe


def _check_baseline(recipe: Recipe, data: Data) -> None:
    """Refuses a baseline where labels alone cannot train the student.

    Raises:
        UserError: With the reason.
    """
    if recipe.pseudo_labels is not None:
        raise UserError(
            "--baseline: trains on labels, and pseudo_labels makes its own; for a training on the clusters "
            "without distillation, run again with --method none"
        )
    if data.labelled == 0:
        raise UserError("--baseline: trains on labels, and no training image has one")
    if not needs_of(recipe).task.has_classes:
        raise UserError(
            f"--baseline: labels train a classifier, and {recipe.method['name']} as set trains a backbone"
        )


def _open_data(recipe: Recipe, progress: Progress) -> Data:
    channels = _image_channels(recipe)
    with progress.counter() as tell:
        return open_data(recipe.data, channels=channels, progress=tell)


def _image_channels(recipe: Recipe) -> frozenset[int]:
    """Returns the channels that the images may have for all networks of a recipe.

    Raises:
        UserError: A network does not take them, or there is no such number.
    """
    sections: dict[str, NetworkSection] = {"student": recipe.student}
    sections |= {f"peers.{number}": peer for number, peer in enumerate(recipe.peers)}
    accepted = {name: accepted_channels(section.model) for name, section in sections.items()}
    own, teacher = recipe.data.channels, recipe.teacher
    if own != "auto":
        # A teacher takes one channel or three: it gets grey images three times.
        for name, takes in accepted.items():
            if own not in takes:
                raise UserError(
                    f"data.channels: {own}, but {name}.model {sections[name].model} takes images of "
                    f"{' or '.join(map(str, sorted(takes)))} channels; choose a network of the families "
                    "cifar/ or timm/, or your own (python:)"
                )
        return frozenset({own})
    numbers = list(accepted.values())
    if teacher is not None and teacher.input.channels is None:
        numbers.append(accepted_channels(teacher.model))
    channels = frozenset.intersection(*numbers)
    if not channels:
        models = ", ".join(section.model for section in (*sections.values(), *([teacher] if teacher else [])))
        raise UserError(
            f"no number of image channels suits all networks: {models}; choose networks with a common number "
            "of input channels"
        )
    return channels


def _run_seeds(run: Run, request: Request) -> dict[str, Any] | None:
    """Repeats the run with several seeds, each in a run folder, and writes one document about all of them."""
    assert request.seeds is not None
    if run.processes.first:
        run.folder.begin(run.recipe)
    results = []
    for number in range(request.seeds):
        recipe = run.recipe.replace(seed=run.recipe.seed + number)
        folder = RunFolder(run.folder / "seeds" / str(number))
        results.append(
            _run_to_end(dataclasses.replace(run, recipe=recipe, folder=folder), baseline=request.baseline)
        )
    if not run.processes.first:
        return None
    document = documents.seeds([result for result in results if result is not None])
    write_json(run.folder / "seeds.json", document)
    return {**document, "folder": str(run.folder.path)}


def _run_to_end(run: Run, *, baseline: bool) -> dict[str, Any] | None:
    """Runs to the end, starting with the first step that is not yet done."""
    folder, first = run.folder, run.processes.first
    if run.processes.broadcast(folder.finished() is not None if first else None):
        has_baseline = (folder / "baseline" / "manifest.json").exists()
        if has_baseline or not baseline:
            return (
                {**read_document(folder / "results.json", Results), "folder": str(folder.path)}
                if first
                else None
            )
    if first:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.begin(run.recipe)
    run.processes.barrier()

    pretraining = pretrain(run)
    if pretraining is not None:
        run = with_clusters(run, pretraining)
    networks = load_networks(run)
    if pretraining is not None and pretraining.starts_student:
        load_pretrained_weights(networks["student"], pretraining)
    # Generated images are the student's alone: no teacher is trained, tested or prepared with them.
    real_run = without_extra(run)
    teaching = load_teacher(real_run, networks)
    teacher = teaching.teacher if teaching else None
    student_run = select_extra_images(run, teacher)
    method = build_method(student_run, networks, teacher)
    prepare(real_run, method, teacher)  # trains the method's heads on the teacher, if it has any
    if baseline:
        # First, so that a teacher with nothing to teach is known before the longer training.
        _run_to_end(_baseline_of(student_run), baseline=False)
        if first and teaching is not None:
            compare_with_baseline(student_run, teaching)
    outcome = run_training(student_run, student_training(student_run, method))
    if student_run.recipe.export.int8 is not None and student_run.recipe.export.int8.qat_epochs:
        train_for_int8(student_run, method, outcome)
    if not first:
        return None
    with student_run.test_split() as test:
        task = None if pretraining is None else CLUSTERS
        delivery = deliver(student_run, networks["student"], method, outcome, teaching, test, task)
        before = None if pretraining is None else pretraining_figures(student_run, pretraining)
        return report(student_run, networks["student"], outcome, delivery, teaching, test, before)


def _baseline_of(run: Run) -> Run:
    """Returns the run of the same student, weights, real data, order, schedule and seed, on the labels alone.

    If the student also learns from other images, its epochs take more steps. The baseline then gets as
    many more epochs, so that a gain is not one of longer training.
    """
    train = run.recipe.train
    recipe = run.recipe.replace(
        name=f"{run.recipe.name}-baseline",
        data=run.recipe.data.model_copy(update={"extra": None}),
        teacher=None,
        peers=[],
        method={"name": "none", "classifier_first": 0.0},
        # A peer or an ensemble that ships in the run itself does not exist here.
        train=train.model_copy(update={"ship": train.ship if train.ship in ("last", "ema") else "best"}),
        export=run.recipe.export.model_copy(
            update={"int8": None, "fp16": False, "exits": False, "calibrate": False}
        ),
    )
    alone = dataclasses.replace(without_extra(run), recipe=recipe, folder=RunFolder(run.folder / "baseline"))
    return dataclasses.replace(alone, recipe=recipe.lengthened(steps_per_epoch(run) / steps_per_epoch(alone)))


def _check_buildable(run: Run, policy: Policy) -> None:
    """Builds everything once, so that whatever does not fit is reported before anything is written."""
    if run.recipe.train.tensorboard:
        require_tensorboard()
    if run.recipe.pseudo_labels is not None:
        build_pretraining(run, build_backbone(run))
        run = dataclasses.replace(run, data=with_placeholder_labels(run.recipe, run.data))
    networks = load_networks(run)
    check_licences(run, networks, policy)
    teacher = None
    if run.recipe.teacher is not None:
        teacher = _check_teacher(run, run.recipe.teacher, networks["teacher"])
    run = check_extra_images(run, teacher)
    method = build_method(run, networks, teacher)
    for network in (method.networks.student, *method.networks.peers):
        check_trainable(network, needs_of(run.recipe).student)
    check_int8_training(run, method, networks["student"])
    check_ship(method, run.recipe.train.ship, ema=run.recipe.train.ema is not None)
    for notice in method.notices() if run.processes.first else ():
        write_notice(notice)
    for preparation in method.preparations(method.config):
        assert teacher is not None, "held by the recipe's checks"
        build_preparation(without_extra(run), preparation, teacher)
    train = run.recipe.train
    phase_ends(method.phases(), run.recipe.epochs, -(-steps_per_epoch(run) // train.accumulate))


def _check_teacher(run: Run, section: TeacherSection, start: LoadedNetwork) -> FrozenTeacher:
    """Builds the teacher, and checks that it can be trained if it has to be."""
    network = tapped(run, section, start)
    if teacher_needs_training(section, start):
        check_trainable(network)
    return FrozenTeacher(network, fold=False)
