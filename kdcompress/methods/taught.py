"""What methods share whose student also learns, beside their own terms, from labels and soft labels."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from kdcompress.config import Section
from kdcompress.methods import losses
from kdcompress.methods.base import Method


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
            terms["kd"] = c.kd_weight * losses.kl(student_BK, teacher_BK, c.temperature)
        return terms


class ClassifierLearns(Taught.Config):
    """A `Taught.Config` that refuses both weights at 0, since the method's own terms train features alone."""

    @model_validator(mode="after")
    def _classifier_learns(self) -> Self:
        if not self.ce_weight and not self.kd_weight:
            raise ValueError("nothing trains the classifier where ce_weight and kd_weight are both 0")
        return self
