"""Similarity-preserving distillation (Tung & Mori, ICCV 2019): imitates the similarities in a batch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.feature_kd import FeatureKD
from kdcompress.methods.presets import CRD_TABLES, Preset, cifar100, crd_table, imagenet
from kdcompress.networks.activations import Activations, Want
from kdcompress.networks.networks import Networks

BATCH = 64
"""Rows of the published batches, to which the published weight belongs."""
WEIGHT = 3000.0
"""The published weight."""


class SP(FeatureKD):
    """ce_weight · CE(labels) + weight · Σ_pairs difference of similarity matrices + kd_weight · KL.

    The matrices are over the whole batch, of all processes together: the loss depends on which images meet
    and on how many, so a number as its weight belongs to a batch size.

    Source:
        Tung & Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019; weight and the choice of the
        deepest stage alone are those of the RepDistiller code.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "weight belongs to batches of 64.", weight=3000.0, stages="deepest", ce_weight=1.0, kd_weight=0.0
        ),
        "imagenet": imagenet(
            "No setting is published: the weight is that of CIFAR-100, at batches of 64.",
            weight=3000.0, stages="deepest", ce_weight=1.0, kd_weight=0.0,
        ),
    }  # fmt: skip
    FIGURES = crd_table(
        CRD_TABLES, 73.83, 72.43, 69.67, 70.04, 72.69, 72.94, 72.68, 66.30, 68.08, 73.34, 73.48, 74.56, 74.52
    )  # fmt: skip

    class Config(FeatureKD.Config):
        """A pair's difference is a sum over the matrix divided by B²; pairs are added up."""

        weight: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
        """Weight of the sum over pairs: 3000 in the presets, for the published batches of 64; the loss
        shrinks as 1/B. auto: 3000 · B / 64 for batches of B, so that the term does not depend on B."""
        stages: Literal["deepest", "all"] = "deepest"
        """deepest: as published figures have it; all: every pair of stages of one resolution besides."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        assert networks.teacher is not None
        ours, theirs = networks.student.shapes(), networks.teacher.shapes()
        pairs = losses.pairs(ours, theirs)
        if not pairs:
            raise NetworkError(
                f"method sp: needs a stage of both networks; student "
                f"{losses.stage_maps(networks.student.model, ours)}, teacher "
                f"{losses.stage_maps(networks.teacher.model, theirs)}; name stages in student.taps and "
                "teacher.taps"
            )
        self.pairs = pairs if config.stages == "all" else pairs[-1:]

    @classmethod
    def reads(cls, config: Config) -> tuple[Want, Want]:
        """Returns the stage maps of both networks."""
        return frozenset({"stages"}), frozenset({"stages"})

    def compare(self, ours: Activations, theirs: Activations, batch: Batch) -> dict[str, Tensor]:
        """Returns the term similarity."""
        maps = [
            (self.gather(ours.stages[pair.student]), self.gather(theirs.stages[pair.teacher]))
            for pair in self.pairs
        ]
        weight = self.config.weight
        if weight == "auto":
            weight = WEIGHT * len(maps[0][0]) / BATCH
        return {
            "similarity": weight * torch.stack([losses.similarity_preserving(*pair) for pair in maps]).sum()
        }
