"""Images that are alike to the teacher stay alike to the student (Tung & Mori 2019)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Needs
from kdcompress.methods.taught import ClassifierLearns, Taught
from kdcompress.networks.networks import Networks


class SP(Taught):
    """ce_weight · CE(labels) + weight · Σ_pairs difference of similarity matrices + kd_weight · KL.

    The matrices are over the whole batch, of all processes together: the loss depends on which images meet
    and on how many, so its weight belongs to a batch size.

    Source:
        Tung & Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019; weight and the choice of the
        deepest stage alone are those of the RepDistiller code.
    """

    class Config(ClassifierLearns):
        """A pair's difference is a sum over the matrix divided by B²; pairs are added up."""

        weight: float = Field(3000.0, gt=0)
        """Of the sum over pairs, at batches of 64; the loss shrinks as 1/B."""
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
        """Terms similarity, ce and kd."""
        assert self.networks.teacher is not None
        c, needs = self.config, self.needs(self.config)
        seen = self.networks.student(batch.images, needs.student)
        taught = self.networks.teacher(batch.views[0], needs.read_of_teacher)
        each = [
            losses.similarity_preserving(
                self.gather(seen.stages[pair.student]), self.gather(taught.stages[pair.teacher])
            )
            for pair in self.pairs
        ]
        terms = {"similarity": c.weight * torch.stack(each).sum()}
        return terms | self.label_terms(seen.logits, taught.logits, batch.labels)
