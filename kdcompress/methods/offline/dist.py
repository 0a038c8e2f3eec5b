"""DIST (Huang et al., NeurIPS 2022): correlates predictions with the teacher's, per image and per class."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kdcompress.config import Section
from kdcompress.data.batch import Batch
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.presets import Preset, cifar100, imagenet


class DIST(Method):
    """ce_weight · CE(labels) + inter_weight · (1 - ρ over classes) + intra_weight · (1 - ρ over the batch).

    The student keeps the teacher's preferences among the classes of an image, and among the images of a
    class, but not its probabilities; so a much stronger teacher asks nothing impossible.

    Source:
        Huang, You, Wang, Qian & Xu, Knowledge Distillation from A Stronger Teacher, NeurIPS 2022. The
        authors' code multiplies both terms by T², the paper's listing does not: `squared_factor` chooses.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            temperature=4.0, ce_weight=1.0, inter_weight=2.0, intra_weight=2.0, squared_factor=True
        ),
        "imagenet": imagenet(
            temperature=1.0, ce_weight=1.0, inter_weight=2.0, intra_weight=2.0, squared_factor=True
        ),
    }

    class Config(Section):
        """For CIFAR-100; on ImageNet T is 1. Neither was checked against the paper's own text."""

        temperature: float = Field(4.0, gt=0)
        """T, of both softmaxes."""
        ce_weight: float = Field(1.0, ge=0)
        """Mean over rows. 0 needs no labels."""
        inter_weight: float = Field(2.0, ge=0)
        """Weight of the correlation over the classes, mean over rows."""
        intra_weight: float = Field(2.0, ge=0)
        """Weight of the correlation over the images of a batch, mean over classes; depends on the batch."""
        squared_factor: bool = True
        """Multiplies both correlation terms by T²."""
        logit_standardization: bool = False
        """Compare z-scores of the logits (Sun et al. 2024), so that T means the same for both networks."""

    config: Config

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires a teacher, and labels unless their weight is 0."""
        return Needs(teacher=True, labels=config.ce_weight > 0, unlabelled=True)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce, inter and intra."""
        return self.terms(*self.both_logits(batch), batch.labels)

    def terms(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """Computes the weighted terms from logits `[B, K]`."""
        c = self.config
        logits = losses.maybe_standardized(student_BK, teacher_BK, standardize=c.logit_standardization)
        inter = losses.inter_class(*logits, c.temperature, squared_factor=c.squared_factor)
        # Over the batch means over the rows of all processes.
        everybody = (self.gather(logits[0]), self.gather(logits[1]))
        intra = losses.intra_class(*everybody, c.temperature, squared_factor=c.squared_factor)
        terms = {"inter": c.inter_weight * inter, "intra": c.intra_weight * intra}
        if c.ce_weight > 0:
            terms["ce"] = c.ce_weight * self.cross_entropy(student_BK, labels_B)
        return terms
