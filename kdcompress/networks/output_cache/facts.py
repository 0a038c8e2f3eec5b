"""Facts of a teacher that a cache keeps beside its outputs, so that nothing is computed to know them."""

from __future__ import annotations

from dataclasses import dataclass

from kdcompress.data.input_spec import InputSpec
from kdcompress.networks.teacher import Teacher
from kdcompress.tasks import Task


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """Facts about a teacher that do not change.

    Args:
        model: `FAMILY/NAME`.
        num_classes: K; 0 for a backbone.
        task: Classification, or embedding for a teacher without a classifier.
        size: (H, W) in pixels that images are resized to; None: unchanged.
        input_spec: The way from an image to its input.
        fingerprint: A hash of everything that the outputs depend on, but size and normalisation.
        normalisation: Mean and std per channel as float32 numbers.
        classifier: The place where its pooled features are read, as text.
    """

    model: str
    num_classes: int
    task: Task
    size: tuple[int, int] | None
    input_spec: InputSpec
    fingerprint: str
    normalisation: list[list[float]]
    classifier: str

    @classmethod
    def of(cls, teacher: Teacher) -> TeacherFacts:
        """Collects the facts about a teacher."""
        if isinstance(teacher, WithFacts):
            return teacher.facts
        tapped = teacher.tapped
        return cls(
            teacher.model, teacher.num_classes, teacher.task, teacher.size, teacher.input_spec,
            teacher.fingerprint, teacher.normalisation,
            "None" if tapped is None else repr(tapped.taps.classifier),
        )  # fmt: skip


class WithFacts:
    """Base of the teachers that answer from facts what no pass has to be run for.

    Args:
        facts: See there.
    """

    def __init__(self, facts: TeacherFacts) -> None:
        self.facts = facts

    @property
    def model(self) -> str:
        """`FAMILY/NAME`."""
        return self.facts.model

    @property
    def num_classes(self) -> int:
        """K; 0 for a backbone."""
        return self.facts.num_classes

    @property
    def task(self) -> Task:
        """Classification, or embedding for a teacher without a classifier."""
        return self.facts.task

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) in pixels that images are resized to; None: unchanged."""
        return self.facts.size

    @property
    def input_spec(self) -> InputSpec:
        """The way from an image to its input."""
        return self.facts.input_spec

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the outputs depend on, but size and normalisation."""
        return self.facts.fingerprint

    @property
    def normalisation(self) -> list[list[float]]:
        """Mean and std per channel as float32 numbers."""
        return self.facts.normalisation
