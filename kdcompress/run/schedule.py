"""Resolves `auto` batch sizes and epochs from the number of training images.

A recipe made for 1.2 million images (100 epochs, batches of 256) gives 2,000 images 700 optimiser steps:
too few. Here a training has at least `STEPS` of them, in smaller batches with a lower learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdcompress.data.pools import Pool
from kdcompress.recipe import Recipe, TeacherSection

LARGE_BATCH, SMALL_BATCH = 256, 32
"""Bounds of the batch size. With `data.batch_size: auto`, `optim.lr` is that of the larger."""
STEPS_PER_EPOCH = 50
"""Steps of an epoch that the batch size is chosen for."""
STEPS = 3_000
"""Least number of optimiser steps of a training from random weights."""
EPOCHS = (100, 300)
"""Bounds of the epochs of a training from random weights; 100 is usual for ImageNet."""
PRETRAINING_EPOCHS = (200, 800)
"""Bounds of the epochs of a training without labels: MoCo's on ImageNet, SimSiam's on CIFAR-10."""
FINE_TUNING_STEPS = 1_000
"""Least number of optimiser steps of a fine-tuning."""
FINE_TUNING_EPOCHS = (10, 60)
"""Bounds of the epochs of a fine-tuning."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Batch size and epochs of a run.

    Args:
        batch_size: Images of a global batch.
        lr: Base learning rate for such batches.
        epochs: Epochs of the student.
        teacher_epochs: Epochs of the teacher, if it is trained.
        pretraining_epochs: Epochs of the pre-training without labels, if there is one.
        pretraining_lr: Its base learning rate, for such batches.
        reasons: A sentence for each value that was resolved.
        warnings: A sentence for each value of the user that is far too low.
    """

    batch_size: int
    lr: float
    epochs: int
    teacher_epochs: int
    pretraining_epochs: int = 1
    pretraining_lr: float = 0.0
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def images_of_an_epoch(images: int, pools: Sequence[Pool], generated: float = 0.0) -> int:
    """Returns the number of images in an epoch: all, or where batches have fixed shares, one pass of a kind.

    Args:
        images: Number of training images.
        pools: Kinds of images with a fixed share of every batch; an epoch is one pass through the first.
        generated: Share of every batch that generated images have.
    """
    real = len(pools[0].indices) / pools[0].share if pools else images
    return round(real / (1 - generated))


def auto_batch_size(images: int) -> int:
    """Returns the largest power of two between the bounds that gives an epoch enough steps.

    Args:
        images: Number of images in an epoch.
    """
    size = LARGE_BATCH
    while size > SMALL_BATCH and images / size < STEPS_PER_EPOCH:
        size //= 2
    return size


def auto_epochs(steps_per_epoch: int, steps: int = STEPS, bounds: tuple[int, int] = EPOCHS) -> int:
    """Returns the epochs that give a training enough optimiser steps, within bounds.

    Args:
        steps_per_epoch: Optimiser steps of an epoch.
        steps: Least number of steps.
        bounds: Fewest and most epochs.
    """
    return min(max(-(-steps // steps_per_epoch), bounds[0]), bounds[1])


def resolve_schedule(recipe: Recipe, *, images: int, labelled: int, own_lr: bool = False) -> Schedule:
    """Computes the values that a recipe leaves open, and looks at those that it gives.

    Args:
        recipe: The run's recipe.
        images: Number of images in an epoch of the student's method (`images_of_an_epoch`).
        labelled: Number of training images with a label, which a teacher is trained on.
        own_lr: True if `optim.lr` comes from `--set`; it is then not scaled to the batch size.
    """
    reasons, warnings = [], []
    size, lr = recipe.data.batch_size, recipe.optim.lr
    if size == "auto":
        size = auto_batch_size(images)
        lr = recipe.optim.lr if own_lr else recipe.optim.lr * size / LARGE_BATCH
        scaled = "as set" if own_lr else f"{recipe.optim.lr:g} for batches of {LARGE_BATCH}"
        reasons.append(
            f"data.batch_size: auto is {size} for epochs of {images:,} images; optim.lr is {lr:g}, {scaled}"
        )
    epochs, per_epoch = recipe.train.epochs, _steps(recipe, images, size)
    if epochs == "auto":
        epochs = auto_epochs(per_epoch)
        reasons.append(f"train.epochs: auto is {epochs}, {epochs * per_epoch:,} optimiser steps")
    elif epochs * per_epoch < STEPS // 3 and recipe.train.max_steps is None:
        warnings.append(
            f"train.epochs: {epochs} gives {epochs * per_epoch:,} optimiser steps; a student usually needs "
            f"{STEPS:,} to show what it can do ({auto_epochs(per_epoch)} epochs here)"
        )
    teacher_epochs = 1
    if recipe.teacher is not None:
        given, fine_tuned = recipe.teacher.epochs, _has_weights(recipe.teacher)
        teacher_epochs = 10 if given == "auto" else given
        if given == "auto" and labelled:
            of_teacher = _steps(recipe, labelled, size)
            bounds = (FINE_TUNING_STEPS, FINE_TUNING_EPOCHS) if fine_tuned else (STEPS, EPOCHS)
            teacher_epochs = auto_epochs(of_teacher, *bounds)
            kind = "fine-tuning" if fine_tuned else "training"
            reasons.append(
                f"teacher.epochs: auto is {teacher_epochs}, {teacher_epochs * of_teacher:,} optimiser steps "
                f"if the teacher needs {kind}"
            )
    pretraining_epochs, pretraining_lr = 1, 0.0
    if recipe.pseudo_labels is not None:
        own, pretraining_lr = recipe.pseudo_labels.epochs, recipe.pseudo_labels.optim.lr
        pretraining_epochs = auto_epochs(per_epoch, STEPS, PRETRAINING_EPOCHS) if own == "auto" else own
        if own == "auto":
            reasons.append(
                f"pseudo_labels.epochs: auto is {pretraining_epochs}, {pretraining_epochs * per_epoch:,} "
                "optimiser steps"
            )
        if recipe.data.batch_size == "auto":
            pretraining_lr *= size / LARGE_BATCH
    return Schedule(
        size, lr, epochs, teacher_epochs, pretraining_epochs, pretraining_lr, tuple(reasons), tuple(warnings)
    )


def with_schedule(recipe: Recipe, schedule: Schedule) -> Recipe:
    """Returns the recipe with the values of a schedule."""
    teacher = recipe.teacher
    if teacher is not None:
        teacher = teacher.model_copy(update={"epochs": schedule.teacher_epochs})
    pseudo = recipe.pseudo_labels
    if pseudo is not None:
        optim = pseudo.optim.model_copy(update={"lr": schedule.pretraining_lr})
        pseudo = pseudo.model_copy(update={"epochs": schedule.pretraining_epochs, "optim": optim})
    return recipe.replace(
        pseudo_labels=pseudo,
        data=recipe.data.model_copy(update={"batch_size": schedule.batch_size}),
        train=recipe.train.model_copy(update={"epochs": schedule.epochs}),
        optim=recipe.optim.model_copy(update={"lr": schedule.lr}),
        teacher=teacher,
    )


def with_recorded(recipe: Recipe, recorded: Recipe, *, own_lr: bool = False) -> Recipe:
    """Returns the recipe with the values that an earlier session of the same run resolved.

    Args:
        recipe: As requested now.
        recorded: `recipe.yaml` of the run folder.
        own_lr: As for `resolve_schedule`.
    """
    data, train, optim, teacher = recipe.data, recipe.train, recipe.optim, recipe.teacher
    if data.batch_size == "auto":
        data = data.model_copy(update={"batch_size": recorded.data.batch_size})
        optim = optim if own_lr else optim.model_copy(update={"lr": recorded.optim.lr})
    if data.pixel_cache == "auto":
        data = data.model_copy(update={"pixel_cache": recorded.data.pixel_cache})
    if data.decoder == "auto":
        data = data.model_copy(update={"decoder": recorded.data.decoder})
    if train.epochs == "auto":
        train = train.model_copy(update={"epochs": recorded.train.epochs})
    if teacher is not None and recorded.teacher is not None and teacher.epochs == "auto":
        teacher = teacher.model_copy(update={"epochs": recorded.teacher.epochs})
    pseudo, before = recipe.pseudo_labels, recorded.pseudo_labels
    if pseudo is not None and before is not None:
        if pseudo.epochs == "auto":
            pseudo = pseudo.model_copy(update={"epochs": before.epochs})
        if recipe.data.batch_size == "auto":
            own = pseudo.optim.model_copy(update={"lr": before.optim.lr})
            pseudo = pseudo.model_copy(update={"optim": own})
    return recipe.replace(data=data, train=train, optim=optim, teacher=teacher, pseudo_labels=pseudo)


def _steps(recipe: Recipe, images: int, batch_size: int) -> int:
    """Returns the optimiser steps of an epoch."""
    batches = max(1, images // batch_size)
    return -(-batches // recipe.train.accumulate)


def _has_weights(section: TeacherSection) -> bool:
    """Returns True if the teacher starts from weights: the recipe's, or those that its builder loads."""
    return section.weights is not None or section.pretrained is True
