"""The teacher: prepared where the recipe says so, and tested before anybody learns from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdcompress import __version__, discovery, documents
from kdcompress.atomic import sha256_of
from kdcompress.data.batch import Batch, View
from kdcompress.deploy.accuracy import accuracy
from kdcompress.deploy.gate import Gate
from kdcompress.deploy.macs import count_macs, count_parameters
from kdcompress.errors import WeakTeacher
from kdcompress.methods.base import find_method
from kdcompress.networks.from_recipe import Start, teacher_needs_training
from kdcompress.networks.networks import Networks
from kdcompress.networks.teacher import Teacher
from kdcompress.recipe import TeacherSection
from kdcompress.steps.context import Run, TestSplit
from kdcompress.steps.learn import loop
from kdcompress.steps.networks import info, tapped
from kdcompress.train import teacher_store
from kdcompress.train.evaluate import predict_teacher, score

CLASSIFIER_FIRST = 0.2
"""Share of a fine-tuning in which only the new classifier moves: a random start spoils features."""
HELD_OUT_SAMPLE = 2_000
"""Where nothing is held out, the teacher is tested on so many training images, as they are."""


@dataclass(frozen=True, slots=True)
class Teaching:
    """A teacher that has been tested.

    Args:
        teacher: Frozen.
        start: What it was loaded from.
        trained: Whether this project trained or fine-tuned it on this data.
        held_out: What it scored before the student's training.
        gate: That score held against the least one.
    """

    teacher: Teacher
    start: Start
    trained: bool
    held_out: dict[str, Any]
    gate: Gate


def teach(run: Run, found: dict[str, Start]) -> Teaching | None:
    """The teacher, prepared where the recipe says so, and tested before anybody learns from it."""
    section = run.recipe.teacher
    if section is None:
        return None
    start = found["teacher"]
    trained = teacher_needs_training(section, start)
    if trained:
        _prepare(run, start)
    size = None if trained else _own_size(run, section, start)
    teacher = Teacher(tapped(run, section, start), size=size)
    held_out, gate = _test_teacher(run, teacher)
    return Teaching(teacher, start, trained, held_out, gate)


def _own_size(run: Run, section: TeacherSection, start: Start) -> tuple[int, int] | None:
    """(H, W) that a teacher from elsewhere wants its images resized to; None: it takes them as they are."""
    size: int | tuple[int, int] | None = section.input.size
    if size is None and start.weights is not None:
        size = start.weights.size
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else size
    return None if pair == run.data.image_size else pair


def _prepare(run: Run, start: Start) -> None:
    """Trains or fine-tunes the teacher, or takes it from an earlier run with the same inputs."""
    recipe, section = run.recipe, run.recipe.teacher
    assert section is not None
    surroundings = {
        "kdcompress": __version__,
        "torch": torch.__version__,
        "device": run.device.type,
        "precision": run.precision,
        "processes": run.processes.world,
        # Grey images are repeated on three channels where the student takes no others.
        "channels": run.data.channels,
    }
    key = teacher_store.key(
        recipe,
        listing_sha256=run.data.listing_sha256,
        weights_sha256=start.weights.sha256 if start.weights else None,
        surroundings=surroundings,
    )
    kept = teacher_store.find(run.folder.checkpoints, key)
    if run.processes.agree(kept is not None):
        if run.processes.first:
            assert kept is not None
            teacher_store.store(run.folder.checkpoints, key, kept.state, kept.note)
            teacher_store.fill(start.network, kept.state)
        run.processes.share([start.network], parameters=True)
        return
    fine_tuned = start.weights is not None
    rate = section.lr or recipe.optim.lr * (0.1 if fine_tuned else 1.0)
    plain = find_method("none")
    in_two = fine_tuned and section.epochs > 1
    config = plain.Config.model_validate({"classifier_first": CLASSIFIER_FIRST if in_two else 0.0})
    method = plain(config, Networks(tapped(run, section, start)), info(run)).to(run.device)
    train = recipe.train.model_copy(update={"ema": None, "compile": False, "ship": "best"})
    outcome = loop(run, method, "teacher", seed=section.seed, epochs=section.epochs, train=train, lr=rate)
    start.network.load_state_dict(outcome.state)
    note = {
        "model": section.model,
        "fine_tuned": fine_tuned,
        "held_out": outcome.best,
        "epoch": outcome.epoch,
    }
    if run.processes.first:
        teacher_store.keep(run.folder.checkpoints, key, outcome.state, note)
    run.processes.wait()


def _test_teacher(run: Run, teacher: Teacher) -> tuple[dict[str, Any], Gate]:
    section, data = run.recipe.teacher, run.data
    assert section is not None
    where, images = "held-out", data.held_out
    if images is None:
        every = max(1, len(data.train) // HELD_OUT_SAMPLE)
        where, images = "training", data.train.subset(torch.arange(0, len(data.train), every))
    figures = None
    if run.processes.first:
        with run.evaluation(images) as batches:
            figures = score(*predict_teacher(teacher, batches))
    figures = run.processes.agree(figures)
    least = teacher_store.least_top1(len(data.class_names)) if section.min_top1 is None else section.min_top1
    count = len(images)
    waived = ", waived by teacher.min_top1: 0" if section.min_top1 == 0 else ""
    detail = f"top-1 of {section.model} on {count:,} {where} images, before training{waived}"
    gate = Gate("teacher_top1", figures["top1"] >= least, figures["top1"], least, detail)
    if not gate.passed:
        raise WeakTeacher(
            f"teacher {section.model}: top-1 of {100 * figures['top1']:.1f} % on {count:,} {where} images, "
            f"at least {100 * least:.1f} % is expected. Check its weights, its class order and its input "
            "(teacher.input), give it more teacher.epochs, or waive this with teacher.min_top1: 0"
        )
    return {**figures, "n": count, "split": where}, gate


def unchanged(teacher: Teacher) -> Gate:
    """The teacher is, bit for bit, what it was before the student learnt from it."""
    teacher.assert_unchanged()  # an AssertionError is our bug, and keeps its traceback
    return Gate(
        "teacher_unchanged", True, 0, 0, "tensors of the teacher that differ from before the training"
    )


def figures(run: Run, teaching: Teaching, file: Path, test: TestSplit) -> dict[str, Any]:
    """What the teacher scores on the test split in float32, and its ONNX file for the bench."""
    teacher = teaching.teacher
    teacher.precision = None
    batches = (Batch((View(images.to(run.device), labels, -1),), labels, labels) for images, labels in test())
    logits, labels = predict_teacher(teacher, batches)
    tapped = teacher.tapped
    height, width = teacher.size or run.data.image_size
    spec = dataclasses.replace(
        run.data.input_spec(), mean=tuple(tapped.mean.tolist()), std=tuple(tapped.std.tolist()),
        height=height, width=width,
    )  # fmt: skip
    plugin = discovery.load("format", "onnx")
    plugin.write(tapped.network.cpu(), spec, file, metadata={})
    return {
        **accuracy(logits, labels, len(run.data.class_names)),
        "params": count_parameters(tapped.network),
        "macs": count_macs(tapped.network, run.data.channels, height, width),
        "bytes": file.stat().st_size,
    }


def manifest_entry(run: Run, teaching: Teaching | None) -> dict[str, Any] | None:
    """The manifest's `teacher` object."""
    if teaching is None:
        return None
    kept = run.folder.checkpoints / teacher_store.FILE
    sha256 = sha256_of(kept) if teaching.trained else None
    return documents.teacher_entry(run.recipe, teaching.start.weights, sha256)
