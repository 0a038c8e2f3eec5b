"""Base of the methods that compare features of student and teacher beside the usual losses."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.methods.base import Needs
from kdcompress.methods.soft_labels import ClassifierConfig, SoftLabelMethod
from kdcompress.networks.activations import LOGITS, Activations, Want
from kdcompress.networks.networks import Networks


class FeatureKD(SoftLabelMethod):
    """Reads both networks on the first view and adds ce and kd to the terms of `compare`.

    A method of this kind defines `reads` and `compare`.
    """

    class Config(ClassifierConfig):
        """Weights of cross-entropy and soft labels."""

        kd_weight: float = Field(1.0, ge=0)
        """Weight of the soft labels. 0 in the published figures, and so in the presets: those weights are
        made for 240 epochs of 50,000 labelled images, where cross-entropy alone trains the classifier."""

    config: Config

    def __init__(self, config: Any, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        self.check_teacher_has_logits()

    @classmethod
    def reads(cls, config: Any) -> tuple[Want, Want]:
        """Returns the readings that `compare` uses, of the student and of the teacher."""
        raise NotImplementedError(f"{cls.__name__} defines no readings")

    @classmethod
    def needs(cls, config: Any) -> Needs:
        """Adds logits to the readings of `reads`, and labels unless their weight is 0."""
        student, teacher = cls.reads(config)
        return Needs(
            teacher=True,
            labels=config.ce_weight > 0,
            unlabelled=True,
            student=student | LOGITS,
            read_of_teacher=teacher | LOGITS if config.kd_weight else teacher,
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of `compare`, then ce and kd."""
        assert self.networks.teacher is not None
        needs = self.needs(self.config)
        ours = self.networks.student(batch.images, needs.student)
        theirs = self.networks.teacher(batch.views[0], needs.read_of_teacher)
        terms = self.compare(ours, theirs, batch)
        return terms | self.label_terms(ours.logits, theirs.logits, batch.labels)

    def compare(self, ours: Activations, theirs: Activations, batch: Batch) -> dict[str, Tensor]:
        """Returns the weighted terms of the method itself.

        Args:
            ours: Readings of the student.
            theirs: Readings of the teacher, without gradient.
            batch: The images and labels that were read.
        """
        raise NotImplementedError(f"{type(self).__name__} compares nothing")
