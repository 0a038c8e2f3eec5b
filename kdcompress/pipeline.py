"""The `distill` command: `open_run` checks everything, `_run_to_end` has the steps. Read this file first.

recipe → data → `auto` values (→ pre-training → clusters) → networks → teacher (→ its cache) → training
(→ training for int8) → baseline → export → benchmark → report
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from kdcompress.atomic import write_json
from kdcompress.documents import read_document
from kdcompress.errors import RESUMABLE, Interrupted, UnreadableImage, WorldError
from kdcompress.progress import Progress
from kdcompress.report import documents
from kdcompress.report.predictions import NAME as PREDICTIONS
from kdcompress.report.predictions import compared_predictions
from kdcompress.run.context import Run
from kdcompress.run.delivery import deliver, report
from kdcompress.run.extra_images import select_extra_images, without_extra
from kdcompress.run.networks import load_networks
from kdcompress.run.opening import Request, open_run, resolved_recipe
from kdcompress.run.pixel_cache import with_pixel_cache
from kdcompress.run.preparation import prepare
from kdcompress.run.pseudo_labels import (
    load_pretrained_weights,
    pretrain,
    pretraining_figures,
    with_clusters,
)  # fmt: skip
from kdcompress.run.qat import train_for_int8
from kdcompress.run.teacher import compare_with_baseline, load_teacher, with_network
from kdcompress.run.teacher_cache import cached_outputs, check_afterwards, replay_of
from kdcompress.run.training import build_method, run_training, steps_per_epoch, student_training
from kdcompress.run_folder import RunFolder
from kdcompress.schemas.results import Results
from kdcompress.tasks import CLUSTERS
from kdcompress.train.processes import join, leave


def distill(request: Request, progress: Progress) -> dict[str, Any] | None:
    """Trains, proves, exports and times what a recipe asks for.

    Returns:
        The results document with the run folder's path; None in the processes that are not the first.

    Raises:
        KdcompressError: See `kdcompress.errors`; user errors come before anything is written.
    """
    recipe, own_lr = resolved_recipe(request)
    processes = join(request.device)
    if not processes.first:
        progress = Progress(quiet=True)  # one bar is enough
    folder = RunFolder(request.out or Path("runs") / recipe.name)
    try:
        run = open_run(request, recipe, processes, folder, progress, own_lr=own_lr)
        with folder.held() if processes.first else contextlib.nullcontext():
            if processes.first and request.overwrite:
                folder.clear()
            processes.barrier()
            logs = folder / "seeds" / "*" if request.seeds else folder.path
            try:
                run = with_pixel_cache(run)
                progress.say(f"A line per epoch is written to {logs / 'log.jsonl'}")
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
    known = [result for result in results if result is not None]
    document = documents.seeds(known, run.data.class_names, run.data.test_name)
    write_json(run.folder / "seeds.json", document)
    return {**document, "folder": str(run.folder.path)}


def _run_to_end(run: Run, *, baseline: bool) -> dict[str, Any] | None:
    """Runs to the end, starting with the first step that is not yet done."""
    folder, first = run.folder, run.processes.first
    if run.processes.broadcast(first and _is_finished(folder, baseline=baseline)):
        if not first:
            return None
        return {**read_document(folder / "results.json", Results), "folder": str(folder.path)}
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
    with cached_outputs(student_run, teacher) as answering:
        method = build_method(student_run, networks, answering)
        prepare(real_run, method, teacher)  # trains the method's heads on the teacher, if it has any
        if baseline:
            # First, so that a teacher with nothing to teach is known before the longer training.
            run.progress.say(f"Baseline: the student without distillation; its log: {folder / 'baseline'}")
            _run_to_end(_baseline_of(student_run), baseline=False)
            plain = folder / "baseline" / "checkpoints"
            if first and (plain / PREDICTIONS).exists():
                compared_predictions(plain)  # damage must not be known after the longer training alone
            if first and teaching is not None:
                compare_with_baseline(student_run, teaching)
            run.progress.say(f"Student: trained by {student_run.recipe.method['name']}")
        replay = replay_of(student_run, answering)
        outcome = run_training(student_run, student_training(student_run, method, replay))
        teaching = with_network(real_run, teaching)
        check_afterwards(student_run, answering)
    if student_run.recipe.export.int8 is not None and student_run.recipe.export.int8.qat_epochs:
        train_for_int8(student_run, method, outcome)
    if not first:
        return None
    with student_run.test_split() as test:
        task = None if pretraining is None else CLUSTERS
        delivery = deliver(student_run, networks["student"], method, outcome, teaching, test, task)
        before = None if pretraining is None else pretraining_figures(student_run, pretraining)
        peers = documents.peer_entries(student_run.recipe, networks)
        return report(
            student_run, networks["student"], outcome, delivery, teaching, test, before, peers=peers
        )


def _is_finished(folder: RunFolder, *, baseline: bool) -> bool:
    """Tells if nothing is left to do; raises as `RunFolder.finished`."""
    has_baseline = (folder / "baseline" / "manifest.json").exists()
    return folder.finished() is not None and (has_baseline or not baseline)


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
