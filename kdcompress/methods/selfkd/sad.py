"""Self attention distillation (Hou et al., ICCV 2019): each stage imitates where the next one is active."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from kdcompress.methods import losses
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.stage_pairs import StagePairs


class SAD(StagePairs):
    """Minimises CE(labels) + weight · Σ_pairs squared difference of spatial softmaxes of energies.

    Nothing is discarded after training.

    Source:
        Hou et al., Learning Lightweight Lane Detection CNNs by Self Attention Distillation, ICCV 2019, made
        for lane segmentation; weight and the mean over channels are those of Self-KD-Lib, which applies it to
        classification.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "The values of Self-KD-Lib, which has no late start; published with batches of 128.",
            epochs=200,
            optim={"lr": 0.1, "nesterov": True, "milestones": [105, 155], "warmup": 5.0},
            weight=1000.0, energy="mean", enlarge="map", start_share=0.0,
        ),
        "imagenet": imagenet(
            "No setting is published: the values are those of CIFAR-100.",
            weight=1000.0, energy="mean", enlarge="map", start_share=0.0,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure(
            "cifar100", "", "cifar/resnet18", 76.40,
            "Self-KD-Lib README, pre-activation network, best epoch on the test set (plain 76.24)",
            "cifar100",
        ),
    )  # fmt: skip

    class Config(StagePairs.Config):
        """The form that is recommended for classification."""

        weight: float = Field(1000.0, ge=0)
        """Weight of the sum over pairs; each is a mean over positions, so that it is small."""
        energy: Literal["mean", "sum"] = "mean"
        """Mean or sum of squares over channels; the sum, as in the paper, makes the softmax much sharper."""
        enlarge: Literal["energy", "map"] = "energy"
        """Enlarge the energies of the deeper stage, as in the paper, or its map, as in Self-KD-Lib."""
        detach: bool = True
        """Stops the gradient of the deeper stage."""

    COMPARES_POSITIONS = True
    config: Config

    def compare(self, shallow_BCHW: Tensor, deep_BCHW: Tensor) -> Tensor:
        """Computes the weighted term of a pair."""
        c = self.config
        deep_BCHW = deep_BCHW.detach() if c.detach else deep_BCHW
        difference = losses.energy_difference(shallow_BCHW, deep_BCHW, energy=c.energy, enlarge=c.enlarge)
        return c.weight * difference
