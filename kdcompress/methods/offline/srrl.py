"""Softmax regression representation learning (Yang et al., ICLR 2021): uses the teacher's classifier."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.feature_kd import FeatureKD
from kdcompress.methods.presets import (
    Preset,
    cifar100,
    imagenet,
    resnet34_to_resnet18,
    resnet50_to_mobilenet_v1,
)
from kdcompress.networks.activations import Activations, Want
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import wide


class SRRL(FeatureKD):
    """ce_weight · CE + feature_weight · MSE(features) + classifier_weight · MSE(logits) + kd_weight · KL.

    A connector (1×1 convolution, batch norm, ReLU; thrown away) brings the student's last map to the width of
    the teacher's pooled features, and its average imitates them. The teacher's frozen classifier reads the
    average, and its output imitates the teacher's logits; the gradient passes through the classifier.

    Source:
        Yang, Martinez, Bulat & Tzimiropoulos, Knowledge Distillation via Softmax Regression Representation
        Learning, ICLR 2021. The code's single weight was first on the sum of both terms, later on the second
        alone; here each has its own. The features are the teacher's pooled vector, which for the paper's
        networks is the average of the last map.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "No setting is published; the authors try weights of (1, 1), (1, 5) and (10, 1).",
            ce_weight=1.0, feature_weight=1.0, classifier_weight=1.0, kd_weight=0.0,
        ),
        "imagenet": imagenet(
            "Published with batches of 512 at a learning rate of 0.2.",
            ce_weight=1.0, feature_weight=1.0, classifier_weight=1.0, kd_weight=0.0,
        ),
    }  # fmt: skip
    FIGURES = (
        resnet34_to_resnet18(71.73, "SRRL paper, ICLR 2021"),
        resnet50_to_mobilenet_v1(72.49, "SRRL paper, ICLR 2021"),
    )  # fmt: skip

    class Config(FeatureKD.Config):
        """Both squared differences are means over all elements; the other terms are means over rows."""

        feature_weight: float = Field(1.0, ge=0)
        """1 and 1 on ImageNet; for CIFAR the authors name (1, 1), (1, 5) and (10, 1) as what to try."""
        classifier_weight: float = Field(1.0, ge=0)

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        assert networks.teacher is not None
        student, teacher = networks.student, networks.teacher
        ours, theirs = student.shapes(), teacher.shapes()
        if theirs.pooled is None:
            raise NetworkError(
                "method srrl: reads the student's features with the teacher's linear classifier, and "
                f"{teacher.model} does not end in one; name it in teacher.taps: {{classifier: MODULE.PATH}}"
            )
        if not ours.stages:
            raise NetworkError(
                f"method srrl: needs the last map of the student, {losses.stage_maps(student.model, ours)}; "
                f"the teacher {teacher.model} reads {theirs.pooled.shape[1]} features; name a module in "
                "student.taps: {stage1: MODULE.PATH}"
            )
        self.stage, last = list(ours.stages.items())[-1]
        width = theirs.pooled.shape[1]
        self.connector = nn.Sequential(
            nn.Conv2d(last.shape[1], width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )

    @classmethod
    def reads(cls, config: Config) -> tuple[Want, Want]:
        """Returns the student's stage maps and the teacher's pooled features and logits."""
        return frozenset({"stages"}), frozenset({"logits", "pooled"})

    def compare(self, ours: Activations, theirs: Activations, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms features and classifier."""
        assert theirs.logits is not None
        assert theirs.pooled is not None
        with self.networks.student.autocast():
            connected_BDHW = self.connector(ours.stages[self.stage])
        return self.regressions(wide(connected_BDHW).mean((2, 3)), theirs.pooled, theirs.logits)

    def regressions(self, connected_BD: Tensor, pooled_BD: Tensor, logits_BK: Tensor) -> dict[str, Tensor]:
        """Computes the weighted terms features and classifier.

        Args:
            connected_BD: The averaged output of the connector.
            pooled_BD: The teacher's pooled features, detached.
            logits_BK: The teacher's logits, detached.
        """
        assert self.networks.teacher is not None
        student_BK = self.networks.teacher.classify(connected_BD)
        return {
            "features": self.config.feature_weight * losses.mse(connected_BD, pooled_BD),
            "classifier": self.config.classifier_weight * losses.mse(student_BK, logits_BK),
        }
