"""Relational knowledge distillation (Park et al., CVPR 2019): imitates distances and angles in a batch."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.methods import losses
from kdcompress.methods.feature_kd import FeatureKD
from kdcompress.methods.presets import CRD_TABLES, Preset, cifar100, crd_table, imagenet
from kdcompress.methods.requirements import pooled_widths
from kdcompress.networks.activations import Activations, Want
from kdcompress.networks.networks import Networks


class RKD(FeatureKD):
    """ce_weight · CE(labels) + distance_weight · distances + angle_weight · angles + kd_weight · KL.

    Distances and angles are those between pooled vectors, whose widths need not agree; nothing is trained
    beside the student. The rows of a batch are compared in groups of `sub_batch`, which bounds the memory; a
    batch of 64 or fewer, over all processes, is one group.

    Source:
        Park, Kim, Lu & Cho, Relational Knowledge Distillation, CVPR 2019. Weights of 25 and 50 are those of
        the CRD set-up; the paper's metric learning has 1 and 2.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(distance_weight=25.0, angle_weight=50.0, ce_weight=1.0, kd_weight=0.0),
        "imagenet": imagenet(
            "No setting is published: the values are those of CIFAR-100.",
            distance_weight=25.0, angle_weight=50.0, ce_weight=1.0, kd_weight=0.0,
        ),
    }  # fmt: skip
    FIGURES = crd_table(
        CRD_TABLES, 73.35, 72.22, 69.61, 69.25, 71.82, 71.90, 71.48, 64.52, 64.43, 71.50, 72.28, 73.21, 72.21
    )  # fmt: skip

    class Config(FeatureKD.Config):
        """Distances are a mean over a group's pairs, angles over its triples; other terms are row means."""

        distance_weight: float = Field(25.0, ge=0)
        angle_weight: float = Field(50.0, ge=0)
        sub_batch: int | None = Field(64, ge=3)
        """Rows per group; published figures use batches of 64. None: all rows of a batch in one group.
        Angles take rows² · width + rows³ numbers per group and network: 35 MB for 64 rows of width 2048,
        604 MB for 256 rows, 2.7 GB for 512."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        pooled_widths("rkd", "relates the pooled vectors of images", networks)

    @classmethod
    def reads(cls, config: Config) -> tuple[Want, Want]:
        """Returns the pooled vectors of both networks."""
        return frozenset({"pooled"}), frozenset({"pooled"})

    def compare(self, ours: Activations, theirs: Activations, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms distance and angle."""
        assert ours.pooled is not None
        assert theirs.pooled is not None
        return self.relations(ours.pooled, theirs.pooled)

    def relations(self, student_BD: Tensor, teacher_BE: Tensor) -> dict[str, Tensor]:
        """Computes the weighted terms distance and angle.

        Args:
            student_BD: `[B, D]`.
            teacher_BE: `[B, E]`, a constant.
        """
        c = self.config
        if c.sub_batch is None or len(student_BD) % c.sub_batch:
            # Otherwise every process has whole groups, and their mean splits over the processes.
            student_BD, teacher_BE = self.gather(student_BD), self.gather(teacher_BE)
        rows = len(student_BD)
        size = c.sub_batch or rows
        groups = [
            (len(ours) / rows, ours, theirs)
            for ours, theirs in zip(torch.split(student_BD, size), torch.split(teacher_BE, size), strict=True)
        ]
        terms: dict[str, Tensor] = {}
        for name, weight, relation in (
            ("distance", c.distance_weight, losses.mutual_distances),
            ("angle", c.angle_weight, losses.mutual_angles),
        ):
            if weight:
                total = student_BD.new_zeros(())
                for share, ours, theirs in groups:
                    total = total + share * relation(ours, theirs)
                terms[name] = weight * total
        return terms
