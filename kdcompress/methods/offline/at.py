"""Every stage looks where the teacher's looks: attention transfer (Zagoruyko & Komodakis 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Needs
from kdcompress.methods.taught import ClassifierLearns, Taught
from kdcompress.networks.networks import Networks


class AT(Taught):
    """ce_weight · CE(labels) + weight · Σ_pairs attention difference + kd_weight · KL.

    Stages are paired by resolution and the deepest with the deepest, where the code pairs them by order;
    the same for networks of one family. Of a pair of two sizes the larger map is averaged down. A map of one
    pixel has the same attention everywhere and costs nothing.

    Source:
        Zagoruyko & Komodakis, Paying More Attention to Attention, ICLR 2017, in the mean-of-squares form of
        the authors' and the RepDistiller code. The paper's norm without a square would need a weight smaller
        by orders of magnitude.
    """

    class Config(ClassifierLearns):
        """A pair's difference is a mean over rows and positions; pairs are added up."""

        weight: float = Field(1000.0, gt=0)
        """Of the sum over pairs."""
        power: float = Field(2.0, ge=1)
        """To which activations are raised before their mean over channels."""

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
    def needs(cls, config: Config) -> Needs:
        """Both networks' stages, and labels unless their weight is 0."""
        return Needs(
            teacher=True,
            labels=config.ce_weight > 0,
            unlabelled=True,
            student=frozenset({"logits", "stages"}),
            read_of_teacher=frozenset({"logits", "stages"} if config.kd_weight else {"stages"}),
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms attention, ce and kd."""
        assert self.networks.teacher is not None
        needs = self.needs(self.config)
        seen = self.networks.student(batch.images, needs.student)
        taught = self.networks.teacher(batch.views[0], needs.read_of_teacher)
        terms = {
            "attention": self.attention(
                [seen.stages[pair.student] for pair in self.pairs],
                [taught.stages[pair.teacher] for pair in self.pairs],
            )
        }
        return terms | self.label_terms(seen.logits, taught.logits, batch.labels)

    def attention(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The weighted sum over pairs of maps `[B, C, H, W]`."""
        each = [
            losses.attention_transfer(s, t, self.config.power) for s, t in zip(student, teacher, strict=True)
        ]
        return self.config.weight * torch.stack(each).sum()
