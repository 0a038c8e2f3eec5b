"""Generated images: opened with the data, filtered by the teacher, and used by the student alone."""

from __future__ import annotations

import dataclasses
import functools
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
from kdcompress.run.teacher_gate import weak_top1_limit
from kdcompress.train import result_store
from kdcompress.train.result_store import StoredResult

STEM = "extra_images"
"""Name of the stored selection: indices of the images that are used, and their labels."""


@dataclass(frozen=True, slots=True)
class TeacherJudgement:
    """The teacher's outputs on generated images.

    Args:
        losses: `[N]` float32, cross-entropy with each image's label, or with the predicted class for an image
            without a label.
        classes: `[N]` int64, predicted class of each image.
    """

    losses: Tensor
    classes: Tensor


def with_extra(recipe: Recipe, data: Data, progress: OnProgress | None = None) -> Data:
    """Opens and checks the generated images of the recipe, if it names any, and adds them to the data.

    Args:
        recipe: The run's recipe.
        data: Opened; its classes are known.
        progress: Receives the progress of the file check.

    Raises:
        DataError: They cannot be used; the message says why and what to change.
    """
    if recipe.data.extra is None:
        return data
    assert isinstance(data.train, MemorySource | FolderSource)
    extra = open_extra(recipe.data, data.class_names, data.train, progress)
    return dataclasses.replace(data, extra=extra, warnings=(*data.warnings, *extra.warnings))


def without_extra(run: Run) -> Run:
    """Returns the run with the real images alone, on which teachers are trained and tested."""
    return dataclasses.replace(run, data=dataclasses.replace(run.data, extra=None))


def check_extra_images(run: Run, teacher: Teacher | None) -> Run:
    """Returns the run as it will be after the selection, as far as it can be known before.

    Raises:
        UserError: The teacher is to judge them and has no classifier to do it with.
    """
    section, extra = run.recipe.data.extra, run.data.extra
    if section is None or extra is None or not _asks_teacher(section):
        return run
    assert teacher is not None, "held by the recipe's checks"
    if not teacher.task.has_classes:
        raise UserError(
            f"data.extra: keep and relabel go by the teacher's classes, and {teacher.model} has no "
            "classifier here; leave both out"
        )
    if not section.relabel:
        return run
    source = dataclasses.replace(extra.source, labels=torch.zeros_like(extra.source.labels))
    return _with_source(run, source, extra.counts)


def select_extra_images(run: Run, teacher: Teacher | None) -> Run:
    """Keeps the generated images that pass the teacher's filter.

    The selection is stored, so that a resume on another device uses the same images.
    """
    section, extra = run.recipe.data.extra, run.data.extra
    if section is None or extra is None or not _asks_teacher(section):
        return run
    assert teacher is not None, "held by the recipe's checks"
    key = _key(run, section, teacher)
    selection = result_store.result(
        run.folder.checkpoints, STEM, key, run.processes, lambda: _select(run, section, teacher),
        functools.partial(_is_selection, run),
    )  # fmt: skip
    indices, labels, note = selection.state["indices"], selection.state["labels"], selection.note
    agreement = note["agreement"]
    least = weak_top1_limit(1 / run.data.num_classes)
    if run.processes.first and agreement is not None and agreement < least:
        run.progress.warn(
            f"{KEY}: the teacher gives {100 * agreement:.1f} % of the labelled generated images the class of "
            f"their label; are the classes numbered as in the data?"
        )
    return _with_source(run, dataclasses.replace(extra.source.subset(indices), labels=labels), note["counts"])


def judge_images(teacher: Teacher, batches: Iterable[Batch], bar: Bar | None = None) -> TeacherJudgement:
    """Computes the teacher's cross-entropy and predicted class of each image, in float32.

    Args:
        teacher: Has a classifier.
        batches: Un-augmented images; a label of -1 means none.
        bar: Advances by the number of images.
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
    return TeacherJudgement(torch.cat(losses), torch.cat(classes))


def least_of_each_class(losses: Tensor, classes: Tensor, share: float) -> Tensor:
    """Selects the images up to their class's quantile of the losses.

    The quantile is a loss that occurs: among n images of a class, the ⌈share · n⌉ with the least loss are
    selected, and those that equal the last of them. A loss that is not finite counts as the worst.

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
    selected = torch.zeros(len(losses), dtype=torch.bool)
    for label in range(int(classes.max()) + 1):
        members = (classes == label).nonzero().flatten()
        if len(members) == 0:
            continue
        # A product such as 0.55 · 100 comes out above the whole number that is meant.
        count = math.ceil(share * len(members) - 1e-9)
        threshold = losses[members].sort().values[count - 1]
        selected[members] = losses[members] <= threshold
    return selected.nonzero().flatten()


def _asks_teacher(section: ExtraSection) -> bool:
    return section.keep < 1 or section.relabel


def _select(run: Run, section: ExtraSection, teacher: Teacher) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Computes the selection: (indices and labels, facts about it)."""
    extra = run.data.extra
    assert extra is not None
    source = extra.source
    with run.evaluation(source) as batches, run.progress.bar("judge generated images", len(source)) as bar:
        judgement = judge_images(teacher, batches, bar)
    given = source.labels
    classes = torch.where(given >= 0, given, judgement.classes)
    indices = least_of_each_class(judgement.losses, classes, section.keep)
    labels = (judgement.classes if section.relabel else given)[indices]
    counts = {**extra.counts, "kept": len(indices)}
    if section.relabel:
        counts["relabelled"] = int((labels != given[indices]).sum())
    has_label = given >= 0
    right = (judgement.classes == given)[has_label].double()
    note = {"counts": counts, "agreement": right.mean().item() if len(right) else None}
    return {"indices": indices, "labels": labels}, note


def _is_selection(run: Run, stored: StoredResult) -> bool:
    """Returns True if a stored result selects among the run's generated images."""
    assert run.data.extra is not None
    tensors, note = stored.state, stored.note
    if tensors.keys() != {"indices", "labels"} or not {"counts", "agreement"} <= note.keys():
        return False
    indices, labels = tensors["indices"], tensors["labels"]
    if indices.dtype != torch.int64 or labels.dtype != torch.int64 or indices.ndim != 1:
        return False
    counts, agreement = note["counts"], note["agreement"]
    return (
        labels.shape == indices.shape
        and bool(((indices >= 0) & (indices < len(run.data.extra.source))).all())
        and bool(((labels >= -1) & (labels < run.data.num_classes)).all())
        and (agreement is None or isinstance(agreement, float))
        and isinstance(counts, dict)
        and all(isinstance(count, int) for count in counts.values())
    )


def _with_source(run: Run, source: MemorySource | FolderSource, counts: dict[str, int]) -> Run:
    assert run.data.extra is not None
    extra = dataclasses.replace(run.data.extra, source=source, counts=counts)
    return dataclasses.replace(run, data=dataclasses.replace(run.data, extra=extra))


def _key(run: Run, section: ExtraSection, teacher: Teacher) -> str:
    """Returns a hash of everything that the selection depends on."""
    extra = run.data.extra
    assert extra is not None
    parts = {
        "of": STEM,
        "kdcompress": __version__,
        "extra": [extra.sha256, extra.counts, section.keep, section.relabel],
        "classes": run.data.class_names,
        "images": [run.data.channels, run.data.image_size, run.data.fit],
        "teacher": [teacher.model, teacher.size, teacher.fingerprint],
        "mean_std": teacher.normalisation,
        "precision": run.precision,
    }
    return result_store.key_of(parts)
