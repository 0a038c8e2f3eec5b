"""Progressive self-knowledge distillation (Kim et al., ICCV 2021): softens labels by earlier predictions."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.memory import SampleMemory
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.short_runs import ShortRuns
from kdcompress.networks.networks import Networks

LARGEST_ON_DEVICE = 1 << 28
"""Bytes up to which `memory: auto` keeps the predictions on the training device."""


class PSKD(Method):
    """Minimises the cross-entropy with (1 - a) · label + a · the prediction of the epoch before.

    a = alpha · (epoch + 1) / epochs, with the epoch from 0. The predictions of all training images are
    stored, one row of K numbers each, and start as the labels. The memory is discarded after training.

    Source:
        Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, ICCV 2021, and the
        authors' code, which keeps the rows in float32 where here it is float16 (values in [0, 1], rounded by
        at most 0.0003), and leaves rows of images that were not visited at 0 where here they are the labels.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published with batches of 128.",
            epochs=300, optim={"lr": 0.1, "nesterov": True, "milestones": [150, 225]}, alpha=0.8,
        ),
        "imagenet": imagenet(
            "The schedule is the usual one; the paper's is not known here.",
            alpha=0.8, full_weight_epochs=0.0,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure(
            "cifar100", "", "cifar/resnet18", 79.18, "PS-KD repository (plain 75.82)", "cifar100"
        ),
    )  # fmt: skip

    class Config(ShortRuns):
        """The authors' value, and where the predictions are kept."""

        full_weight_epochs: float = Field(120.0, ge=0)
        """Epochs from which on alpha is as given; a shorter training has its share of it. It is published for
        300 epochs. 0: always as given."""
        alpha: float = Field(0.8, ge=0, lt=1)
        """Share of the predictions in the last epoch's targets."""
        memory: Literal["auto", "cpu", "device"] = "auto"
        """Place of the stored predictions, 2 · images · classes bytes: 10 MB for CIFAR-100, 2.6 GB for
        ImageNet. cpu: every step then waits for the device; auto: the device up to 268 MB, else cpu. They
        are part of every checkpoint."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        samples = len(data.labels)
        small = 2 * samples * data.num_classes <= LARGEST_ON_DEVICE
        on_device = config.memory == "device" or (config.memory == "auto" and small)
        self.memory = SampleMemory(samples, data.num_classes, device="method" if on_device else "cpu")
        known = (data.labels >= 0).nonzero().flatten()
        self.memory.rows.zero_()
        self.memory.rows[known, data.labels[known]] = 1
        self._unremembered: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires labels."""
        return Needs()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the term soft_labels."""
        logits = self.networks.student(batch.images).logits
        assert logits is not None
        remembered_BK = self.memory.read(batch.indices).to(logits.dtype)
        self._unremembered.append((batch.indices, losses.probabilities(logits.detach())))
        return {"soft_labels": self.soft_label_loss(logits, batch.labels, remembered_BK)}

    def share(self) -> float:
        """Returns the share of the predictions in this epoch's targets."""
        return self.short_run_factor() * float(self.config.alpha) * (self.epoch + 1) / self.epochs

    def soft_label_loss(self, logits_BK: Tensor, labels_B: Tensor, remembered_BK: Tensor) -> Tensor:
        """Computes the cross-entropy with the refined targets.

        Args:
            logits_BK: `[B, K]`.
            labels_B: `[B]` int64.
            remembered_BK: `[B, K]` predictions of the epoch before.

        Returns:
            Scalar; class weights and label smoothing apply to the part of the labels.
        """
        share = self.share()
        from_memory = losses.soft_label_cross_entropy(logits_BK, remembered_BK)
        return (1 - share) * self.cross_entropy(logits_BK, labels_B) + share * from_memory

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """Stores the predictions of the step's batches, from all processes."""
        for indices_B, rows_BK in self._unremembered:
            self.memory.write(indices_B, rows_BK)
        self._unremembered.clear()
