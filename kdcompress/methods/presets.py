"""Published settings and accuracies, kept beside the code of each method.

A preset sets `method.*`, `train.epochs` and `optim.*` of a recipe. The learning rate belongs to the student
and the batch size, which the recipe names: a preset sets `optim.lr` only where the method's own code differs
from the usual rate of the setting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Hyper-parameters of one method in one published setting.

    Args:
        method: Values of the recipe's `method:` section.
        train: Values of `train:`; `epochs` alone.
        optim: Values of `optim:`.
        note: Differences from the published setting, and values for other networks.
    """

    method: dict[str, Any]
    train: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class PublishedFigure:
    """Top-1 accuracy that others published for one pair of networks.

    Args:
        setting: Data set, "cifar100" or "imagenet".
        teacher: `FAMILY/NAME`; empty for a method without a teacher.
        student: `FAMILY/NAME`.
        top1: In percent, of the test set (CIFAR-100) or the validation set (ImageNet).
        source: Paper or repository, with what makes the figure incomparable.
        preset: Name of the preset with the method's values of that figure (its note names other differences);
            None if they differ or are not known.
    """

    setting: str
    teacher: str
    student: str
    top1: float
    source: str
    preset: str | None


CRD_TABLES = "CRD paper, ICLR 2020, last epoch"
LOGIT_STANDARDIZATION = "logit standardization repository, CVPR 2024"

CRD_PAIRS = (
    ("cifar/wrn-40-2", "cifar/wrn-16-2"),
    ("cifar/wrn-40-2", "cifar/wrn-40-1"),
    ("cifar/resnet56", "cifar/resnet20"),
    ("cifar/resnet110", "cifar/resnet20"),
    ("cifar/resnet110", "cifar/resnet32"),
    ("cifar/resnet32x4", "cifar/resnet8x4"),
    ("cifar/vgg13", "cifar/vgg8"),
    ("cifar/vgg13", "cifar/mobilenet-v2"),
    ("cifar/resnet50", "cifar/mobilenet-v2"),
    ("cifar/resnet50", "cifar/vgg8"),
    ("cifar/resnet32x4", "cifar/shufflenet-v1"),
    ("cifar/resnet32x4", "cifar/shufflenet-v2"),
    ("cifar/wrn-40-2", "cifar/shufflenet-v1"),
)
"""Pairs of the CRD paper's two tables, in the order of `crd_table`."""


def cifar100(
    note: str = "", *, epochs: int = 240, optim: dict[str, Any] | None = None, **method: Any
) -> Preset:
    """Returns a preset of the CRD set-up on CIFAR-100: SGD for 240 epochs, rate divided at 150, 180 and 210.

    Its batches have 64 images; its learning rate is 0.05, or 0.01 for MobileNetV2 and the ShuffleNets.
    """
    return Preset(method, {"epochs": epochs}, _sgd(5e-4, [150, 180, 210]) | (optim or {}), note)


def imagenet(
    note: str = "", *, epochs: int = 100, optim: dict[str, Any] | None = None, **method: Any
) -> Preset:
    """Returns a preset of the usual ImageNet set-up: SGD for 100 epochs, rate divided at 30, 60 and 90.

    Its batches have 256 images at a learning rate of 0.1; other batches in proportion.
    """
    return Preset(method, {"epochs": epochs}, _sgd(1e-4, [30, 60, 90]) | (optim or {}), note)


def crd_table(
    source: str, *top1: float | None, preset: str | None = "cifar100"
) -> tuple[PublishedFigure, ...]:
    """Returns one figure per pair of `CRD_PAIRS`, in their order; None where nothing is published."""
    return tuple(
        PublishedFigure("cifar100", teacher, student, value, source, preset)
        for (teacher, student), value in zip(CRD_PAIRS, top1, strict=True)
        if value is not None
    )


def resnet34_to_resnet18(top1: float, source: str, preset: str | None = "imagenet") -> PublishedFigure:
    """Returns a figure of the usual ImageNet pair (teacher 73.31, student alone 69.75)."""
    return PublishedFigure("imagenet", "torchvision/resnet34", "torchvision/resnet18", top1, source, preset)


def resnet50_to_mobilenet_v1(top1: float, source: str, preset: str | None = "imagenet") -> PublishedFigure:
    """Returns a figure of the second ImageNet pair (teacher 76.16, student alone 68.87)."""
    return PublishedFigure("imagenet", "torchvision/resnet50", "timm/mobilenetv1_100", top1, source, preset)


def _sgd(weight_decay: float, milestones: list[int]) -> dict[str, Any]:
    return {
        "name": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": weight_decay,
        "schedule": "multistep", "milestones": milestones, "warmup": 0.0,
    }  # fmt: skip
