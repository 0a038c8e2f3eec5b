"""The teacher: prepared where the recipe says so, and tested before anybody learns from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcompress import discovery
from kdcompress.atomic import sha256_of
from kdcompress.deploy.accuracy import scored, spread
from kdcompress.deploy.gate import Gate, relative
from kdcompress.deploy.macs import count_macs, count_parameters
from kdcompress.errors import WeakTeacher
from kdcompress.methods.base import find_method
from kdcompress.networks.activations import LOGITS, POOLED, Want
from kdcompress.networks.from_recipe import Start, teacher_needs_training
from kdcompress.networks.networks import Networks
from kdcompress.networks.teacher import Teacher
from kdcompress.recipe import TeacherSection
from kdcompress.report import documents
from kdcompress.run.context import Run, TestSplit
from kdcompress.run.networks import info, tapped
from kdcompress.run.training import loop, taught_by
from kdcompress.tasks import CLASSIFICATION, EMBEDDING
from kdcompress.train import teacher_store
from kdcompress.train.evaluate import deciding, predict_teacher, score

CLASSIFIER_FIRST = 0.2
"""Share of a fine-tuning in which only the new classifier moves: a random start spoils features."""
VARIATION = 1e-4
"""Where no labels say how good a teacher is, its outputs must at least depend on the image by this much."""
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
    size = None if trained else own_size(run, section, start)
    teacher = Teacher(tapped(run, section, start), size=size)
    held_out, gate = _test_teacher(run, teacher)
    return Teaching(teacher, start, trained, held_out, gate)


def own_size(run: Run, section: TeacherSection, start: Start) -> tuple[int, int] | None:
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
    key = teacher_store.key(
        recipe,
        listing_sha256=run.data.listing_sha256,
        weights_sha256=start.weights.sha256 if start.weights else None,
        surroundings=run.surroundings,
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
    labelled = taught_by(run, plain, config)
    method = plain(config, Networks(tapped(run, section, start)), info(labelled)).to(run.device)
    train = recipe.train.model_copy(update={"ema": None, "compile": False, "ship": "best"})
    optim = recipe.optim.model_copy(update={"lr": rate})
    outcome = loop(run, method, "teacher", seed=section.seed, epochs=section.epochs, train=train, optim=optim)
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
        # Where some have labels, those: of a few among many a sample might hold none.
        known = data.taught(labels=True, unlabelled=data.labelled == 0).train
        every = max(1, len(known) // HELD_OUT_SAMPLE)
        where, images = "training", known.subset(torch.arange(0, len(known), every))
    figures = None
    if run.processes.first:
        with run.evaluation(images) as batches:
            outputs, labels = predict_teacher(teacher, batches)
        figures = {**score(outputs, labels, backbone=teacher.backbone), "variation": _variation(outputs)}
    figures = run.processes.agree(figures)
    count = len(images)
    on = f"on {count:,} {where} images, before training"
    gate = _gate(section, figures, on, len(data.class_names))
    if not gate.passed:
        raise WeakTeacher(
            f"teacher {section.model}: {gate.detail}: {_told(gate.figure)}, at least {_told(gate.limit)} is "
            "expected. Check its weights, its class order and its input (teacher.input), give it more "
            "teacher.epochs, or waive this with teacher.min_top1: 0"
        )
    return {**figures, "n": count, "split": where}, gate


def _gate(section: TeacherSection, figures: dict[str, Any], on: str, num_classes: int) -> Gate:
    """What it must reach: a top-1, a backbone's by its neighbours; without labels, outputs that vary."""
    by = deciding(figures)
    waived = ", waived by teacher.min_top1: 0" if section.min_top1 == 0 else ""
    if by is None:
        least = 0.0 if section.min_top1 == 0 else VARIATION
        detail = f"spread of {section.model}'s outputs between images over their mean size {on}{waived}"
        varies = figures["variation"]
        return Gate("teacher_outputs_vary", varies >= least, varies, least, detail)
    least = teacher_store.least_top1(num_classes) if section.min_top1 is None else section.min_top1
    what = "top-1" if by == "top1" else "top-1 by nearest neighbours"
    detail = f"{what} of {section.model} {on}{waived}"
    return Gate(f"teacher_{by}", figures[by] >= least, figures[by], least, detail)


def _told(figure: Any) -> str:
    return f"{100 * figure:.3g} %"


def _variation(outputs: Tensor) -> float:
    """Near 0 where a network says the same of every image, as one whose weights were not loaded may."""
    return relative(spread(outputs), float(outputs.abs().mean()))


def unchanged(teacher: Teacher) -> Gate:
    """The teacher is, bit for bit, what it was before the student learnt from it."""
    teacher.assert_unchanged()  # an AssertionError is our bug, and keeps its traceback
    return Gate(
        "teacher_unchanged", True, 0, 0, "tensors of the teacher that differ from before the training"
    )


@dataclass(frozen=True, slots=True)
class OnTest:
    """What a teacher gives on the test split, in float32 and in the split's order.

    Args:
        logits: `[N, K]`; None: it has no classifier.
        pooled: `[N, D]`; None where a classifier learns from it, which is compared by classes.
        labels: `[N]`; -1 = none.
    """

    logits: Tensor | None
    pooled: Tensor | None
    labels: Tensor

    def figures(self, num_classes: int) -> dict[str, Any]:
        """As the student's in `results.json`."""
        found: dict[str, Any] = {}
        for task, outputs in ((EMBEDDING, self.pooled), (CLASSIFICATION, self.logits)):
            if outputs is not None:
                found |= scored(task, outputs, self.labels, num_classes).result()
        return found


def read_test_split(run: Run, teaching: Teaching, test: TestSplit, *, pooled: bool) -> OnTest:
    """Reads the teacher on the test split; its precision is float32 from here on.

    Args:
        run: The run.
        teaching: Whose teacher.
        test: Opens the split.
        pooled: Whether its pooled features are wanted beside its logits.
    """
    teacher = teaching.teacher
    teacher.precision = None
    want: Want = (frozenset() if teacher.backbone else LOGITS) | (POOLED if pooled else frozenset())
    logits, features, labels = [], [], []
    for images_BCHW, labels_B in test():
        read = teacher(images_BCHW.to(run.device), want)
        logits += [] if read.logits is None else [read.logits.cpu()]
        features += [] if read.pooled is None else [read.pooled.cpu()]
        labels.append(labels_B)
    return OnTest(
        torch.cat(logits) if logits else None, torch.cat(features) if features else None, torch.cat(labels)
    )


def figures(run: Run, teaching: Teaching, file: Path, on_test: OnTest) -> dict[str, Any]:
    """What the teacher scores on the test split in float32, and its ONNX file for the bench."""
    teacher = teaching.teacher
    tapped = teacher.tapped
    height, width = teacher.size or run.data.image_size
    spec = dataclasses.replace(
        run.data.input_spec(), mean=tuple(tapped.mean.tolist()), std=tuple(tapped.std.tolist()),
        height=height, width=width,
    )  # fmt: skip
    plugin = discovery.load("format", "onnx")
    plugin.write(
        tapped.network.cpu(), spec, file, metadata={}, task=EMBEDDING if teacher.backbone else CLASSIFICATION
    )
    return {
        **on_test.figures(len(run.data.class_names)),
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
