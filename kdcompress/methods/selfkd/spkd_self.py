"""Similarity-preserving self-distillation (after Tung & Mori, ICCV 2019): stages agree on similar images."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from kdcompress.methods import losses
from kdcompress.methods.presets import Preset, cifar100, imagenet
from kdcompress.methods.stage_pairs import StagePairs

BATCH = 64
"""Rows of the batches to which the weight belongs."""
WEIGHT = 30.0
"""Weight at these batches. The 3000 published between two networks cost a ResNet-8 three points of accuracy
between its own stages, whose matrices differ far more (benchmarks/without_teacher.md)."""


class SPKDSelf(StagePairs):
    """Minimises CE(labels) + weight · Σ_pairs difference of similarity matrices of two stages.

    The matrices are over the whole batch, of all processes together. The deeper stage is a constant. Nothing
    is discarded after training.

    Source:
        Tung & Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, whose loss between two networks
        is used between stages of one, as the papers on self-distillation compare with it.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100("The weight is that between two networks, at batches of 64.", weight=3000.0),
        "imagenet": imagenet("The weight is that between two networks, at batches of 64.", weight=3000.0),
    }

    class Config(StagePairs.Config):
        """A pair's difference is a sum over the matrix divided by B²; pairs are added up."""

        weight: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
        """Weight of the sum over pairs; the loss shrinks as 1/B. auto: 30 · B / 64 for batches of B, a
        hundredth of what is published between two networks."""

    config: Config

    def compare(self, shallow_BCHW: Tensor, deep_BCHW: Tensor) -> Tensor:
        """Computes the weighted term of a pair."""
        shallow_BCHW, deep_BCHW = self.gather(shallow_BCHW), self.gather(deep_BCHW.detach())
        weight = self.config.weight
        if weight == "auto":
            weight = WEIGHT * len(shallow_BCHW) / BATCH
        return weight * losses.similarity_preserving(shallow_BCHW, deep_BCHW)
