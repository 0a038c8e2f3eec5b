"""Similarity and consistency (Computer Science 50(11), 2023): our reconstruction from the abstract.

The stages of a network agree with one another.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from kdcompress.methods import losses
from kdcompress.methods.presets import Preset, cifar100, imagenet
from kdcompress.methods.stage_pairs import StagePairs

BATCH = 64
"""Rows of the batches to which the weight belongs."""
WEIGHT = {"l2": 300.0, "softmax": 3.0}
"""Weights at these batches. Softmax maps differ far more from image to image than maps of unit length."""


class SCD(StagePairs):
    """Minimises CE(labels) + weight · Σ_pairs difference of similarity matrices of attention maps.

    A reconstruction: the paper's formulas are not public, its abstract is. For every stage the attention maps
    of a batch are compared with each other; each stage's matrix of similarities imitates that of the next
    stage, which is a constant. Nothing is discarded after training.

    Source:
        "Similarity and Consistency by Self-distillation", Computer Science 50(11):259-268, 2023, by its
        abstract; attention maps as in Zagoruyko & Komodakis 2017, matrices as in Tung & Mori 2019. Norm,
        pairs, weight and start are our choice.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100("Nothing is published: the values are the defaults of this reconstruction."),
        "imagenet": imagenet("Nothing is published: the values are the defaults of this reconstruction."),
    }

    class Config(StagePairs.Config):
        """A pair's difference is a sum over the matrix divided by B²; pairs are added up."""

        weight: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
        """Weight of the sum over pairs; the loss shrinks as 1/B. auto: 300 · B / 64 with l2, 3 · B / 64
        with softmax."""
        norm: Literal["l2", "softmax"] = "l2"
        """Attention maps of unit length, or as a softmax over positions."""

    COMPARES_POSITIONS = True
    config: Config

    def compare(self, shallow_BCHW: Tensor, deep_BCHW: Tensor) -> Tensor:
        """Computes the weighted term of a pair."""
        c = self.config
        shallow_BCHW, deep_BCHW = self.gather(shallow_BCHW), self.gather(deep_BCHW.detach())
        weight = c.weight
        if weight == "auto":
            weight = WEIGHT[c.norm] * len(shallow_BCHW) / BATCH
        return weight * losses.map_similarity_difference(shallow_BCHW, deep_BCHW, norm=c.norm)
