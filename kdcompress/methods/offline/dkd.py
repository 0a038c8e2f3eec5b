"""Decoupled knowledge distillation (Zhao et al., CVPR 2022): weighs true and other classes separately."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kdcompress.config import Section
from kdcompress.data.batch import Batch
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.presets import (
    Preset,
    cifar100,
    crd_table,
    imagenet,
    resnet34_to_resnet18,
    resnet50_to_mobilenet_v1,
)


class DKD(Method):
    """ce_weight · CE(labels) + ramp · (alpha · TCKD + beta · NCKD), the ramp min(epoch / warm-up, 1).

    Rows without a label contribute nothing. With two classes NCKD is 0 and TCKD is plain soft labels.

    Source:
        Zhao, Cui, Song, Qiu & Liang, Decoupled Knowledge Distillation, CVPR 2022; the authors' code for the
        factor T², the ramp and the defaults, which are those of the resnet32x4 pairs on CIFAR-100. The code's
        other values of beta there: 6 for students of vgg13 and for wrn-40-2 to a smaller wrn, 2 for
        resnet56 to resnet20 and resnet110 to resnet32. On ImageNet: T 1, beta 0.5 (resnet34 to resnet18) or
        2 (resnet50 to MobileNetV1), one warm-up epoch.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "beta is 6 for students of vgg13 and for wrn-40-2 to a smaller wrn, 2 for resnet56 to resnet20 "
            "and resnet110 to resnet32.",
            temperature=4.0, ce_weight=1.0, alpha=1.0, beta=8.0, warmup_epochs=20,
        ),
        "imagenet": imagenet(
            "Published with batches of 512 at a learning rate of 0.2; beta is 2 for resnet50 to MobileNetV1.",
            temperature=1.0, ce_weight=1.0, alpha=1.0, beta=0.5, warmup_epochs=1,
        ),
    }  # fmt: skip
    FIGURES = (
        *crd_table(
            "DKD paper, CVPR 2022; 75.8 to 76.2 in others' runs of resnet32x4 to resnet8x4",
            None, None, None, None, None, 76.32, None, None, 70.35, None, 76.45, 77.07, 76.70,
        ),
        *crd_table(
            "DKD paper, CVPR 2022, with another beta",
            76.24, 74.81, 71.97, None, 74.11, None, 74.68, 69.71, None, None, None, None, None,
            preset=None,
        ),
        resnet34_to_resnet18(71.70, "DKD paper, CVPR 2022"),
        resnet50_to_mobilenet_v1(72.05, "DKD paper, CVPR 2022, with another beta", None),
    )  # fmt: skip

    class Config(Section):
        """Weights stand beside their reductions: all terms are means over the labelled rows of a batch."""

        temperature: float = Field(4.0, gt=0)
        """T. Both distillation terms carry the factor T²."""
        ce_weight: float = Field(1.0, ge=0)
        alpha: float = Field(1.0, ge=0)
        """Weight of TCKD, the labelled class against all others together."""
        beta: float = Field(8.0, ge=0)
        """Weight of NCKD, the distribution over the other classes. Larger in the paper if the teacher is
        more certain."""
        warmup_share: float = Field(20 / 240, ge=0, le=1)
        """Share of the run's epochs over which TCKD and NCKD (not the cross-entropy) grow to their weights;
        the first of W epochs has 1 / W of them. Of a run of 12 epochs or fewer no epoch is below 1."""
        warmup_epochs: int | None = Field(None, ge=0)
        """The warm-up in epochs, as published (20 of 240); replaces warmup_share. 0: full from the start."""
        logit_standardization: bool = False
        """Compare z-scores of the logits (Sun et al. 2024). T, alpha and beta then mean something else: the
        authors take T 2 and multiply alpha and beta by a weight such as 9."""

    config: Config

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires a teacher and labels."""
        return Needs(teacher=True)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce, tckd and nckd."""
        return self.terms(*self.both_logits(batch), batch.labels)

    def terms(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """Computes the weighted terms from logits `[B, K]`."""
        c = self.config
        logits = losses.maybe_standardized(student_BK, teacher_BK, standardize=c.logit_standardization)
        ramp = self.ramp()
        return {
            "ce": c.ce_weight * self.cross_entropy(student_BK, labels_B),
            "tckd": ramp * c.alpha * losses.tckd(*logits, labels_B, c.temperature),
            "nckd": ramp * c.beta * losses.nckd(*logits, labels_B, c.temperature),
        }

    def ramp(self) -> float:
        """Returns the warm-up's factor in this epoch, in (0, 1]."""
        c = self.config
        return min((self.epoch + 1) / max(self.epochs_of(c.warmup_share, c.warmup_epochs), 1.0), 1.0)
