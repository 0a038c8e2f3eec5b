"""SimSiam (Chen & He, CVPR 2021): trains a backbone on images without labels, by agreement of two views."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcompress.config import Section
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs, ParameterSet
from kdcompress.methods.presets import Preset, cifar100, imagenet
from kdcompress.networks.activations import POOLED
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import wide
from kdcompress.tasks import EMBEDDING

WIDEST = 2048
"""Published width of the projections; by default they are at most that wide."""


class SimSiam(Method):
    """Minimises the mean over both views of -cosine(predictor(projector(one)), projector(other)).

    The other view's projection is a constant. The projector is three linear layers with batch norm, the last
    norm without weights; the predictor is two, with a constant learning rate. Both are discarded after
    training, and the backbone ships. The last epoch ships where no image has a label.

    Source:
        Chen & He, Exploring Simple Siamese Representation Learning, CVPR 2021.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published for CIFAR-10, with batches of 512 and a rate of 0.06.",
            epochs=800, optim={"weight_decay": 5e-4, "schedule": "cosine", "lr": 0.06}, width=2048,
        ),
        "imagenet": imagenet(
            "Published with batches of 512 and a rate of 0.1; the rate is 0.05 for 256.",
            optim={"weight_decay": 1e-4, "schedule": "cosine", "lr": 0.05}, width=2048,
        ),
    }  # fmt: skip

    class Config(Section):
        """Widths of the two heads."""

        width: int | None = Field(None, ge=8)
        """Width of the projections and of the projector's hidden layers. None: four times the pooled
        features, at most 2048, which is published for ResNet-50."""
        predictor_share: float = Field(0.25, gt=0, le=1)
        """Width of the predictor's hidden layer as a share of that."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        pooled = networks.student.shapes().pooled
        if pooled is None:
            raise NetworkError(
                f"method simsiam: {networks.student.model} has no pooled features; name its classifier in "
                "student.taps"
            )
        width = config.width or min(WIDEST, 4 * pooled.shape[1])
        hidden = max(1, round(width * config.predictor_share))
        self.projector = nn.Sequential(
            *_layer(pooled.shape[1], width), *_layer(width, width),
            nn.Linear(width, width, bias=False), nn.BatchNorm1d(width, affine=False),
        )  # fmt: skip
        self.predictor = nn.Sequential(*_layer(width, hidden), nn.Linear(hidden, width))

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires two strong views, no labels, and a student without a classifier."""
        return Needs(
            views=2, augment=("simsiam", "simsiam"), labels=False, unlabelled=True, student=POOLED,
            task=EMBEDDING,
        )  # fmt: skip

    def parameter_sets(self) -> dict[str, ParameterSet]:
        """Names main, and the predictor, whose rate stays as it begins."""
        main = (*self.networks.student.network.parameters(), *self.projector.parameters())
        return {
            "main": ParameterSet(tuple(main)),
            "predictor": ParameterSet(tuple(self.predictor.parameters()), schedule="constant"),
        }

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the term agreement, in [-1, 1]."""
        student = self.networks.student
        projections, predictions = [], []
        for view in batch.views:
            pooled = student(view.images, POOLED).pooled
            assert pooled is not None
            with student.autocast():
                projected = self.projector(pooled)
                predictions.append(wide(self.predictor(projected)))
            projections.append(wide(projected))
        return {"agreement": self.agreement(predictions, projections)}

    def agreement(self, predictions: list[Tensor], projections: list[Tensor]) -> Tensor:
        """Computes the mean of the two negative cosines.

        Args:
            predictions: `[B, E]` of the predictor, of each view.
            projections: `[B, E]` of the projector, of each view.
        """
        each = [
            losses.negative_cosine(predicted, projected.detach())
            for predicted, projected in zip(predictions, reversed(projections), strict=True)
        ]
        return torch.stack(each).mean()


def _layer(before: int, after: int) -> list[nn.Module]:
    return [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
