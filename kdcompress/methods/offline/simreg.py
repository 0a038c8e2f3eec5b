"""SimReg (Navaneet et al., BMVC 2021): regresses the direction of the teacher's pooled features."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from kdcompress.data.batch import DataInfo
from kdcompress.methods import losses
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100
from kdcompress.methods.soft_labels import BackboneMethod
from kdcompress.networks.networks import Networks


class SimReg(BackboneMethod):
    """weight · (2 − 2 · cosine of a prediction from the student's features and the teacher's features).

    Needs no labels; the teacher may be one that learnt without any. Both networks see the same view. The
    predicting head is deeper than projection heads usually are, which is the paper's finding: it is thrown
    away, and the features before it are the better for it. ce_weight and kd_weight train a classifier beside.

    Source:
        Navaneet, Koohpayegani, Tejankar & Pirsiavash, SimReg: Regression as a Simple Yet Effective Tool for
        Self-supervised Knowledge Distillation, BMVC 2021, and the authors' code.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "No setting is published: a classifier learns beside.", weight=1.0, head_layers=4, ce_weight=1.0
        ),
        "imagenet": Preset(
            {"weight": 1.0, "head_layers": 4},
            {"epochs": 130},
            {
                "name": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4,
                "schedule": "cosine", "warmup": 0.0, "lr": 0.05,
            },
            "lr is that of batches of 256.",
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure(
            "imagenet", "torchvision/resnet50", "torchvision/mobilenet_v2", 69.1,
            "SimReg paper, BMVC 2021, linear probe, MoCo-v2 teacher", "imagenet",
        ),
        PublishedFigure(
            "imagenet", "torchvision/resnet50", "torchvision/resnet18", 65.1,
            "SimReg paper, BMVC 2021, linear probe, MoCo-v2 teacher", "imagenet",
        ),
    )  # fmt: skip

    class Config(BackboneMethod.Config):
        """The term is a mean over rows, in [0, 4]."""

        weight: float = Field(1.0, gt=0)
        head_layers: Literal[2, 4] = 4
        """Linear layers of the head. 4: D → 2D → D → 2D → E, nothing between the second and the third; 2:
        D → 2D → E. After each layer that is 2D wide there are batch norm and ReLU; the code's head of two
        layers lacks them, so that it is linear."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        student, teacher = self.widths
        between = (2 * student,) if config.head_layers == 2 else (2 * student, student, 2 * student)
        layers: list[nn.Module] = []
        for number, (width, out) in enumerate(pairwise((student, *between, teacher))):
            layers.append(nn.Linear(width, out))
            if number % 2 == 0:
                layers += [nn.BatchNorm1d(out), nn.ReLU()]
        self.head = nn.Sequential(*layers)

    def feature_terms(self, student_BD: Tensor, teacher_BE: Tensor) -> dict[str, Tensor]:
        """Computes the term regression."""
        with self.networks.student.autocast():
            predicted_BE = self.head(student_BD)
        return {"regression": self.regression(predicted_BE, teacher_BE)}

    def regression(self, predicted_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Computes the weighted term of the head's output and the teacher's features, of any lengths."""
        return self.config.weight * losses.cosine_alignment(predicted_BE, teacher_BE)
