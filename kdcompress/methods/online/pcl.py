"""Peer collaborative learning (Wu & Gong, AAAI 2021): branches learn from ensemble and averages."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.methods import losses
from kdcompress.methods.base import Candidate, Needs
from kdcompress.methods.cohort_method import CohortMethod, logits_of, pooled_of
from kdcompress.methods.moving_average import MovingAverage
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.short_runs import ShortRuns
from kdcompress.networks.activations import LOGITS, POOLED
from kdcompress.networks.cohort import CohortCopy
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import wide


class PCL(CohortMethod):
    """Minimises CE(z) + Σᵢ [CE(zᵢ) + ramp · (a · T² · KL(z ‖ zᵢ) + b · meanⱼ T² · KL(z̄ⱼ ‖ zᵢ))], over j ≠ i.

    Branch i reads an augmentation of its own. z comes from a linear ensemble classifier on the concatenated
    pooled features of all branches. z̄ⱼ is branch j of the averaged network, an exponential moving average of
    all parameters, on the augmentation of branch j. The shared stages take all augmentations as one batch, so
    their batch norm normalises over all of them.

    The averaged network runs in training mode, so its batch norm normalises by the batch, and its
    running statistics come from its own passes: those of the trained network would not fit its weights.

    The averaged branches may ship, the first of them by default, and so may the trained ones. The ensemble
    of `train.ship: ensemble` has the averaged branches. The ensemble classifier is discarded.

    Source:
        Wu & Gong, Peer Collaborative Learning for Online Knowledge Distillation, AAAI 2021, by a
        reproduction, since no code of the authors is known. Its ramp has an error (the weight is 0 from epoch
        3 to 80) that is not repeated here: the ramp is that of ONE.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published with batches of 128.",
            epochs=300, optim={"lr": 0.1, "milestones": [150, 225], "nesterov": True},
            branches=3, temperature=3.0, ensemble_weight=1.0, average_weight=1.0, over_peers="mean",
            shift=0.0, detach=True, decay=0.999, window_share=1.0, ramp_epochs=80.0,
        ),
        "imagenet": imagenet(
            "No setting was available: the values are those of CIFAR-100, the ramp in the same share.",
            branches=3, temperature=3.0, ensemble_weight=1.0, average_weight=1.0, over_peers="mean",
            shift=0.0, detach=True, decay=0.999, window_share=1.0,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure("cifar100", "", "cifar/resnet32", 74.14, "PCL paper, AAAI 2021", None),
        PublishedFigure("cifar100", "", "cifar/resnet110", 79.98, "PCL paper, AAAI 2021", None),
        PublishedFigure("cifar100", "", "cifar/vgg16", 76.89, "PCL paper, AAAI 2021", None),
        PublishedFigure("imagenet", "", "torchvision/resnet18", 70.42, "PCL paper, AAAI 2021", None),
    )

    class Config(ShortRuns):
        """The published values, except `window_share`; the ramp is 80 of 300 epochs."""

        branches: int = Field(3, ge=2)
        """Number of branches and of augmentations of each image."""
        own_stages: int = Field(1, ge=1)
        """Number of last stages that each branch has of its own; the earlier ones are shared."""
        temperature: float = Field(3.0, gt=0)
        """With the factor T²."""
        ensemble_weight: float = Field(1.0, ge=0)
        """a, weight of the divergence from the ensemble classifier, after the ramp."""
        average_weight: float = Field(1.0, ge=0)
        """b, weight of the divergence from the averaged branches, after the ramp."""
        over_peers: Literal["sum", "mean"] = "mean"
        """Sum or mean over the other averaged branches."""
        shift: float = Field(0.0, ge=0)
        """Added to target probabilities (1e-7 in repositories that follow ONE)."""
        detach: bool = True
        """Stops the gradient of the ensemble where it is a target. The averaged network never has one."""
        decay: float = Field(0.999, ge=0, lt=1)
        """Largest decay of the moving average, per step."""
        window_share: float = Field(0.1, gt=0, le=1)
        """Until decay is reached, the average covers about this share of the steps so far. 1, as published,
        averages a short run from its first step on; from step 10,000 on there is no difference."""
        ramp_share: float = Field(80 / 300, ge=0, le=1)
        """Share of the run's epochs over which the divergences grow."""
        ramp_epochs: float | None = Field(None, ge=0)
        """Epochs over which they grow, as published: 80 of 300. Replaces ramp_share; 0: no ramp."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data, branches=config.branches, own_stages=config.own_stages)
        pooled = networks.student.shapes().pooled
        assert self.cohort is not None
        assert pooled is not None
        self.classifier = nn.Linear(config.branches * pooled.shape[1], data.num_classes)
        self.averaged = CohortCopy(self.cohort).requires_grad_(False)
        self.average = MovingAverage(config.decay, config.window_share)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires a view for each branch, and a student that can be split at its stages."""
        return Needs(
            views=config.branches,
            student=frozenset({"logits", "pooled", "stages"}),
            cut=True,
            compiles=False,
        )

    def candidates(self) -> dict[str, Candidate]:
        """Names the averaged branches, `ema_student` first, then the trained ones."""
        return {**self.members(), **super().members()}

    def members(self) -> dict[str, Candidate]:
        """Names the averaged branches."""
        student, averaged = self.networks.student, self.averaged
        return {
            f"ema_{name}": Candidate(student, partial(averaged.plain_state, k))
            for k, name in enumerate(self.names())
        }

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce, ensemble and average of each branch, and ce_ensemble."""
        assert self.cohort is not None
        views = len(batch.views)
        images = torch.cat([view.images for view in batch.views])
        readings = self.cohort(images, LOGITS | POOLED, views)[1]
        with torch.no_grad():
            averaged = self.averaged(images, LOGITS, views)[1]
        with self.networks.student.autocast():
            ensemble_BK = wide(self.classifier(torch.cat(pooled_of(readings), 1)))
        return self.terms(logits_of(readings), ensemble_BK, logits_of(averaged), batch.labels)

    def after_step(self, batch: Batch) -> None:
        """Updates the averaged parameters."""
        assert self.cohort is not None
        self.average.update(_parameters(self.averaged.parts()), _parameters(self.cohort.parts()))

    def terms(
        self, logits: list[Tensor], ensemble_BK: Tensor, averaged: list[Tensor], labels_B: Tensor
    ) -> dict[str, Tensor]:
        """Computes the weighted terms.

        Args:
            logits: `[B, K]` of each branch.
            ensemble_BK: Of the ensemble classifier.
            averaged: `[B, K]` of each branch of the averaged network, constants.
            labels_B: `[B]`.
        """
        terms = {"ce_ensemble": self.cross_entropy(ensemble_BK, labels_B)}
        for i, name in enumerate(self.names()):
            others = [target for j, target in enumerate(averaged) if j != i]
            terms[f"ce_{name}"] = self.cross_entropy(logits[i], labels_B)
            terms[f"ensemble_{name}"] = self.from_ensemble(logits[i], ensemble_BK)
            terms[f"average_{name}"] = self.from_averages(logits[i], others)
        return terms

    def from_ensemble(self, own_BK: Tensor, ensemble_BK: Tensor) -> Tensor:
        """Computes the weighted divergence of a branch from the ensemble classifier."""
        c = self.config
        target_BK = ensemble_BK.detach() if c.detach else ensemble_BK
        return self.ramp() * c.ensemble_weight * losses.kl(own_BK, target_BK, c.temperature, shift=c.shift)

    def from_averages(self, own_BK: Tensor, others: list[Tensor]) -> Tensor:
        """Computes the weighted divergence of a branch from the other branches' averages."""
        c = self.config
        each = [losses.kl(own_BK, target, c.temperature, shift=c.shift) for target in others]
        total = torch.stack(each).sum()
        return self.ramp() * c.average_weight * (total / len(each) if c.over_peers == "mean" else total)


def _parameters(parts: list[nn.Module]) -> list[nn.Parameter]:
    return [parameter for part in parts for parameter in part.parameters()]
