"""Generated images: opened with the data, judged by the teacher, and kept from everybody but the student."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress import __version__
from kdcompress.data.batch import Batch
from kdcompress.data.dataset import Data
from kdcompress.data.extra import KEY, open_extra
from kdcompress.data.raw import OnProgress
from kdcompress.data.source import FolderSource, MemorySource
from kdcompress.errors import UserError
from kdcompress.networks.teacher import Teacher
from kdcompress.progress import Bar
from kdcompress.recipe import ExtraSection, Recipe
from kdcompress.run.context import Run
from kdcompress.train import teacher_store

STEM = "extra_images"
"""Of the file under checkpoints/ and in the cache that says which images are kept, and with which labels."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the teacher says of generated images.

    Args:
        losses: `[N]` float32, its cross-entropy with each image's label, or with its own class where an image
            has none.
        classes: `[N]` int64, the class it gives each image.
    """

    losses: Tensor
    classes: Tensor


def with_extra(recipe: Recipe, data: Data, progress: OnProgress | None = None) -> Data:
    """The data with the generated images of the recipe, opened and checked, if it names any.

    Args:
        recipe: Of the run.
        data: Opened; its classes are told.
        progress: Told of the check of the image files.

    Raises:
        DataError: They cannot be used; the message says why and what to change.
    """
    if recipe.data.extra is None:
        return data
    assert isinstance(data.train, MemorySource | FolderSource)
    extra = open_extra(recipe.data, data.class_names, data.train, progress)
    return dataclasses.replace(data, extra=extra, warnings=(*data.warnings, *extra.warnings))


def without_extra(run: Run) -> Run:
    """The run of the real images alone, on which teachers are trained and tested."""
    return dataclasses.replace(run, data=dataclasses.replace(run.data, extra=None))


def rehearsed(run: Run, teacher: Teacher | None) -> Run:
    """The run as it will be once the teacher has judged the generated images, as far as it can be known.

    Raises:
        UserError: The teacher is to judge them and has no classifier to do it with.
    """
    section, extra = run.recipe.data.extra, run.data.extra
    if section is None or extra is None or not _asks_teacher(section):
        return run
    assert teacher is not None, "held by the recipe's checks"
    if teacher.backbone:
        raise UserError(
            f"data.extra: keep and relabel go by the teacher's classes, and {teacher.model} has no "
            "classifier here; leave both out"
        )
    if not section.relabel:
        return run
    source = dataclasses.replace(extra.source, labels=torch.zeros_like(extra.source.labels))
    return _with_source(run, source, extra.counts)


def chosen(run: Run, teacher: Teacher | None) -> Run:
    """The run with those generated images, and those labels, that the teacher leaves.

    What it left is kept like a prepared teacher: a resume on a device that rounds otherwise must not choose
    others.
    """
    section, extra = run.recipe.data.extra, run.data.extra
    if section is None or extra is None or not _asks_teacher(section):
        return run
    assert teacher is not None, "held by the recipe's checks"
    kept = None
    if run.processes.first:
        checkpoints, key = run.folder.checkpoints, _key(run, section, teacher)
        found = teacher_store.find(checkpoints, key, STEM)
        if found is None:
            found = teacher_store.keep(checkpoints, key, *_choice(run, section, teacher), STEM)
        else:
            teacher_store.store(checkpoints, key, found.state, found.note, STEM)
        kept = (found.state["indices"], found.state["labels"], found.note)
    indices, labels, note = run.processes.agree(kept)
    agreement = note["agreement"]
    least = teacher_store.least_top1(run.data.num_classes)
    if run.processes.first and agreement is not None and agreement < least:
        run.progress.warn(
            f"{KEY}: the teacher gives {100 * agreement:.1f} % of the labelled generated images the class of "
            f"their label; are the classes numbered as in the data?"
        )
    return _with_source(run, dataclasses.replace(extra.source.subset(indices), labels=labels), note["counts"])


def judge(teacher: Teacher, batches: Iterable[Batch], bar: Bar | None = None) -> Judged:
    """The teacher's cross-entropy and its class, image by image, in float32.

    Args:
        teacher: With a classifier.
        batches: Un-augmented images; labels of -1 where there are none.
        bar: Moves on by the images judged.
    """
    losses, classes = [], []
    for batch in batches:
        logits = teacher(batch.images).logits
        assert logits is not None
        own = logits.argmax(1)
        labels = torch.where(batch.labels >= 0, batch.labels, own)
        losses.append(F.cross_entropy(logits.float(), labels, reduction="none").cpu())
        classes.append(own.cpu())
        if bar is not None:
            bar.advance(len(batch))
    return Judged(torch.cat(losses), torch.cat(classes))


def least_of_each_class(losses: Tensor, classes: Tensor, share: float) -> Tensor:
    """The images up to their class's quantile of the losses.

    The quantile is a loss that occurs: of n images of a class, the ⌈share · n⌉ with the least are kept, and
    what equals the last of them. An image whose loss is not finite counts as the worst.

    Source:
        Ding et al., Distilling and transferring knowledge via cGAN-generated samples for image classification
        and regression, 2021 (cGAN-KD). There the threshold is the 0.9 quantile of a sample drawn beforehand,
        whose losses were taken of augmented images; here it is of all generated images of the class, as they
        are.

    Args:
        losses: `[N]`.
        classes: `[N]` int64.
        share: In (0, 1].

    Returns:
        `[M]` int64 positions, ascending.
    """
    losses = torch.where(losses.isfinite(), losses, math.inf)
    kept = torch.zeros(len(losses), dtype=torch.bool)
    for label in range(int(classes.max()) + 1):
        members = (classes == label).nonzero().flatten()
        if len(members) == 0:
            continue
        # A product such as 0.55 · 100 comes out above the whole number that is meant.
        count = math.ceil(share * len(members) - 1e-9)
        threshold = losses[members].sort().values[count - 1]
        kept[members] = losses[members] <= threshold
    return kept.nonzero().flatten()


def _asks_teacher(section: ExtraSection) -> bool:
    return section.keep < 1 or section.relabel


def _choice(run: Run, section: ExtraSection, teacher: Teacher) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(which are kept and their labels, what is recorded of it)."""
    extra = run.data.extra
    assert extra is not None
    source = extra.source
    with run.evaluation(source) as batches, run.progress.bar("judge generated images", len(source)) as bar:
        judged = judge(teacher, batches, bar)
    given = source.labels
    indices = least_of_each_class(judged.losses, torch.where(given >= 0, given, judged.classes), section.keep)
    labels = (judged.classes if section.relabel else given)[indices]
    counts = {**extra.counts, "kept": len(indices)}
    if section.relabel:
        counts["relabelled"] = int((labels != given[indices]).sum())
    has_label = given >= 0
    right = (judged.classes == given)[has_label].double()
    note = {"counts": counts, "agreement": right.mean().item() if len(right) else None}
    return {"indices": indices, "labels": labels}, note


def _with_source(run: Run, source: MemorySource | FolderSource, counts: dict[str, int]) -> Run:
    assert run.data.extra is not None
    extra = dataclasses.replace(run.data.extra, source=source, counts=counts)
    return dataclasses.replace(run, data=dataclasses.replace(run.data, extra=extra))


def _key(run: Run, section: ExtraSection, teacher: Teacher) -> str:
    """A hash of everything that the choice depends on, and of nothing else."""
    extra = run.data.extra
    assert extra is not None
    parts = {
        "of": STEM,
        "kdcompress": __version__,
        "extra": [extra.sha256, extra.counts, section.keep, section.relabel],
        "classes": run.data.class_names,
        "images": [run.data.channels, run.data.image_size],
        "teacher": [teacher.model, teacher.size, teacher.fingerprint],
        "mean_std": teacher.normalisation,
        "precision": run.precision,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
