"""Sentences for the user about what the networks see: colours, the part of a picture, the normalisation."""

from __future__ import annotations

import statistics

import torch

from kdcompress.data.augment import resolve_preset, skipped_colours
from kdcompress.data.dataset import Data
from kdcompress.data.decode import open_image, quiet_pillow
from kdcompress.data.source import FolderSource, Source
from kdcompress.networks import weights
from kdcompress.recipe import Recipe
from kdcompress.run.teacher_record import reads_alone

SAMPLED = 200
"""Pictures whose size is read to say how much of one a crop keeps."""
NEARLY_ALL = 0.9
"""Share of a picture from which a crop is not worth a sentence."""


def colour_notice(presets: tuple[str, ...], data: Data) -> str | None:
    """Names the colour operations that the training images do not go through; None: all are done.

    Args:
        presets: Augmentations of the recipe.
        data: Opened.
    """
    resolved = {preset: resolve_preset(preset, data.augment) for preset in presets}
    skipped = {name: skipped_colours(preset, data.channels) for name, preset in resolved.items()}
    names = [name for name, operations in skipped.items() if operations]
    if not names:
        return None
    *others, last = dict.fromkeys(name for operations in skipped.values() for name in operations)
    listed = f"{', '.join(others)} and {last}" if others else last
    return f"the images have one channel, so {listed} of the augmentation {' and '.join(names)} are skipped"


def crop_notice(train: Source) -> str | None:
    """Says how much of a picture is left when its centre is cut out; None: nearly all of it.

    Random crops of the training reach the edges; what is evaluated, and what the device sees, is the centre.

    Args:
        train: Training images.
    """
    if not isinstance(train, FolderSource) or train.fit != "crop":
        return None
    kept = kept_by_crop(train)
    if kept >= NEARLY_ALL:
        return None
    return (
        f"data.resize: crop: networks are tested on {100 * kept:.0f} % of a picture's area, around its "
        "middle. If what matters can be near the edges, set data.resize=whole or data.resize=pad"
    )


def kept_by_crop(source: FolderSource) -> float:
    """Computes the share of a picture's area that the central crop keeps: the median of some pictures.

    Args:
        source: Image files; the headers of some are read.
    """
    shares = []
    with quiet_pillow():
        last, count = len(source) - 1, min(SAMPLED, len(source))
        for index in torch.linspace(0, last, count, dtype=torch.float64).round().long().tolist():
            with open_image(source.file_list.place(source.root, index)) as image:
                shares.append(min(image.size) / max(image.size))
    return source.crop_share**2 * statistics.median(shares)


def normalisation_notice(recipe: Recipe, data: Data) -> str | None:
    """Says by what the images of a teacher from the user's own code are normalised, if nobody has said it.

    Args:
        recipe: Its `teacher.pretrained` is resolved.
        data: Opened.
    """
    section = recipe.teacher
    if section is None or not section.model.startswith("python:"):
        return None
    if section.pretrained is not True and section.initial_weights is None:
        return None
    spec, own = data.input_spec(), section.input
    guessed = {
        name: [round(value, 4) for value in values]
        for name, values, given in (("mean", spec.mean, own.mean), ("std", spec.std, own.std))
        if given is None
    }
    if not guessed or reads_alone(recipe):  # without the teacher, its weights are not loaded either
        return None
    given = section.initial_weights
    if given is not None and weights.resolve(given, section.model, progress=False).mean is not None:
        return None  # those of a run say by what its images were normalised
    settings = " ".join(f"--set teacher.input.{name}='{values}'" for name, values in guessed.items())
    if data.channels == 1:  # the teacher may take three
        settings = " and ".join(f"teacher.input.{name} {values}" for name, values in guessed.items())
    return (
        f"the teacher gets images normalised by the mean and std of the data: {settings}; set there what its "
        "weights were trained with, if that is something else"
    )
