"""The networks that a recipe names, built and filled with the weights they start from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from kdcompress.errors import UserError
from kdcompress.networks import weights
from kdcompress.networks.build import build
from kdcompress.recipe import NetworkSection, TeacherSection


@dataclass(frozen=True, slots=True)
class Start:
    """A network as a run finds it.

    Args:
        network: Built for the run's classes, filled with the weights if there are any.
        weights: What was loaded, or None for fresh weights.
        head_replaced: Whether the weights knew other classes, so that the classifier is fresh.
    """

    network: nn.Module
    weights: weights.ResolvedWeights | None
    head_replaced: bool


def seeded(seed: int, purpose: str) -> None:
    """Sets torch's generators for one purpose, independently of every other purpose of the same seed."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7]))


def start(
    section: NetworkSection,
    *,
    num_classes: int,
    channels: int,
    image_size: tuple[int, int],
    seed: int,
    purpose: str,
    allow_code: bool,
    keep_classes: bool = False,
    progress: bool = False,
) -> Start:
    """Builds a network and loads its weights.

    Args:
        section: Of the recipe.
        num_classes: K of the data.
        channels: C of the images.
        image_size: (H, W) of the images.
        seed: Of the run.
        purpose: student, teacher, peer1, ...; each draws its fresh weights independently.
        allow_code: Whether `python:` networks may be built.
        keep_classes: Whether weights with another number of classes are an error.
        progress: Whether to show a download.

    Raises:
        UserError: The network cannot be built, or the weights do not fit.
        DownloadError: The weights could not be fetched.
    """
    seeded(seed, f"weights of {purpose}")
    network = build(
        section.model,
        num_classes=num_classes,
        channels=channels,
        image_size=image_size,
        allow_code=allow_code,
    )
    if section.weights is None:
        return Start(network, None, False)
    found = weights.resolve(section.weights, section.model, progress=progress)
    classes = weights.classifier_classes(found.state_dict, network)
    if keep_classes and classes is not None and classes != num_classes:
        raise UserError(
            f"{purpose}.weights: {found.source} knows {classes} classes, the data has {num_classes}; take "
            f"{purpose}.train: auto to fine-tune it to the data, or data with its classes"
        )
    loaded = weights.load_into(
        network, found.state_dict, source=found.source, allow_other_head=not keep_classes
    )
    return Start(network, found, loaded.head_replaced)


def teacher_needs_training(section: TeacherSection, start: Start) -> bool:
    """Whether `teacher.train` asks for a training, given what its weights turned out to be.

    Raises:
        UserError: never, and there are no weights.
    """
    if section.train == "never":
        if start.weights is None:
            raise UserError("teacher.weights: required with teacher.train: never")
        return False
    return section.train == "always" or start.weights is None or start.head_replaced
