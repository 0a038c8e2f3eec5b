"""Class-wise self-knowledge distillation (Yun et al., CVPR 2020): predicts alike for images of one class."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kdcompress.config import Section
from kdcompress.data.batch import Batch
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet


class CSKD(Method):
    """Minimises CE(labels) + weight · T² · KL(prediction of another image of the class ‖ prediction).

    Batches hold at least two images of each of their classes. The partner of an image is the next one of its
    class in the batch, whose prediction is a constant; an image that is alone has no such term. Nothing is
    discarded after training.

    Source:
        Yun et al., Regularizing Class-wise Predictions via Self-knowledge Distillation, CVPR 2020. The
        authors' code draws a partner for every image and runs the partners apart, without gradient, so that
        a step costs more and half of the images are not trained on; here one pass serves both.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published with batches of 128 images and 128 partners; the rate drops one epoch later in the "
            "authors' code.",
            epochs=200, optim={"lr": 0.1, "weight_decay": 1e-4, "milestones": [100, 150]},
            weight=1.0, temperature=4.0,
        ),
        "imagenet": imagenet("The values are those of CIFAR-100.", weight=1.0, temperature=4.0),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure("cifar100", "", "cifar/resnet18", 78.70, "PS-KD repository (plain 75.82)", None),
    )  # fmt: skip

    class Config(Section):
        """The authors' values."""

        weight: float = Field(1.0, ge=0)
        """Weight of the term beside the cross-entropy; 3 for fine-grained data."""
        temperature: float = Field(4.0, gt=0)
        """Divides the logits of both images. The term carries the factor T²."""

    config: Config

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires batches with two images of a class."""
        return Needs(order="class_paired")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the terms ce and class_wise."""
        logits = self.networks.student(batch.images).logits
        assert logits is not None
        # Pairs may lie in different processes, so all rows are paired in all of them.
        logits_AK, labels_A = self.gather(logits), self.gather(batch.labels)
        partners_A = losses.next_of_class(labels_A)
        terms = self.terms(logits_AK, logits_AK[partners_A])
        return {"ce": self.cross_entropy(logits, batch.labels), **terms}

    def terms(self, logits_BK: Tensor, partner_BK: Tensor) -> dict[str, Tensor]:
        """Computes the weighted term class_wise.

        Args:
            logits_BK: `[B, K]`.
            partner_BK: `[B, K]` of the partners; their gradient stops here.
        """
        kl = losses.kl(logits_BK, partner_BK.detach(), self.config.temperature)
        return {"class_wise": self.config.weight * kl}
