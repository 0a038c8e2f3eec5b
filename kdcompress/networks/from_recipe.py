"""Building the networks of a recipe and loading their initial weights."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from kdcompress.errors import UserError, WeightsError
from kdcompress.networks import weights
from kdcompress.networks.build import NetworkSpec, build
from kdcompress.recipe import NetworkSection, TeacherSection
from kdcompress.tasks import Task, task_of

Headless = Literal["never", "if_weights_are", "unless_classes_fit", "always"]
"""When a network is built as a backbone, without a classifier: where its weights have none, also where they
have none for the classes of the data and may not get one, or in any case."""


@dataclass(frozen=True, slots=True)
class LoadedNetwork:
    """A network with its initial weights.

    Args:
        network: Built for the run's classes or for none, filled with the weights if there are any.
        weights: The loaded weights; None: freshly drawn ones.
        head_replaced: True: the weights had other classes, so the classifier is freshly drawn.
        num_classes: K that it was built for; 0: a backbone, whose output is its pooled features.
        dropped: Keys of the weights that it has no place for: a classifier or a projection head.
    """

    network: nn.Module
    weights: weights.ResolvedWeights | None
    head_replaced: bool
    num_classes: int
    dropped: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """Classification, or embedding for a network without a classifier."""
        return task_of(self.num_classes)


def seeded(seed: int, purpose: str) -> None:
    """Sets torch's generators for one purpose, independently of every other purpose of the same seed."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7]))


def load_network(
    section: NetworkSection,
    *,
    num_classes: int,
    channels: int,
    image_size: tuple[int, int],
    seed: int,
    purpose: str,
    allow_code: bool,
    keep_classes: bool = False,
    headless: Headless = "never",
    progress: bool = False,
) -> LoadedNetwork:
    """Builds a network and loads its weights.

    Args:
        section: The network's section of the recipe.
        num_classes: K of the data.
        channels: C of the images.
        image_size: (H, W) of the images.
        seed: The run's seed.
        purpose: student, teacher, peer1, ...; each draws its fresh weights independently.
        allow_code: True: `python:` networks may be built.
        keep_classes: True: weights with another number of classes keep them; that is an error, unless
            `headless` says otherwise.
        headless: Condition to build it without a classifier; without weights "never", unless "always".
        progress: True: shows a download.

    Raises:
        UserError: The network cannot be built, or the weights do not fit or are another file than expected.
        DownloadError: The weights could not be fetched.
    """

    def built(classes: int) -> nn.Module:
        seeded(seed, f"weights of {purpose}")
        return NetworkSpec(section.model, classes, channels, image_size, allow_code).build()

    if headless == "always":
        num_classes = 0
    network = built(num_classes)
    if section.initial_weights is None:
        return LoadedNetwork(network, None, False, num_classes)
    pretrained = weights.resolve(section.initial_weights, section.model, progress=progress)
    if section.license is not None:
        pretrained = dataclasses.replace(pretrained, license=section.license)
    if section.sha256 not in (None, pretrained.sha256):
        raise WeightsError(
            f"{purpose}.sha256: {section.sha256} is expected, but {pretrained.source} is another file, with "
            f"the SHA-256 {pretrained.sha256}; pass the expected file as {purpose}.weights, or leave out "
            f"{purpose}.sha256"
        )
    if headless in ("if_weights_are", "unless_classes_fit") and num_classes:
        known = weights.classifier_classes(pretrained.state_dict, network)
        useless = headless == "unless_classes_fit" and keep_classes and known != num_classes
        if known is None or useless:
            num_classes, network = 0, built(0)
    if num_classes == 0:
        loaded = weights.load_into(
            network, pretrained.state_dict, source=pretrained.source, allow_other_head=False, headless=True
        )
        return LoadedNetwork(network, pretrained, False, 0, loaded.dropped)
    classes = weights.classifier_classes(pretrained.state_dict, network)
    if keep_classes and classes is not None and classes != num_classes:
        raise UserError(
            f"{purpose}.weights: {pretrained.source} knows {classes} classes, the data has {num_classes}; "
            f"take {purpose}.train: auto to fine-tune it to the data, or data with its classes"
        )
    loaded = weights.load_into(
        network, pretrained.state_dict, source=pretrained.source, allow_other_head=not keep_classes
    )
    return LoadedNetwork(network, pretrained, loaded.head_replaced, num_classes, loaded.dropped)


def headless_teacher(section: TeacherSection, *, logits_read: bool, task: Task) -> Headless:
    """Decides when the teacher is built without a classifier.

    Args:
        section: The teacher's section of the recipe.
        logits_read: True: the method reads its logits.
        task: The student's; one without classes does not use the teacher's.

    Returns:
        "never" where somebody reads its logits, or where the recipe wants it trained on labels in any case.
    """
    if logits_read or section.train == "always":
        return "never"
    return "if_weights_are" if task.has_classes else "unless_classes_fit"


def class_names_of_weights(
    section: TeacherSection, *, channels: int, image_size: tuple[int, int], allow_code: bool, progress: bool
) -> tuple[str, ...]:
    """Returns the class names of a teacher's weights for data without any; numbers if there are no names.

    Args:
        section: The teacher's section of the recipe; has weights.
        channels: C of the images.
        image_size: (H, W) of the images.
        allow_code: True: a `python:` network may be built.
        progress: True: shows a download.

    Raises:
        WeightsError: They have no classifier.
    """
    assert section.initial_weights is not None
    pretrained = weights.resolve(section.initial_weights, section.model, progress=progress)
    # Of any number of classes: it says where the classifier stands.
    network = build(
        section.model, num_classes=2, channels=channels, image_size=image_size, allow_code=allow_code
    )
    count = weights.classifier_classes(pretrained.state_dict, network)
    if count is None:
        raise WeightsError(
            f"teacher.weights: {pretrained.source} has no classifier, so nobody says which classes "
            "the images without labels have; take weights with a classifier, or a method "
            "that trains a backbone"
        )
    if pretrained.class_names is not None and len(pretrained.class_names) == count:
        return pretrained.class_names
    return tuple(str(number) for number in range(count))


def teacher_needs_training(section: TeacherSection, start: LoadedNetwork) -> bool:
    """Decides from `teacher.train` and the loaded weights if the teacher must be trained.

    Raises:
        UserError: never, and there are no weights.
    """
    if section.train == "never":
        if start.weights is None:
            raise UserError("teacher.weights: required with teacher.train: never")
        return False
    if not start.task.has_classes and start.weights is not None:
        return False  # without a classifier there is nothing that labels could teach it
    return section.train == "always" or start.weights is None or start.head_replaced
