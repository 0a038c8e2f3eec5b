"""Curriculum temperature KD (Li et al., AAAI 2023): learns the temperature adversarially."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdcompress.config import Section
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.presets import (
    LOGIT_STANDARDIZATION,
    Preset,
    cifar100,
    crd_table,
    imagenet,
    resnet34_to_resnet18,
)
from kdcompress.networks.networks import Networks

_WEIGHTS = {"kd": {"ce_weight": 0.1, "kd_weight": 0.9}, "dkd": {"ce_weight": 1.0, "kd_weight": 1.0}}


class CTKD(Method):
    """ce_weight · CE(labels) + kd_weight · (KD or DKD at T), T = t_start + t_range · σ(w) with one learnt w.

    The gradient of w is multiplied by λ, which a curriculum takes from 0 to -1: the student descends the
    loss that w ascends. w stands in the same optimiser as the student, weight decay included, and is thrown
    away. It begins at 1, so that T begins at 15.6.

    Source:
        Li et al., Curriculum Temperature for Knowledge Distillation, AAAI 2023, the global temperature; the
        authors' code. Its linear curriculum stops at -0.9 by a slip; `linear` here reaches the end and
        `linear_reference` does as the code does. The temperature per image is not built: the code has none.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            loss="kd", ce_weight=0.1, kd_weight=0.9, t_start=1.0, t_range=20.0, curriculum="cosine",
            ramp_epochs=10,
        ),
        "imagenet": imagenet(
            epochs=120, loss="kd", ce_weight=1.0, kd_weight=1.0, t_start=1.0, t_range=20.0,
            curriculum="cosine", ramp_epochs=5,
        ),
    }  # fmt: skip
    FIGURES = (
        *crd_table(
            "CTKD paper, AAAI 2023",
            75.45, 73.93, 71.19, 70.99, 73.52, None, 73.52, None, None, None, None, None, None,
        ),
        *crd_table(
            LOGIT_STANDARDIZATION,
            None, None, None, None, None, 73.39, None, 68.50, 68.67, None, None, 75.37, None,
        ),
        resnet34_to_resnet18(71.32, "CTKD paper, AAAI 2023, own teacher of 73.96 (student alone 70.26)"),
    )  # fmt: skip

    class Config(Section):
        """For CIFAR-100. On ImageNet: both weights 1, ramp_epochs 5."""

        loss: Literal["kd", "dkd"] = "kd"
        """Loss that uses the temperature."""
        ce_weight: float = Field(0.1, ge=0)
        """Mean over rows. Where the recipe is silent: 0.1 with kd, 1 with dkd."""
        kd_weight: float = Field(0.9, ge=0)
        """Weight of the distillation loss, T² · KL as a mean over rows. By default 0.9 with kd, 1
        with dkd."""
        alpha: float = Field(1.0, ge=0)
        """Weight of TCKD; dkd only."""
        beta: float = Field(8.0, ge=0)
        """Weight of NCKD; dkd only. See the method dkd."""
        t_start: float = Field(1.0, gt=0)
        """The lowest temperature."""
        t_range: float = Field(20.0, gt=0)
        """The highest is t_start + t_range."""
        curriculum: losses.Curriculum = "cosine"
        """Course of λ over the ramp."""
        ramp_share: float = Field(10 / 240, ge=0, le=1)
        """Share of the run's epochs after which λ is at its end, rounded to whole epochs, at least one."""
        ramp_epochs: int | None = Field(None, ge=1)
        """λ is at its end from this epoch on (the first counts as 1), as published: 10 of 240. Replaces
        ramp_share."""
        reversal_start: float = Field(0.0, le=0)
        """λ before the first epoch."""
        reversal_end: float = Field(-1.0, le=0)
        """λ after the ramp. Nearer 0 is gentler."""
        logit_standardization: bool = False
        """Compare z-scores of the logits (Sun et al. 2024); the weights then have to be found anew."""

        @model_validator(mode="before")
        @classmethod
        def _weights_of_the_loss(cls, values: Any) -> Any:
            # Only a string can be a name; anything else is refused by the field.
            loss = values.get("loss") if isinstance(values, dict) else None
            return {**_WEIGHTS.get(loss, {}), **values} if isinstance(loss, str) else values

        @model_validator(mode="after")
        def _nothing_unread(self) -> CTKD.Config:
            if self.loss == "kd" and (self.alpha, self.beta) != (1.0, 8.0):
                raise ValueError("alpha and beta go with loss: dkd")
            return self

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        self.raw_temperature = nn.Parameter(torch.ones(()))

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires a teacher, and labels for the cross-entropy and for dkd."""
        decoupled = config.loss == "dkd"
        return Needs(teacher=True, labels=config.ce_weight > 0 or decoupled, unlabelled=not decoupled)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce, and kd or tckd and nckd."""
        return self.terms(*self.both_logits(batch), batch.labels)

    def terms(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """Computes the weighted terms from logits `[B, K]`."""
        c = self.config
        logits = losses.maybe_standardized(student_BK, teacher_BK, standardize=c.logit_standardization)
        temperature = self.temperature()
        if c.loss == "kd":
            terms = {"kd": c.kd_weight * losses.kl(*logits, temperature)}
        else:
            terms = {
                "tckd": c.kd_weight * c.alpha * losses.tckd(*logits, labels_B, temperature),
                "nckd": c.kd_weight * c.beta * losses.nckd(*logits, labels_B, temperature),
            }
        if c.ce_weight > 0:
            terms["ce"] = c.ce_weight * self.cross_entropy(student_BK, labels_B)
        return terms

    def temperature(self) -> Tensor:
        """Returns T, a scalar; the parameter's gradient is multiplied by this epoch's λ."""
        c = self.config
        return losses.learnt_temperature(self.raw_temperature, c.t_start, c.t_range, self.reversal())

    def reversal(self) -> float:
        """Returns λ of this epoch."""
        c = self.config
        ramp = max(1, round(self.epochs_of(c.ramp_share, c.ramp_epochs)))
        return losses.reversal(self.epoch + 1, ramp, c.curriculum, start=c.reversal_start, end=c.reversal_end)
