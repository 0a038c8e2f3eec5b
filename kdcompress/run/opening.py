"""Opens a run: everything up to the first thing that is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from kdcompress.cores import granted_cores
from kdcompress.data.dataset import Data, open_data
from kdcompress.deploy.files import check_installed
from kdcompress.deploy.image_graph import check_spec
from kdcompress.errors import RecipeError, UserError, join_problems
from kdcompress.export.image_file import KEY
from kdcompress.networks.build import accepted_channels
from kdcompress.networks.from_recipe import LoadedNetwork, teacher_needs_training
from kdcompress.networks.teacher import FrozenTeacher, Teacher
from kdcompress.networks.trainable import check_trainable
from kdcompress.progress import Progress
from kdcompress.recipe import (
    CacheSection,
    NetworkSection,
    Recipe,
    TeacherSection,
    resolve_recipe,
    write_notice,
)
from kdcompress.report.record import read_log
from kdcompress.run.auto import check_cuda_graphs, keep_recorded, resolve_auto
from kdcompress.run.context import Run
from kdcompress.run.decoder import with_decoder
from kdcompress.run.evaluation import check_calibrate
from kdcompress.run.extra_images import (
    check_extra_images,
    with_extra,
    without_extra,
)
from kdcompress.run.licences import Policy, check_licences
from kdcompress.run.networks import load_networks, needs_of, tapped, with_classes
from kdcompress.run.preparation import build_preparation
from kdcompress.run.problems import data_problems, folder_problems
from kdcompress.run.pseudo_labels import (
    build_backbone,
    build_pretraining,
    with_placeholder_labels,
)
from kdcompress.run.qat import check_int8_training
from kdcompress.run.teacher_cache import with_cache_settings
from kdcompress.run.teacher_record import read_record, reads_alone, stands_in, why_built
from kdcompress.run.training import build_method, steps_per_epoch
from kdcompress.run_folder import RunFolder, same_recipe
from kdcompress.train.choice import check_ship
from kdcompress.train.journal import require_tensorboard
from kdcompress.train.processes import Processes, number_of
from kdcompress.train.trainer import phase_ends
from kdcompress.user_paths import expand_home


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


def open_run(
    request: Request,
    recipe: Recipe,
    processes: Processes,
    folder: RunFolder,
    progress: Progress,
    *,
    own_lr: bool,
) -> Run:
    """Opens the data, replaces each `auto` of the recipe, and builds every network once; writes nothing.

    Args:
        request: Options of the command line.
        recipe: Checked, with the command line's changes.
        processes: This process among all.
        folder: The run's.
        progress: Receives progress and warnings.
        own_lr: True if `optim.lr` comes from `--set`.

    Raises:
        KdcompressError: Whatever does not fit.
    """
    try:
        complete = _complete_recipe(recipe, request, processes, folder, own_lr) if processes.first else None
    except UserError as error:
        raise join_problems([error, *data_problems(recipe, request.data)]) from None
    recipe = processes.broadcast(complete)
    assert recipe.train.threads is not None, "filled in above"
    torch.set_num_threads(recipe.train.threads)
    check_installed(recipe.export.formats, "export.formats")
    data = _open_data(recipe, request, processes, progress)
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
            device=processes.device.type,
        )
        recipe = resolution.recipe
        for notice in resolution.notices:
            write_notice(notice)
        for warning in resolution.warnings:
            progress.warn(warning)
    recipe = processes.broadcast(recipe)
    check_cuda_graphs(recipe.train, device=processes.device.type, processes=processes.world)
    if recipe.batch_size % processes.world:
        raise UserError(
            f"data.batch_size: {recipe.batch_size} is no multiple of the {processes.world} processes; "
            f"set a multiple of {processes.world}"
        )
    data = with_decoder(data, recipe.data.decoder)
    run = Run(recipe, folder, data, processes, progress, request.allow_code, request.command)
    with processes.first_process_first():
        run = _check_buildable(run, request.license_policy)
    check_calibrate(run.recipe, data, needs_of(run.recipe).task)
    for warning in data.warnings if processes.first else ():
        progress.warn(warning)
    return run


def resolved_recipe(request: Request) -> tuple[Recipe, bool]:
    """Reads the request's recipe with its changes, and says what was changed without an option.

    Returns:
        The recipe, and True if `optim.lr` comes from `--set`.

    Raises:
        RecipeError: With every problem of recipe, folders and data.
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
    for notice in resolved.notices if number_of("RANK", 0) == 0 else ():
        write_notice(notice)
    return resolved.recipe, resolved.sources["optim.lr"] == "--set"


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
        extra = extra.model_copy(update={"root": str(expand_home(extra.root, "data.extra.root").absolute())})
    data = recipe.data.model_copy(
        update={"root": str(expand_home(root, "data.root").absolute()) if root else None, "extra": extra}
    )
    teacher = recipe.teacher
    if teacher is not None and isinstance(teacher.cache, CacheSection) and teacher.cache.folder is not None:
        folder_of_cache = str(expand_home(teacher.cache.folder, "teacher.cache.folder").absolute())
        cache = teacher.cache.model_copy(update={"folder": folder_of_cache})
        recipe = recipe.replace(teacher=teacher.model_copy(update={"cache": cache}))
    threads = request.threads or recipe.train.threads
    if threads is None and recorded is not None:
        threads = recorded.train.threads  # bits depend on it, so a resume keeps it
    if threads is None:
        threads = max(1, granted_cores() // processes.local_world)
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


def _open_data(recipe: Recipe, request: Request, processes: Processes, progress: Progress) -> Data:
    """Opens the data in the first process. The others take its listing of image files, or open the same."""
    data = _read_data(recipe, request, processes, progress) if processes.first else None
    # Pixels in memory are not sent: every process finds them in the cache now.
    listed = processes.broadcast(data if data is not None and data.in_files else None)
    if data is None:
        data = listed or _read_data(recipe, request, processes, progress)
    return data


def _read_data(recipe: Recipe, request: Request, processes: Processes, progress: Progress) -> Data:
    channels = _image_channels(recipe)
    with progress.counter() as tell:
        data = open_data(recipe.data, channels=channels, progress=tell)
    data = with_classes(
        recipe, data, allow_code=request.allow_code, progress=not progress.quiet and processes.first
    )
    with progress.counter() as tell:
        return with_extra(recipe, data, tell)


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


def _check_buildable(run: Run, policy: Policy) -> Run:
    """Builds everything once, so that whatever does not fit is reported before anything is written.

    Returns:
        The run with the settings that depend on its networks.
    """
    whole = run
    if run.recipe.train.tensorboard:
        require_tensorboard()
    if run.recipe.pseudo_labels is not None:
        build_pretraining(run, build_backbone(run))
        run = dataclasses.replace(run, data=with_placeholder_labels(run.recipe, run.data))
    networks = load_networks(run)
    check_licences(run, networks, policy)
    run, whole = (_with_precision(each, networks) for each in (run, whole))
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
    # With the labels that the generated images will have: without them some methods can use none.
    return dataclasses.replace(whole, recipe=with_cache_settings(run, teacher).recipe)


def _with_precision(run: Run, networks: Mapping[str, LoadedNetwork]) -> Run:
    """Returns the run with `train.precision: auto` resolved, so that a resume elsewhere computes alike.

    It stays `auto` where the rule gives networks of the run different formats.
    """
    if run.recipe.train.precision != "auto":
        return run
    found = {run.precision, *(run.precision_of(loaded.network) for loaded in networks.values())}
    if len(found) > 1:
        return run
    train = run.recipe.train.model_copy(update={"precision": found.pop()})
    return dataclasses.replace(run, recipe=run.recipe.replace(train=train))


def _check_teacher(run: Run, section: TeacherSection, start: LoadedNetwork) -> Teacher:
    """Builds the teacher, or takes what the cache knows; checks that it can be trained if it has to be."""
    if stands_in(run):
        return read_record(run).teacher(run)
    if reads_alone(run.recipe) and run.processes.first:
        why = why_built(run.recipe, run.data)
        write_notice(
            f"teacher.cache.mode: read: the teacher is built before the training all the same, since {why}"
        )
    network = tapped(run, section, start, frozen=True)
    if teacher_needs_training(section, start):
        check_trainable(network)
    return FrozenTeacher(network, fold=False)
