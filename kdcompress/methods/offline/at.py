"""Attention transfer (Zagoruyko & Komodakis, ICLR 2017): imitates where the teacher's maps are active."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.feature_kd import FeatureKD
from kdcompress.methods.presets import CRD_TABLES, Preset, cifar100, crd_table, imagenet, resnet34_to_resnet18
from kdcompress.networks.activations import Activations, Want
from kdcompress.networks.networks import Networks

SUM_WEIGHT = 1000 / 16**2
"""Weight of a pair's squared difference as a sum over positions: the published 1000 at maps of 16x16, the
middle ones of a CIFAR network."""


class AT(FeatureKD):
    """ce_weight · CE(labels) + weight · Σ_pairs attention difference + kd_weight · KL.

    Stages are paired by resolution and the deepest with the deepest, where the code pairs them by order;
    the same for networks of one family. Of a pair of two sizes the larger map is averaged down. A map of one
    pixel has the same attention everywhere and costs nothing.

    Source:
        Zagoruyko & Komodakis, Paying More Attention to Attention, ICLR 2017, in the mean-of-squares form of
        the authors' and the RepDistiller code. The paper's norm without a square would need a weight smaller
        by orders of magnitude.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(weight=1000.0, power=2.0, ce_weight=1.0, kd_weight=0.0),
        "imagenet": imagenet(
            "No setting is published for this form of the loss: the values are those of CIFAR-100.",
            weight=1000.0, power=2.0, ce_weight=1.0, kd_weight=0.0,
        ),
    }  # fmt: skip
    FIGURES = (
        *crd_table(
            CRD_TABLES,
            74.08, 72.77, 70.55, 70.22, 72.31, 73.44, 71.43, 59.40, 58.58, 71.84, 71.73, 72.73, 73.32,
        ),
        resnet34_to_resnet18(70.90, "torchdistill, the paper's form of the loss, own settings", None),
    )  # fmt: skip

    class Config(FeatureKD.Config):
        """A pair's difference is a mean over rows and positions; pairs are added up."""

        weight: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
        """Weight of the sum over pairs: 1000 in the published figures and the presets. A pair is then at most
        2 · weight / positions, so that small maps count most (125 for one of 4x4) and dominate a short
        training. auto: 3.9 · positions for each pair, so that none is above 7.8; 1000 for maps of 16x16."""
        power: float = Field(2.0, ge=1)
        """Exponent of the activations before their mean over channels."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        assert networks.teacher is not None
        ours, theirs = networks.student.shapes(), networks.teacher.shapes()
        self.pairs = losses.pairs(ours, theirs)
        if not any(pair.pixels > 1 for pair in self.pairs):
            raise NetworkError(
                "method at: no stage of more than one pixel has a counterpart in the other network; student "
                f"{losses.stage_maps(networks.student.model, ours)}, teacher "
                f"{losses.stage_maps(networks.teacher.model, theirs)}; name stages in student.taps and "
                "teacher.taps, or take larger images"
            )

    @classmethod
    def reads(cls, config: Config) -> tuple[Want, Want]:
        """Returns the stage maps of both networks."""
        return frozenset({"stages"}), frozenset({"stages"})

    def compare(self, ours: Activations, theirs: Activations, batch: Batch) -> dict[str, Tensor]:
        """Returns the term attention."""
        student = [ours.stages[pair.student] for pair in self.pairs]
        teacher = [theirs.stages[pair.teacher] for pair in self.pairs]
        return {"attention": self.attention(student, teacher)}

    def attention(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Computes the weighted attention loss, summed over pairs of maps `[B, C, H, W]`."""
        each = [
            self._pair_weight(s, t) * losses.attention_transfer(s, t, self.config.power)
            for s, t in zip(student, teacher, strict=True)
        ]
        return torch.stack(each).sum()

    def _pair_weight(self, student_BCHW: Tensor, teacher_BCHW: Tensor) -> float:
        if self.config.weight != "auto":
            return self.config.weight
        height, width = (min(student_BCHW.shape[i], teacher_BCHW.shape[i]) for i in (2, 3))
        return SUM_WEIGHT * height * width
