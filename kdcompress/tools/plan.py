"""Forecasts a run from a few measured steps: speed, time, memory, where they go, and what would be faster."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.data.dataset import Data
from kdcompress.data.prefetch import moved
from kdcompress.data.source import MemorySource
from kdcompress.methods.base import Method, configured
from kdcompress.networks.activations import Activations
from kdcompress.networks.from_recipe import LoadedNetwork, teacher_needs_training
from kdcompress.networks.output_cache.codec import Codec
from kdcompress.networks.output_cache.rows import RowFiles
from kdcompress.networks.tapped import wide
from kdcompress.networks.teacher import FrozenTeacher, Teacher
from kdcompress.progress import Progress
from kdcompress.recipe import CacheSection
from kdcompress.run.cache_plan import CachePlan, plan_cache
from kdcompress.run.context import Run
from kdcompress.run.extra_images import without_extra
from kdcompress.run.networks import load_networks, needs_of, tapped
from kdcompress.run.opening import Request, open_run, resolved_recipe
from kdcompress.run.preparation import preparation_training
from kdcompress.run.pseudo_labels import build_backbone, pretraining_of, with_placeholder_labels
from kdcompress.run.teacher import own_size, teacher_is_stored, teacher_training
from kdcompress.run.training import (
    Training,
    build_method,
    for_method,
    run_training,
    steps_per_epoch,
    student_training,
    training_loader,
)
from kdcompress.run_folder import RunFolder
from kdcompress.tools.plan_advice import Length, StepTimes, advice, shares
from kdcompress.tools.plan_input import measure_input
from kdcompress.tools.stopwatch import (
    LEAST_EPOCHS,
    WARM_UP,
    Measured,
    Stopwatch,
    TimedTeacher,
    wait_for,
)
from kdcompress.train.processes import join, leave

SCHEMA = "kdcompress.plan/1"
STEPS = 20
REPEATS = 5
"""Passes of the student alone, and readings of cached rows, that are measured after one that is not."""
DELIVERY_SECONDS = 20.0
"""Time for export, proof and timing of small networks, beside the passes over the test images."""


def plan(request: Request, steps: int, progress: Progress) -> dict[str, Any]:
    """Measures a few steps of a run, and forecasts it.

    Teacher and student have their initial weights, since their speed does not depend on them: no teacher is
    trained. Nothing is written but a temporary folder.

    Args:
        request: Options as for a run.
        steps: Optimiser steps to measure.
        progress: Receives progress and warnings.

    Returns:
        The forecast, as JSON.

    Raises:
        KdcompressError: As a run does before it writes anything.
    """
    recipe, own_lr = resolved_recipe(request)
    processes = join(request.device)
    try:
        with tempfile.TemporaryDirectory(prefix="kdcompress-plan-") as folder:
            run = open_run(request, recipe, processes, RunFolder(Path(folder)), progress, own_lr=own_lr)
            run.folder.begin(run.recipe)
            return _forecast(run, steps)
    finally:
        leave()


def _forecast(run: Run, steps: int) -> dict[str, Any]:
    pretraining_seconds = _pretraining_seconds(run, steps)
    if run.recipe.pseudo_labels is not None:
        run = dataclasses.replace(run, data=with_placeholder_labels(run.recipe, run.data))
    recipe = run.recipe
    # Also where a run would not build the teacher before its end: its passes are measured.
    networks = load_networks(run, build_teacher=True)
    teacher = _teacher(run, networks)
    timed = None if teacher is None else TimedTeacher(teacher)
    method = build_method(run, networks, timed)
    with run.progress.announce(f"Measuring {steps} steps of the student's training"):
        measured, count = _measure(run, student_training(run, method), steps)
        peak = _peak_bytes(run.device)
        data = for_method(run, *configured(recipe.method)).data
        needs = method.needs(method.config)
        preset = (needs.augment or (data.augment,))[0]
        loader = training_loader(run, needs, data, recipe.seed)
        batch = measure_input(dataclasses.replace(run, data=data), loader, preset, 2 * STEPS)
        student_seconds = _seconds(run.device, _student_step(method, batch.images))
    accumulate = recipe.train.accumulate
    per_epoch = -(-steps_per_epoch(run) // accumulate)
    total_steps = recipe.epochs * per_epoch
    if recipe.train.max_steps is not None:
        total_steps = min(total_steps, recipe.train.max_steps)
    epochs = -(-total_steps // per_epoch)
    length = Length.of(total_steps, epochs, recipe.train.evaluate_every)
    teacher_seconds = 0.0 if timed is None else timed.seconds(count)
    overlap = run.workers > 0 and not isinstance(data.train, MemorySource)
    times = StepTimes.of(
        measured.step,
        teacher=teacher_seconds,
        student=accumulate * student_seconds,
        batch=accumulate * batch.measured,
        overlap=overlap,
    )
    if batch.now != batch.measured:
        times = times.with_batch(accumulate * batch.now)
    cache, cache_plan = _cache(run, teacher, data)
    cached = times
    if cache_plan is not None:
        rows = needs.views * accumulate * _row_seconds(cache_plan.codec, recipe.batch_size, run.device)
        passes = epochs * needs.views
        computed = min(1.0, cache_plan.replay.views / passes) if cache_plan.share_computed else 0.0
        cached = times.with_teacher(computed * teacher_seconds + rows, accumulate * batch.now)
    if cache is not None and cache["on"]:
        times = cached
    alternatives = {
        setting: times.with_batch(accumulate * seconds) for setting, seconds in batch.others.items()
    }
    if cache is not None and cache["possible"] and not cache["on"]:
        alternatives["teacher.cache=auto"] = cached
    seconds = {
        "pretraining": pretraining_seconds,
        "pixel_cache": batch.fill,
        "teacher": _teacher_seconds(run, networks, steps),
        "preparations": _preparation_seconds(run, method, teacher, steps),
        "student": length.seconds(measured, times.whole),
        "delivery": _delivery_seconds(run, teacher, teacher_seconds / accumulate, student_seconds),
    }
    end = measured.epoch_end + measured.evaluation / recipe.train.evaluate_every
    return {
        "schema": SCHEMA,
        "recipe": recipe.name,
        "device": str(run.device),
        "threads": recipe.train.threads,
        "images": len(data.train),
        "batch_size": recipe.batch_size,
        "steps_per_epoch": per_epoch,
        "epochs": epochs,
        "measured_steps": steps,
        "images_per_s": recipe.batch_size * accumulate / times.whole,
        "step_ms": 1e3 * times.whole,
        "epoch_s": per_epoch * times.whole + end,
        "epoch_end_s": end,
        "seconds": {**seconds, "total": sum(seconds.values())},
        "peak_memory_bytes": peak,
        "shares": shares(times, measured, length),
        "teacher_cache": cache,
        "not_counted": _not_counted(run),
        "advice": advice(times, alternatives, measured, length, recipe.train.evaluate_every),
    }


def _teacher(run: Run, networks: dict[str, LoadedNetwork]) -> Teacher | None:
    """Freezes the recipe's teacher with the weights that it starts from."""
    section = run.recipe.teacher
    if section is None:
        return None
    start = networks["teacher"]
    size = None if teacher_needs_training(section, start) else own_size(run, section, start)
    return FrozenTeacher(tapped(run, section, start, frozen=True), size=size)


def _measure(run: Run, training: Training, steps: int) -> tuple[Measured, int]:
    """Runs a training of a few short epochs, of which the last two are evaluated.

    Returns:
        Its times, and the number of its steps.
    """
    watch, accumulate = Stopwatch(), training.train.accumulate
    method = training.method
    data = for_method(run, type(method), method.config).data
    whole = -(-max(1, len(data.train) // run.recipe.batch_size) // accumulate)
    per_epoch = min(whole, -(-(WARM_UP + steps) // LEAST_EPOCHS))
    epochs = max(LEAST_EPOCHS, -(-(WARM_UP + steps) // per_epoch))
    train = training.train.model_copy(
        update={
            "max_steps": epochs * per_epoch, "evaluate_every": epochs - 1, "checkpoint_minutes": 1e6,
            "tensorboard": False,
        }
    )  # fmt: skip
    shortened = dataclasses.replace(
        training, train=train, epochs=max(training.epochs, epochs), batches=per_epoch * accumulate
    )
    run_training(dataclasses.replace(run, progress=watch), shortened)
    return watch.result(), epochs * per_epoch


def _pretraining_seconds(run: Run, steps: int) -> float:
    """Returns the seconds of the training without labels; 0 if there is none. Its clustering is not in it."""
    section = run.recipe.pseudo_labels
    if section is None:
        return 0.0
    with run.progress.announce("Measuring the training without labels"):
        training = pretraining_of(run, section, build_backbone(run))
        return _whole(run, training, _measure(run, training, max(3, steps // 2))[0])


def _not_counted(run: Run) -> list[str]:
    """Lists what the run does and the forecast does not measure."""
    found, int8 = [], run.recipe.export.int8
    if int8 is not None and int8.qat_epochs:
        found.append(f"the {int8.qat_epochs} epochs of the training for int8")
    if run.recipe.pseudo_labels is not None:
        found.append("clustering the features")
    return found


def _teacher_seconds(run: Run, networks: dict[str, LoadedNetwork], steps: int) -> float:
    """Returns the seconds that the teacher's training or fine-tuning takes; 0 if there is none to do."""
    section = run.recipe.teacher
    if section is None:
        return 0.0
    start, real = networks["teacher"], without_extra(run)
    if not teacher_needs_training(section, start) or teacher_is_stored(real, start):
        return 0.0
    with run.progress.announce("Measuring the teacher's training"):
        training = teacher_training(real, section, start)
        measured, _ = _measure(real, training, max(3, steps // 2))
    return _whole(real, training, measured)


def _whole(run: Run, training: Training, measured: Measured) -> float:
    """Returns the seconds of a whole training of which a few steps were measured."""
    method, recipe = training.method, run.recipe
    images = len(for_method(run, type(method), method.config).data.train)
    per_epoch = -(-max(1, images // recipe.batch_size) // recipe.train.accumulate)
    total = min(training.epochs * per_epoch, training.train.max_steps or sys.maxsize)
    length = Length.of(total, -(-total // per_epoch), training.train.evaluate_every)
    return length.seconds(measured, measured.step)


def _preparation_seconds(run: Run, method: Method, teacher: Teacher | None, steps: int) -> float:
    """Returns the seconds of the trainings of heads on the teacher, whether they are stored or not."""
    seconds = 0.0
    for preparation in method.preparations(method.config):
        assert teacher is not None
        real = without_extra(run)
        with run.progress.announce(f"Measuring the training of the teacher's {preparation.name}"):
            training = preparation_training(real, preparation, teacher)
            seconds += _whole(real, training, _measure(real, training, max(3, steps // 2))[0])
    return seconds


def _delivery_seconds(
    run: Run, teacher: Teacher | None, teacher_seconds: float, student_seconds: float
) -> float:
    """Estimates the time after the training: test passes of all files, export, proof and timing."""
    batches = len(run.data.test) / run.recipe.batch_size
    # PyTorch once, each exported format once, golden outputs and the record of the report.
    passes = (1 + len(run.recipe.export.formats)) * student_seconds / 3 + teacher_seconds
    return batches * passes + DELIVERY_SECONDS * (1.5 if teacher is not None else 1.0)


def _student_step(method: Method, images: Tensor) -> Callable[[], None]:
    """Returns a function that computes the student's output, a loss of it and the gradients."""
    student = method.networks.student
    student.train_mode(True)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def step() -> None:
        output = wide(student(images, frozenset({student.task.activation})).output(student.task))
        loss = F.cross_entropy(output, labels) if student.task.has_classes else output.square().mean()
        torch.autograd.backward(loss)

    return step


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Measures a call, the mean of several after one that is not counted."""
    work()
    wait_for(device)
    began = time.perf_counter()
    for _ in range(REPEATS):
        work()
    wait_for(device)
    return (time.perf_counter() - began) / REPEATS


def _peak_bytes(device: torch.device) -> int:
    """Returns the largest memory so far: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cache(run: Run, teacher: Teacher | None, data: Data) -> tuple[dict[str, Any] | None, CachePlan | None]:
    """Describes the teacher cache: the recipe's, or the one that `auto` would make; None: there is none."""
    section = run.recipe.teacher
    if teacher is None or section is None:
        return None, None
    on = isinstance(section.cache, CacheSection)
    recipe = run.recipe
    if not on:
        recipe = recipe.replace(teacher=section.model_copy(update={"cache": "auto"}))
    found, why = plan_cache(recipe, needs_of(recipe), teacher, len(data.train))
    if found is None:
        return {"on": False, "possible": False, "reason": why}, None
    document = {
        "on": on, "possible": True, "views": found.replay.views, "keep": found.codec.kind,
        "bytes": found.bytes, "computed_share": found.share_computed,
    }  # fmt: skip
    return document, found


def _row_seconds(codec: Codec, batch_size: int, device: torch.device) -> float:
    """Measures the time in which a batch's rows are read from a file and decoded."""
    numbers, want = np.arange(batch_size), codec.gives
    with tempfile.TemporaryDirectory(prefix="kdcompress-plan-") as folder:
        files = RowFiles(Path(folder), codec.width)
        files.write("rows", numbers, np.zeros((batch_size, codec.width), np.uint8))

        def read() -> Activations:
            rows, _ = files.read("rows", numbers)
            return codec.decode(moved(torch.from_numpy(rows), device), want)

        with contextlib.closing(files):
            return _seconds(device, read)
