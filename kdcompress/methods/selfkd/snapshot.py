"""Snapshot distillation (Yang et al., CVPR 2019): the network after one cycle teaches the next cycle."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcompress.config import Section
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs, Phase
from kdcompress.methods.frozen import Frozen
from kdcompress.methods.presets import Preset, cifar100, imagenet
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import wide


class Snapshot(Method):
    """Cycle 1: CE(labels). Later: label_weight · CE + weight · cross-entropy with the snapshot.

    In each cycle the learning rate falls along a half cosine to zero; the network at its end is frozen and
    teaches the next cycle. Only the snapshot's logits are divided by T. It is discarded after training.

    Source:
        Yang et al., Snapshot Distillation: Teacher-Student Optimization in One Generation, CVPR 2019, as
        described by readers: the authors published no code.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published with batches of 128; label_weight is 1 + 1/T.",
            epochs=300, optim={"lr": 0.1, "nesterov": True, "weight_decay": 1e-4},
            cycles=4, temperature=2.0, weight=1.0,
        ),
        "imagenet": imagenet("The values are those of CIFAR-100.", cycles=4, temperature=2.0, weight=1.0),
    }  # fmt: skip

    class Config(Section):
        """The paper's values as readers quote them."""

        cycles: int = Field(4, ge=2, le=20)
        """Number of cycles of equally many steps."""
        temperature: float = Field(2.0, gt=0)
        """Divides the snapshot's logits; the student's stay as they are. The paper has 2 and 3."""
        label_weight: float | None = Field(None, ge=0)
        """Weight of the cross-entropy with the labels from the second cycle on; None: 1 + 1/T."""
        weight: float = Field(1.0, ge=0)
        """Weight of the cross-entropy with the snapshot's predictions."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        self.snapshot = Frozen(copy.deepcopy(networks.student.network))

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires labels."""
        return Needs()

    def phases(self) -> list[Phase]:
        """Lists the cycles."""
        cycles, sets = self.config.cycles, tuple(self.parameter_sets())
        return [
            Phase(
                f"cycle{i + 1}", 1 / cycles, sets, keep_optimiser=True, whole_epochs=False, schedule="cosine"
            )
            for i in range(cycles)
        ]

    def on_phase_start(self, name: str, resumed: bool) -> None:
        """Copies the student at the start of every cycle but the first; a resume has restored the copy."""
        super().on_phase_start(name, resumed)
        if name != "cycle1" and not resumed:
            self.snapshot.module.load_state_dict(self.networks.student.network.state_dict())

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the term ce, and from the second cycle on the term snapshot."""
        student = self.networks.student
        logits = student(batch.images).logits
        assert logits is not None
        if self.phase == "cycle1":
            return {"ce": self.cross_entropy(logits, batch.labels)}
        with torch.no_grad(), student.autocast():
            earlier = wide(self.snapshot(student.normalise(batch.images)))
        return self.terms(logits, earlier, batch.labels)

    def terms(self, logits_BK: Tensor, snapshot_BK: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """Computes the weighted terms of the later cycles.

        Args:
            logits_BK: `[B, K]`.
            snapshot_BK: `[B, K]` logits of the snapshot, without gradient.
            labels_B: `[B]` int64.
        """
        c = self.config
        label_weight = 1 + 1 / c.temperature if c.label_weight is None else c.label_weight
        target_BK = losses.probabilities(snapshot_BK / c.temperature)
        return {
            "ce": label_weight * self.cross_entropy(logits_BK, labels_B),
            "snapshot": c.weight * losses.soft_label_cross_entropy(logits_BK, target_BK),
        }
