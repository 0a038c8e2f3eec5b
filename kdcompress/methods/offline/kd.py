"""Soft labels of a frozen teacher beside the true ones (Hinton et al. 2015)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from kdcompress.config import Section
from kdcompress.data.batch import Batch
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs


class KD(Method):
    """ce_weight · CE(labels) + kd_weight · T² · KL(teacher ‖ student).

    Source:
        Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network, 2015. Defaults are those of the
        CRD set-up on CIFAR-100. For ImageNet, weights of 0.5 and 0.5 at T = 1 are the usual choice.
    """

    class Config(Section):
        """Weights stand beside their reductions: both terms are means over the rows of a batch."""

        temperature: float = Field(4.0, gt=0)
        """T. The KL term carries the factor T²."""
        ce_weight: float = Field(0.1, ge=0)
        """0 needs no labels."""
        kd_weight: float = Field(0.9, ge=0)
        logit_standardization: bool = False
        """Compare z-scores of the logits (Sun et al. 2024). T and kd_weight then mean something else: the
        authors take 2 and 9."""

    config: Config

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """A teacher, and labels unless their weight is 0."""
        return Needs(teacher=True, labels=config.ce_weight > 0, unlabelled=True)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce and kd."""
        return self.terms(*self.both_logits(batch), batch.labels)

    def terms(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """The weighted terms of given logits."""
        c = self.config
        compared = losses.compared(student_BK, teacher_BK, standardize=c.logit_standardization)
        terms = {"kd": c.kd_weight * losses.kl(*compared, c.temperature)}
        if c.ce_weight > 0:
            terms["ce"] = c.ce_weight * self.cross_entropy(student_BK, labels_B)
        return terms
