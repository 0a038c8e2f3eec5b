"""Self-distillation from the last mini-batch (Shen et al., CVPR 2022): imitates its outputs one step ago."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.gather import own_rows
from kdcompress.methods.presets import Preset, cifar100, imagenet
from kdcompress.methods.short_runs import ShortRuns
from kdcompress.networks.networks import Networks


class DLB(Method):
    """Minimises CE of this batch and the last + weight · T² · KL(logits of the last step ‖ logits now).

    Each image has two views. A step trains on the first view of its batch and on the second view of the batch
    before, and there imitates the logits that the step before computed on the first view. The first step of
    a training has the cross-entropy of its own batch alone. With `train.accumulate` the batch before may be
    one of the same step.

    Source:
        Shen et al., Self-Distillation from the Last Mini-Batch for Consistency Regularization, CVPR 2022, and
        the authors' code, which has no default for temperature and weight.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Temperature and weight are not in the authors' code; its comments hint at 3. Schedule and rate "
            "are those of its script for plain training.",
            optim={"lr": 0.05, "nesterov": True}, weight=1.0, temperature=3.0,
        ),
        "imagenet": imagenet("No setting is published.", weight=1.0, temperature=3.0),
    }  # fmt: skip

    class Config(ShortRuns):
        """The values that the authors' comments hint at."""

        weight: float = Field(1.0, ge=0)
        """Weight of the divergence beside the cross-entropy."""
        temperature: float = Field(3.0, gt=0)
        """Divides the logits of both steps. The term carries the factor T²."""

    config: Config
    last_images: Tensor
    last_labels: Tensor
    last_logits: Tensor
    begun: Tensor

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        rows = data.batch_size
        # The rows of all processes, so that every process's checkpoint is that of all.
        self.register_buffer("last_images", torch.zeros(rows, data.channels, *data.image_size))
        self.register_buffer("last_labels", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("last_logits", torch.zeros(rows, data.num_classes))
        self.register_buffer("begun", torch.zeros((), dtype=torch.int64))
        self._begun = False

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires two views of every image."""
        return Needs(views=2)

    def on_epoch_start(self, epoch: int, epochs: int) -> None:
        """Reads from the state if there was a step before; also called first after a resume."""
        super().on_epoch_start(epoch, epochs)
        # Asked here and not at every step, which would wait for the device.
        self._begun = bool(self.begun)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the terms ce and last_batch."""
        student = self.networks.student
        logits = student(batch.images).logits
        assert logits is not None
        last = None
        if self._begun:
            # Copies, since the buffers are overwritten before the backward pass.
            images, labels, before = (
                own_rows(each).clone() for each in (self.last_images, self.last_labels, self.last_logits)
            )
            again = student(images).logits
            assert again is not None
            last = (again, labels, before)
        self._remember(batch, logits.detach())
        return self.terms(logits, batch.labels, last)

    def terms(
        self, logits_BK: Tensor, labels_B: Tensor, last: tuple[Tensor, Tensor, Tensor] | None
    ) -> dict[str, Tensor]:
        """Computes the weighted terms.

        Args:
            logits_BK: `[B, K]` of this batch's first view.
            labels_B: `[B]` int64.
            last: Of the batch before: logits of its second view, its labels, and the logits of its first view
                as the step before computed them. None in the first step.
        """
        if last is None:
            return {"ce": self.cross_entropy(logits_BK, labels_B)}
        again_BK, last_labels_B, last_BK = last
        ce = self.cross_entropy(torch.cat([again_BK, logits_BK]), torch.cat([last_labels_B, labels_B]))
        kl = losses.kl(again_BK, last_BK, self.config.temperature)
        return {"ce": ce, "last_batch": self.short_run_factor() * self.config.weight * kl}

    @torch.no_grad()
    def _remember(self, batch: Batch, logits_BK: Tensor) -> None:
        """Stores the second view and the logits of the first, from all processes."""
        self.last_images.copy_(self.gather(batch.views[1].images))
        self.last_labels.copy_(self.gather(batch.labels))
        self.last_logits.copy_(self.gather(logits_BK))
        self.begun.fill_(1)
        self._begun = True
