"""Building the networks of a recipe and loading their initial weights."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from kdcompress.errors import UserError, WeightsError
from kdcompress.networks import weights
from kdcompress.networks.build import NetworkSpec, accepted_channels, build
from kdcompress.networks.own_weights import compare_builds
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
        channels: C that it was built for; 3 for a teacher that gets grey images three times. 0: those of the
            images.
        own_weights: True if the user's builder loaded the weights by itself.
    """

    network: nn.Module
    weights: weights.ResolvedWeights | None
    head_replaced: bool
    num_classes: int
    dropped: tuple[str, ...] = ()
    channels: int = 0
    own_weights: bool = False

    @property
    def pretrained(self) -> bool:
        """True if it does not start from freshly drawn weights."""
        return self.weights is not None or self.own_weights

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
        channels: C of the images; a teacher may take three of grey ones.
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

    def built(classes: int, draw: str = "weights") -> nn.Module:
        seeded(seed, f"{draw} of {purpose}")
        return NetworkSpec(section.model, classes, channels, image_size, allow_code).build()

    if headless == "always":
        num_classes = 0
    if isinstance(section, TeacherSection):
        channels = teacher_channels(
            section, num_classes=num_classes, channels=channels, image_size=image_size,
            allow_code=allow_code, progress=progress,
        )  # fmt: skip
    network = built(num_classes)
    if section.initial_weights is None:
        own, drawn = _own_weights(section, network, lambda: built(num_classes, "second weights"))
        return LoadedNetwork(
            network, None, drawn and bool(num_classes), num_classes, channels=channels, own_weights=own
        )
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
        return LoadedNetwork(network, pretrained, False, 0, loaded.dropped, channels)
    classes = weights.classifier_classes(pretrained.state_dict, network)
    if keep_classes and classes is not None and classes != num_classes:
        raise UserError(
            f"{purpose}.weights: {pretrained.source} knows {classes} classes, the data has {num_classes}; "
            f"take {purpose}.train: auto to fine-tune it to the data, or data with its classes"
        )
    loaded = weights.load_into(
        network, pretrained.state_dict, source=pretrained.source, allow_other_head=not keep_classes
    )
    return LoadedNetwork(network, pretrained, loaded.head_replaced, num_classes, loaded.dropped, channels)


def teacher_channels(
    section: TeacherSection,
    *,
    num_classes: int,
    channels: int,
    image_size: tuple[int, int],
    allow_code: bool,
    progress: bool,
) -> int:
    """Returns the number of channels that the teacher is built for.

    Args:
        section: The teacher's section of the recipe.
        num_classes: K that a builder of the user's own is called with; its weights may fit no other.
        channels: C of the images.
        image_size: (H, W) of the images.
        allow_code: True: a `python:` network may be built.
        progress: True: shows a download.

    Returns:
        `teacher.input.channels` if it is given. Otherwise C, or 3 for grey images where the network or its
        weights read three channels.

    Raises:
        UserError: It is to take grey images, and they are in colour.
    """
    own = section.input.channels
    if own is not None:
        if own == 1 and channels != 1:
            raise UserError(
                f"teacher.input.channels: 1, but the images have {channels}; set data.channels to 1, which "
                "makes them grey for all networks, or leave it out"
            )
        return own
    if channels != 1:
        return channels
    if channels not in accepted_channels(section.model):
        return 3
    with torch.random.fork_rng(devices=[]):  # looking draws no random numbers
        network = build(
            section.model, num_classes=num_classes, channels=1, image_size=image_size, allow_code=allow_code
        )
    # A function of the user's own may build for three channels whatever it is called with.
    reads = {weights.channels_read(network.state_dict(), network)}
    if section.initial_weights is not None:
        pretrained = weights.resolve(section.initial_weights, section.model, progress=progress)
        reads.add(weights.channels_read(pretrained.state_dict, network))
    return 3 if 3 in reads else 1


def _own_weights(
    section: NetworkSection, network: nn.Module, build_again: Callable[[], nn.Module]
) -> tuple[bool, bool]:
    """Tells if a teacher's builder loads weights by itself, and if it then draws the classifier afresh."""
    if not isinstance(section, TeacherSection) or not section.may_load_own_weights:
        return False, False
    if section.pretrained is False:
        return False, False
    compared = compare_builds(network, build_again(), section.model)
    own = compared.pretrained or section.pretrained is True
    return own, own and compared.classifier_drawn


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
    channels = teacher_channels(
        section,
        num_classes=2,
        channels=channels,
        image_size=image_size,
        allow_code=allow_code,
        progress=progress,
    )
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
        UserError: never, and there are no weights, or none of a classifier.
    """
    if section.train == "never":
        if not start.pretrained:
            raise UserError("teacher.weights: required with teacher.train: never")
        if start.own_weights and start.head_replaced:
            raise UserError(
                f"teacher.train: never, but {section.model} draws its classifier at random; "
                "load its weights too, or take teacher.train: auto to fine-tune it"
            )
        return False
    if not start.task.has_classes and start.weights is not None:
        return False  # without a classifier there is nothing that labels could teach it
    return section.train == "always" or not start.pretrained or start.head_replaced
