"""What methods share whose student also learns, beside their own terms, from labels and soft labels."""

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


class Taught(Method):
    """Base of the methods that add ce_weight · CE(labels) and kd_weight · KL to terms of their own."""

    class Config(Section):
        """Both terms are means over the rows of a batch."""

        ce_weight: float = Field(1.0, ge=0)
        """0 needs no labels."""
        kd_weight: float = Field(0.0, ge=0)
        """Of the soft labels, which the published figures do without."""
        temperature: float = Field(4.0, gt=0)
        """Of the soft labels. Their term carries the factor T²."""
        logit_standardization: bool = False
        """Compare z-scores of the logits in the term kd (Sun et al. 2024). T and kd_weight then mean
        something else: the authors take 2 and 9."""

    config: Config

    def label_terms(
        self, student_BK: Tensor | None, teacher_BK: Tensor | None, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """The weighted terms ce and kd, in this order; one without weight is left out.

        Args:
            student_BK: The student's logits; None, as in `Activations`, only if they were not asked for.
            teacher_BK: The teacher's, a constant; not read where kd_weight is 0, so that it may be None.
            labels_B: Not read where ce_weight is 0.
        """
        c = self.config
        assert student_BK is not None
        terms = {}
        if c.ce_weight:
            terms["ce"] = c.ce_weight * self.cross_entropy(student_BK, labels_B)
        if c.kd_weight:
            assert teacher_BK is not None
            compared = losses.compared(student_BK, teacher_BK, standardize=c.logit_standardization)
            terms["kd"] = c.kd_weight * losses.kl(*compared, c.temperature)
        return terms


class ClassifierLearns(Taught.Config):
    """A `Taught.Config` that refuses both weights at 0, since the method's own terms train features alone."""

    @model_validator(mode="after")
    def _classifier_learns(self) -> Self:
        if not self.ce_weight and not self.kd_weight:
            raise ValueError("nothing trains the classifier where ce_weight and kd_weight are both 0")
        return self


class BackboneLearns(Taught):
    """Base of the methods whose own terms hold pooled features to the teacher's, without any label.

    With both weights at 0 nothing trains a classifier: the student is built without one and a backbone ships.

    Attributes:
        widths: Of the student's and of the teacher's pooled features.
    """

    class Config(Taught.Config):
        """With ce_weight or kd_weight the student has its classifier, and their gradients reach all of it."""

        ce_weight: float = Field(0.0, ge=0)
        """0 needs no labels."""
        kd_weight: float = Field(0.0, ge=0)
        """Of the soft labels of a teacher that has a classifier."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        assert networks.teacher is not None
        name = type(self).__name__.lower()
        self.widths = pooled_widths(name, "compares the pooled features of images", networks)
        if config.kd_weight and networks.teacher.shapes().logits is None:
            raise NetworkError(
                f"method {name}: kd_weight {config.kd_weight:g} wants the logits of a teacher, and "
                f"{networks.teacher.model} has no classifier here; set method.kd_weight to 0"
            )

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Pooled features of both; logits, and labels, where a weight asks for them."""
        both: Want = frozenset({"logits", "pooled"})
        classifier = config.ce_weight > 0 or config.kd_weight > 0
        return Needs(
            teacher=True,
            labels=config.ce_weight > 0,
            unlabelled=True,
            student=both if classifier else POOLED,
            read_of_teacher=both if config.kd_weight > 0 else POOLED,
            backbone=not classifier,
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of `feature_terms`, then ce and kd."""
        assert self.networks.teacher is not None
        needs = self.needs(self.config)
        seen = self.networks.student(batch.images, needs.student)
        taught = self.networks.teacher(batch.views[0], needs.read_of_teacher)
        assert seen.pooled is not None
        assert taught.pooled is not None
        terms = self.feature_terms(seen.pooled, taught.pooled)
        return terms if needs.backbone else terms | self.label_terms(seen.logits, taught.logits, batch.labels)

    def feature_terms(self, student_BD: Tensor, teacher_BE: Tensor) -> dict[str, Tensor]:
        """The method's own weighted terms.

        Args:
            student_BD: `[B, D]` pooled features.
            teacher_BE: `[B, E]` pooled features, a constant.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no terms")
