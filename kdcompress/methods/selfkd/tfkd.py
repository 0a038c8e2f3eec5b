"""Teacher-free knowledge distillation (Yuan et al., CVPR 2020): a designed teacher, or the network itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from kdcompress.config import Section
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.networks.networks import Networks

REPOSITORY = "teacher-free KD repository"


@dataclass(frozen=True, slots=True)
class TeacherDefaults:
    """The authors' values for ResNet-18 on CIFAR-100 with one kind of teacher.

    Args:
        alpha: Share of the distillation term.
        temperature: Divides the teacher's numbers.
        multiplier_per_class: The multiplier over the number of classes.
    """

    alpha: float
    temperature: float
    multiplier_per_class: float


PUBLISHED = {"virtual": TeacherDefaults(0.1, 20.0, 1.0), "self": TeacherDefaults(0.95, 6.0, 0.5)}


class TFKD(Method):
    """Minimises (1 - alpha) · CE(labels) + alpha · multiplier · KL, a mean over rows and classes.

    `teacher: virtual` imitates softmax(v / T) with v = correct on the label and the rest spread evenly; since
    these are probabilities, T = 20 makes the target almost uniform: it is label smoothing in other words.
    `teacher: self` imitates a network of the student's architecture that was trained before, at temperature T
    on both sides and with the factor T².

    Source:
        Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, CVPR 2020, and the
        authors' code, whose mean over classes makes `multiplier` necessary and whose virtual teacher leaves
        the student's logits undivided by T.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "For ResNet-18, with batches of 128, rotations by up to 15 degrees, and a rate that is "
            "divided by 5 at the milestones, not by 10. MobileNetV2: alpha 0.95, temperature 40, multiplier "
            "1; ShuffleNetV2: 0.95, 10, 1; GoogLeNet: 0.1, 40, 50. With teacher: self ResNet-18 has 0.95, 6, "
            "50.",
            epochs=200, optim={"lr": 0.1, "milestones": [60, 120, 160], "warmup": 1.0},
            alpha="auto", temperature="auto", multiplier="auto", teacher="virtual",
        ),
        "imagenet": imagenet(
            "The authors' repository lacks this loss: the values are those of CIFAR-100.",
            alpha="auto", temperature="auto", multiplier="auto", teacher="virtual",
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure("cifar100", "", "cifar/resnet18", 77.36, REPOSITORY + " (plain 75.87)", "cifar100"),
        PublishedFigure("cifar100", "", "cifar/shufflenet-v2", 72.09, REPOSITORY + " (plain 70.34)", None),
        PublishedFigure(
            "cifar100", "cifar/resnet18", "cifar/resnet18", 77.10,
            REPOSITORY + ", teacher: self with alpha 0.95, temperature 6, multiplier 50 (plain 75.87)", None,
        ),
    )  # fmt: skip

    class Config(Section):
        """The authors' values for ResNet-18, with a multiplier that fits any number of classes.

        auto is the published value of the chosen teacher.
        """

        teacher: Literal["virtual", "self"] = "virtual"
        """virtual: a designed distribution. self: a trained network of the student's architecture, the
        recipe's teacher."""
        alpha: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"
        """Share of the distillation term. auto: 0.1, or 0.95 with `teacher: self`."""
        temperature: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
        """Divides v, or with `teacher: self` the logits of both networks. auto: 20, or 6 with
        `teacher: self`."""
        multiplier: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
        """Factor on the term. auto: the number of classes, so that the mean over classes becomes a sum, or
        half of it with `teacher: self`; 100 and 50 for the 100 classes of CIFAR-100, as published."""
        correct: float = Field(0.99, gt=0, lt=1)
        """v of the label's class; the other classes share the rest."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        teacher = networks.teacher
        if teacher is not None and teacher.model != networks.student.model:
            raise NetworkError(
                f"method tfkd: with teacher: self the teacher is an earlier training of the student, "
                f"{networks.student.model}, and not {teacher.model}; set teacher.model, or use the method kd"
            )

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires labels, and a teacher with `teacher: self`."""
        return Needs(teacher=config.teacher == "self")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the terms ce and distill."""
        if self.config.teacher == "self":
            student, teacher = self.both_logits(batch)
            return self.terms(student, batch.labels, teacher)
        logits = self.networks.student(batch.images).logits
        assert logits is not None
        return self.terms(logits, batch.labels, None)

    def terms(self, logits_BK: Tensor, labels_B: Tensor, teacher_BK: Tensor | None) -> dict[str, Tensor]:
        """Computes the weighted terms.

        Args:
            logits_BK: `[B, K]`.
            labels_B: `[B]` int64.
            teacher_BK: `[B, K]` logits of the trained network, without gradient; None: the virtual teacher.
        """
        c, classes = self.config, logits_BK.shape[1]
        published = PUBLISHED[c.teacher]
        alpha = published.alpha if c.alpha == "auto" else c.alpha
        temperature = published.temperature if c.temperature == "auto" else c.temperature
        # losses.kl sums over classes; the published term is a mean over them.
        scale = published.multiplier_per_class if c.multiplier == "auto" else c.multiplier / classes
        if teacher_BK is None:
            designed_BK = losses.designed_labels(labels_B, classes, c.correct, logits_BK.dtype)
            divergence = losses.kl(logits_BK, designed_BK / temperature, 1.0)
        else:
            divergence = losses.kl(logits_BK, teacher_BK, temperature)
        ce = self.cross_entropy(logits_BK, labels_B)
        return {"ce": (1 - alpha) * ce, "distill": alpha * scale * divergence}
