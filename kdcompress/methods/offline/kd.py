"""Knowledge distillation (Hinton et al., 2015): imitates the teacher's softened class probabilities."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kdcompress.config import Section
from kdcompress.data.batch import Batch
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.presets import (
    CRD_TABLES,
    Preset,
    PublishedFigure,
    cifar100,
    crd_table,
    imagenet,
    resnet34_to_resnet18,
    resnet50_to_mobilenet_v1,
)

SHARP = 1.5
"""Highest temperature at which a teacher's 16 largest of 1,000 probabilities are nearly all there is."""


class KD(Method):
    """ce_weight · CE(labels) + kd_weight · T² · KL(teacher ‖ student).

    Source:
        Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network, 2015. Defaults are those of the
        CRD set-up on CIFAR-100. For ImageNet, weights of 0.5 and 0.5 at T = 1 are the usual choice.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "With logit_standardization, temperature 2 and kd_weight 9, resnet32x4 to resnet8x4 is published "
            "at 76.62.",
            temperature=4.0, ce_weight=0.1, kd_weight=0.9,
        ),
        "imagenet": imagenet(
            "At T = 4 and 0.9, the values of CIFAR-100, a student falls behind plain training.",
            temperature=1.0, ce_weight=0.5, kd_weight=0.5,
        ),
    }  # fmt: skip
    FIGURES = (
        *crd_table(
            CRD_TABLES,
            74.92, 73.54, 70.66, 70.67, 73.08, 73.33, 72.98, 67.37, 67.35, 73.81, 74.07, 74.45, 74.83,
        ),
        resnet34_to_resnet18(71.03, "mdistiller"),
        resnet34_to_resnet18(70.66, "CRD paper, ICLR 2020, own settings", None),
        resnet34_to_resnet18(71.37, "torchdistill, own settings", None),
        resnet50_to_mobilenet_v1(70.50, "CRD paper, ICLR 2020, own settings", None),
        PublishedFigure(
            "imagenet", "torchvision/resnet50", "torchvision/shufflenet_v2_x1_0", 70.87,
            "MMRazor, own settings (student alone 69.55)", None,
        ),
    )  # fmt: skip

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
        """Requires a teacher, and labels unless their weight is 0."""
        sharp = config.temperature <= SHARP and not config.logit_standardization
        return Needs(teacher=True, labels=config.ce_weight > 0, unlabelled=True, top_k=sharp)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce and kd."""
        return self.terms(*self.both_logits(batch), batch.labels)

    def terms(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """Computes the weighted terms from logits `[B, K]`."""
        c = self.config
        logits = losses.maybe_standardized(student_BK, teacher_BK, standardize=c.logit_standardization)
        terms = {"kd": c.kd_weight * losses.kl(*logits, c.temperature)}
        if c.ce_weight > 0:
            terms["ce"] = c.ce_weight * self.cross_entropy(student_BK, labels_B)
        return terms
