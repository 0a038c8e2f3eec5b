"""Bases of the methods that add cross-entropy and soft labels to terms of their own."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from kdcompress.config import Section
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.requirements import pooled_widths
from kdcompress.networks.activations import POOLED, Want
from kdcompress.networks.networks import Networks
from kdcompress.tasks import CLASSIFICATION, EMBEDDING


class SoftLabelMethod(Method):
    """Base of the methods that add ce_weight · CE(labels) and kd_weight · KL to their own terms."""

    class Config(Section):
        """Adds two terms, both means over the rows of a batch."""

        ce_weight: float = Field(1.0, ge=0)
        """0 needs no labels."""
        kd_weight: float = Field(0.0, ge=0)
        """Weight of the soft labels; 0 in the published figures."""
        temperature: float = Field(4.0, gt=0)
        """Divides the logits of the soft labels, whose term carries the factor T²."""
        logit_standardization: bool = False
        """Compare z-scores of the logits in the term kd (Sun et al. 2024). T and kd_weight then mean
        something else: the authors use 2 and 9."""

    config: Config

    def check_teacher_has_logits(self) -> None:
        """Refuses a teacher without a classifier if soft labels have a weight; constructors call it."""
        teacher, weight = self.networks.teacher, self.config.kd_weight
        if weight and teacher is not None and teacher.shapes().logits is None:
            raise NetworkError(
                f"method {type(self).__name__.lower()}: kd_weight {weight:g} wants the logits of a teacher, "
                f"and {teacher.model} has no classifier here; set method.kd_weight to 0"
            )

    def label_terms(
        self, student_BK: Tensor | None, teacher_BK: Tensor | None, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """Returns the weighted terms ce and kd, in this order; a term without weight is left out.

        Args:
            student_BK: Logits of the student; None, as in `Activations`, only if `needs` left them out.
            teacher_BK: Logits of the teacher, without gradient; None is allowed if kd_weight is 0.
            labels_B: `[B]` int64; not read if ce_weight is 0.
        """
        c = self.config
        assert student_BK is not None
        terms = {}
        if c.ce_weight:
            terms["ce"] = c.ce_weight * self.cross_entropy(student_BK, labels_B)
        if c.kd_weight:
            assert teacher_BK is not None
            logits = losses.maybe_standardized(student_BK, teacher_BK, standardize=c.logit_standardization)
            terms["kd"] = c.kd_weight * losses.kl(*logits, c.temperature)
        return terms


class ClassifierConfig(SoftLabelMethod.Config):
    """Refuses ce_weight and kd_weight both at 0, since the method's own terms train features alone."""

    @model_validator(mode="after")
    def _classifier_has_a_loss(self) -> Self:
        if not self.ce_weight and not self.kd_weight:
            raise ValueError("nothing trains the classifier where ce_weight and kd_weight are both 0")
        return self


class BackboneMethod(SoftLabelMethod):
    """Base of the methods that compare the student's pooled features with the teacher's, without labels.

    With both weights at 0 nothing trains a classifier: the student is built without one and a backbone ships.

    Attributes:
        widths: Widths of the student's and of the teacher's pooled features.
    """

    class Config(SoftLabelMethod.Config):
        """Builds the student with its classifier if ce_weight or kd_weight is above 0."""

        ce_weight: float = Field(0.0, ge=0)
        """0 needs no labels."""
        kd_weight: float = Field(0.0, ge=0)
        """Weight of the soft labels; needs a teacher with a classifier."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        name = type(self).__name__.lower()
        self.widths = pooled_widths(name, "compares the pooled features of images", networks)
        self.check_teacher_has_logits()

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Returns pooled features of both networks, and logits and labels if a weight uses them."""
        both: Want = frozenset({"logits", "pooled"})
        classifier = config.ce_weight > 0 or config.kd_weight > 0
        return Needs(
            teacher=True,
            labels=config.ce_weight > 0,
            unlabelled=True,
            student=both if classifier else POOLED,
            read_of_teacher=both if config.kd_weight > 0 else POOLED,
            task=CLASSIFICATION if classifier else EMBEDDING,
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of `feature_terms`, then ce and kd."""
        assert self.networks.teacher is not None
        needs = self.needs(self.config)
        ours = self.networks.student(batch.images, needs.student)
        theirs = self.networks.teacher(batch.views[0], needs.read_of_teacher)
        assert ours.pooled is not None
        assert theirs.pooled is not None
        terms = self.feature_terms(ours.pooled, theirs.pooled)
        if not needs.task.has_classes:
            return terms
        return terms | self.label_terms(ours.logits, theirs.logits, batch.labels)

    def feature_terms(self, student_BD: Tensor, teacher_BE: Tensor) -> dict[str, Tensor]:
        """Returns the weighted terms of the method itself.

        Args:
            student_BD: `[B, D]` pooled features.
            teacher_BE: `[B, E]` pooled features, without gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no terms")
