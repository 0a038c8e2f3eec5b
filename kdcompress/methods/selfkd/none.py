"""Plain training on the labels, without distillation: the baseline, and how a teacher is trained."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kdcompress.config import Section
from kdcompress.data.batch import Batch
from kdcompress.methods.base import Method, Needs, ParameterSet, Phase
from kdcompress.methods.presets import CRD_TABLES, Preset, PublishedFigure, cifar100, imagenet


class Plain(Method):
    """Minimises CE(labels); with `classifier_first`, in the usual two steps of fine-tuning.

    While only the classifier is trained, the batch-norm statistics are fixed: features that no loss corrects
    must not drift.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {"cifar100": cifar100(), "imagenet": imagenet()}  # fmt: skip
    FIGURES = (
        *(
            PublishedFigure("cifar100", "", student, top1, CRD_TABLES, "cifar100")
            for student, top1 in (
                ("cifar/wrn-16-2", 73.26),
                ("cifar/wrn-40-1", 71.98),
                ("cifar/wrn-40-2", 75.61),
                ("cifar/resnet20", 69.06),
                ("cifar/resnet32", 71.14),
                ("cifar/resnet56", 72.34),
                ("cifar/resnet110", 74.31),
                ("cifar/resnet8x4", 72.50),
                ("cifar/resnet32x4", 79.42),
                ("cifar/resnet50", 79.34),
                ("cifar/vgg8", 70.36),
                ("cifar/vgg13", 74.64),
                ("cifar/mobilenet-v2", 64.60),
                ("cifar/shufflenet-v1", 70.50),
                ("cifar/shufflenet-v2", 71.82),
            )
        ),
        PublishedFigure("imagenet", "", "torchvision/resnet18", 69.75, "CRD paper, ICLR 2020", "imagenet"),
        PublishedFigure("imagenet", "", "torchvision/resnet34", 73.31, "CRD paper, ICLR 2020", "imagenet"),
    )  # fmt: skip

    class Config(Section):
        """Enables fine-tuning in two steps."""

        classifier_first: float = Field(0.0, ge=0, lt=1)
        """Share of the epochs in which only the classifier is trained."""

    config: Config

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires labels."""
        return Needs()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the term ce."""
        logits = self.networks.student(batch.images).logits
        assert logits is not None
        return {"ce": self.cross_entropy(logits, batch.labels)}

    def parameter_sets(self) -> dict[str, ParameterSet]:
        """Names main, or classifier and backbone if the classifier is trained first."""
        if not self.config.classifier_first:
            return super().parameter_sets()
        student = self.networks.student
        head = {id(p) for p in student.classifier.parameters()}
        parameters = list(student.network.parameters())
        return {
            "classifier": ParameterSet(tuple(p for p in parameters if id(p) in head)),
            "backbone": ParameterSet(tuple(p for p in parameters if id(p) not in head)),
        }

    def phases(self) -> list[Phase]:
        """Lists one phase, or the phases classifier and all."""
        share = self.config.classifier_first
        if not share:
            return super().phases()
        return [
            Phase("classifier", share, ("classifier",), freeze_bn=True),
            Phase("all", 1 - share, ("classifier", "backbone")),
        ]
