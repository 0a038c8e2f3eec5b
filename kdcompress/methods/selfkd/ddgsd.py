"""Data-distortion guided self-distillation (Xu & Liu, AAAI 2019): two distorted views of an image agree."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcompress.data.batch import Batch
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.short_runs import ShortRuns
from kdcompress.networks.activations import LOGITS, POOLED


class DDGSD(Method):
    """Minimises CE of two views + weight · (KL_a + KL_b) + feature_weight · distance of mean features.

    Both views of a batch go through the network together. CE is a mean over both, and `ce_weight: 2` makes
    it the paper's sum.

    Source:
        Xu & Liu, Data-Distortion Guided Self-Distillation for Deep Neural Networks, AAAI 2019, as described
        by readers: the authors published no code. The fields reproduce the published re-implementations.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "The paper's weights as readers quote them; its temperature and schedule are not known: both are "
            "our choice.",
            epochs=200, optim={"lr": 0.1, "milestones": [100, 150]},
            ce_weight=2.0, weight=1.0, temperature=3.0, feature_weight=5e-4,
        ),
        "imagenet": imagenet(
            "No setting is published: the values are those of CIFAR-100.",
            ce_weight=2.0, weight=1.0, temperature=3.0, feature_weight=5e-4,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure("cifar100", "", "cifar/resnet18", 78.53, "DDGSD paper as quoted (plain 76.55)", None),
    )  # fmt: skip

    class Config(ShortRuns):
        """The paper's terms, each a mean over rows."""

        ce_weight: float = Field(2.0, gt=0)
        """Weight of the mean cross-entropy of both views. 2: the sum of both, as in the paper; 0.5 in
        Self-KD-Lib."""
        weight: float = Field(1.0, ge=0)
        """Weight of the two divergences."""
        temperature: float = Field(3.0, gt=0)
        """Divides the logits of both views."""
        feature_weight: float = Field(5e-4, ge=0)
        """Weight of the squared distance between the two views' mean features."""
        divergence: Literal["rows", "rows_and_classes"] = "rows"
        """rows: a sum over classes with the factor T²; rows_and_classes: a mean over classes too, without T²,
        as one public re-implementation has it, which makes the term very small."""
        features: Literal["mean_over_rows", "mean_over_all", "logits"] = "mean_over_rows"
        """Distance of the means of the pooled features over the batch, as in the paper; of their means over
        everything, as in Self-KD-Lib; or the mean squared difference of the logits, image by image."""
        detach: bool = True
        """Stops the gradient of the targets."""

    config: Config

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires two views of every image, and pooled features unless logits are compared."""
        return Needs(views=2, student=LOGITS if config.features == "logits" else LOGITS | POOLED)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the terms ce, agreement and features."""
        want = self.needs(self.config).student
        outputs = self.networks.student(torch.cat([view.images for view in batch.views]), want)
        assert outputs.logits is not None
        logits = outputs.logits.chunk(2)
        features = None if outputs.pooled is None else outputs.pooled.chunk(2)
        return self.terms(logits[0], logits[1], features, batch.labels)

    def terms(
        self, a_BK: Tensor, b_BK: Tensor, features: tuple[Tensor, ...] | None, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """Computes the weighted terms.

        Args:
            a_BK: `[B, K]` logits of one view.
            b_BK: `[B, K]` logits of the other.
            features: `[B, D]` pooled features of both; None if logits are compared in their place.
            labels_B: `[B]` int64.
        """
        c = self.config
        ce = (self.cross_entropy(a_BK, labels_B) + self.cross_entropy(b_BK, labels_B)) / 2
        targets = [z.detach() if c.detach else z for z in (a_BK, b_BK)]
        agreement = losses.kl(a_BK, targets[1], c.temperature) + losses.kl(b_BK, targets[0], c.temperature)
        if c.divergence == "rows_and_classes":
            agreement = agreement / (c.temperature**2 * a_BK.shape[1])
        if c.features == "logits":
            distance = losses.mse(a_BK, b_BK)
        else:
            assert features is not None
            a_BD, b_BD = (self.gather(each) for each in features)
            over = "rows" if c.features == "mean_over_rows" else "all"
            distance = losses.mean_difference(a_BD, b_BD, over=over)
        factor = self.short_run_factor()
        return {
            "ce": c.ce_weight * ce,
            "agreement": factor * c.weight * agreement,
            "features": factor * c.feature_weight * distance,
        }
