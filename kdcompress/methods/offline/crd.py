"""Contrastive representation distillation (Tian et al., ICLR 2020): contrasts the embeddings of images."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import DataError
from kdcompress.methods import losses
from kdcompress.methods.base import Needs
from kdcompress.methods.class_draws import ClassDraws
from kdcompress.methods.feature_kd import FeatureKD
from kdcompress.methods.presets import (
    CRD_TABLES,
    Preset,
    cifar100,
    crd_table,
    imagenet,
    resnet34_to_resnet18,
    resnet50_to_mobilenet_v1,
)
from kdcompress.methods.requirements import pooled_widths
from kdcompress.networks.activations import Activations, Want
from kdcompress.networks.networks import Networks


class CRD(FeatureKD):
    """ce_weight · CE(labels) + weight · (student's + teacher's contrastive loss) + kd_weight · KL.

    Each network's pooled vector goes through a linear map to a unit embedding. A bank per network remembers
    the embeddings of all training images. The student's embedding is contrasted with the teacher's bank, and
    the teacher's with the student's: the image itself is the positive, images of other classes are the
    negatives. Maps and banks are discarded after the training.

    Source:
        Tian, Krishnan & Isola, Contrastive Representation Distillation, ICLR 2020, and the authors' code.
        There the negatives of a row are drawn by the loader, without replacement where that is possible; here
        on the device, with replacement, from the same images. A row has no more negatives than there are
        distinct images of other classes (counted for the largest class, since all rows have as many): with
        more, the term grows and teaches nothing new. On CIFAR-100 and ImageNet the bound is above 16,384.
        Here banks, normalisation and counters are saved in the checkpoint and are equal in all processes; the
        authors' code does not save them.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            weight=0.8, negatives=16384, contrast_temperature=0.07, momentum=0.5, width=128,
            positive="exact", ce_weight=1.0, kd_weight=0.0,
        ),
        "imagenet": imagenet(
            weight=0.8, negatives=16384, contrast_temperature=0.07, momentum=0.5, width=128,
            positive="exact", ce_weight=1.0, kd_weight=0.0,
        ),
    }  # fmt: skip
    FIGURES = (
        *crd_table(
            CRD_TABLES,
            75.48, 74.14, 71.16, 71.46, 73.48, 75.51, 73.94, 69.73, 69.11, 74.30, 75.11, 75.65, 76.05,
        ),
        resnet34_to_resnet18(71.17, "CRD paper, ICLR 2020"),
        resnet34_to_resnet18(70.93, "torchdistill, own settings", None),
        resnet50_to_mobilenet_v1(71.37, "CRD paper, ICLR 2020"),
    )  # fmt: skip

    class Config(FeatureKD.Config):
        """The contrastive loss sums over the negatives and is a mean over rows, like the other terms."""

        weight: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
        """Weight of the sum of both sides: 0.8 in the published figures and the presets. At the start the
        sum is about 2 · (ln K + 1) for K negatives, 21 at 16,384 and 18 at 2,700, where cross-entropy is
        ln(classes). auto: 1 / (ln K + 1), so that the term begins at 2 and does not dominate a short
        training."""
        negatives: int = Field(16384, ge=1)
        """Images of other classes that each row is contrasted with, at most as many as there are: with n
        training images of which m are of the largest class, n - m."""
        contrast_temperature: float = Field(0.07, gt=0)
        """Inner products of embeddings are divided by it."""
        momentum: float = Field(0.5, ge=0, lt=1)
        """Share of what a bank remembered of an image in what it remembers next."""
        width: int = Field(128, ge=1)
        """Width of the embeddings. The banks take 8 · width bytes per image: 51 MB for CIFAR, 1.3 GB for
        ImageNet."""
        positive: Literal["exact", "relax"] = "exact"
        """exact: the image itself; relax: any image of its class."""
        ce_weight: float = Field(1.0, ge=0)
        """Labels are needed even at 0: negatives are images of other classes."""
        kd_weight: float = Field(1.0, ge=0)
        """Weight of the soft labels: 1 in the paper's CRD+KD, 0 in its CRD and the presets."""

    config: Config
    bank_student: Tensor
    bank_teacher: Tensor
    normalisation: Tensor

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        student, teacher = pooled_widths("crd", "embeds the pooled vectors of images", networks)
        if data.labelled_classes < 2:
            raise DataError(
                "method crd: the negatives of an image are images of other classes, and the training images "
                f"are of {data.labelled_classes}; take data of at least two classes, or another method"
            )
        self.embed_student = nn.Linear(student, config.width)
        self.embed_teacher = nn.Linear(teacher, config.width)
        # As in the code: numbers whose rows have length 1 in the mean square, not each.
        bound = (3 / config.width) ** 0.5
        for name in ("bank_student", "bank_teacher"):
            self.register_buffer(name, torch.empty(len(data.labels), config.width).uniform_(-bound, bound))
        # Of the student's and of the teacher's scores; 0 until the first batch sets them for good.
        self.register_buffer("normalisation", torch.zeros(2))
        self.draws = ClassDraws(data.labels, config.negatives, itself_too=True)
        own = config.weight
        self.weight = 1 / (math.log(self.draws.negatives) + 1) if own == "auto" else own
        self._normalised = False
        self._unremembered: list[tuple[Tensor, Tensor, Tensor]] = []

    @classmethod
    def reads(cls, config: Config) -> tuple[Want, Want]:
        """Returns the pooled vectors of both networks."""
        return frozenset({"pooled"}), frozenset({"pooled"})

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Adds labels in any case: they tell which images are negatives."""
        return replace(super().needs(config), labels=True, unlabelled=False)

    def on_epoch_start(self, epoch: int, epochs: int) -> None:
        """Reads from the state if the normalisation is set; also called first after a resume."""
        super().on_epoch_start(epoch, epochs)
        # Asked here and not at every step, which would wait for the device.
        self._normalised = bool(self.normalisation.all())

    def compare(self, ours: Activations, theirs: Activations, batch: Batch) -> dict[str, Tensor]:
        """Returns the term contrast."""
        assert ours.pooled is not None
        assert theirs.pooled is not None
        columns = self.columns(batch.indices)
        return {"contrast": self.contrast(ours.pooled, theirs.pooled, batch.indices, columns)}

    def contrast(
        self, student_BD: Tensor, teacher_BD: Tensor, indices_B: Tensor, columns_BM: Tensor
    ) -> Tensor:
        """Computes the weighted term; `after_step` stores the embeddings in the banks.

        Args:
            student_BD: `[B, D]`.
            teacher_BD: `[B, D']`.
            indices_B: `[B]` positions in the training set.
            columns_BM: `[B, 1 + K]`, as `columns` gives them.
        """
        ours_BE, theirs_BE = self.embeddings(student_BD, teacher_BD)
        self._unremembered.append((indices_B, ours_BE.detach(), theirs_BE.detach()))
        scores = self.scores(ours_BE, theirs_BE, columns_BM)
        size = len(self.bank_student)
        each = [losses.noise_contrastive(side_BM, size) for side_BM in scores]
        return self.weight * torch.stack(each).sum()

    def embeddings(self, student_BD: Tensor, teacher_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the unit embeddings `[B, E]` of both networks' pooled vectors."""
        ours, theirs = self.embed_student, self.embed_teacher
        return (
            losses.embedding(student_BD, ours.weight, ours.bias),
            losses.embedding(teacher_BD, theirs.weight, theirs.bias),
        )

    def scores(self, ours_BE: Tensor, theirs_BE: Tensor, columns_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the normalised scores `[B, 1 + K]` of the student's and of the teacher's embeddings.

        The first call sets the normalisation: the mean of the scores times the number of images.
        """
        temperature = self.config.contrast_temperature
        raw = [
            losses.bank_scores(ours_BE, self.bank_teacher, columns_BM, temperature),
            losses.bank_scores(theirs_BE, self.bank_student, columns_BM, temperature),
        ]
        if not self._normalised:
            rows_B2 = torch.stack([side_BM.detach().mean(1) for side_BM in raw], 1)
            self.normalisation.copy_(self.gather(rows_B2).mean(0) * len(self.bank_student))
            self._normalised = True
        return raw[0] / self.normalisation[0], raw[1] / self.normalisation[1]

    def columns(self, indices_B: Tensor) -> Tensor:
        """Draws the bank rows that each image is compared with: its positive, then K of other classes.

        Args:
            indices_B: `[B]` positions in the training set.

        Returns:
            `[B, 1 + K]` int64.
        """
        drawn_BM = self.draws(indices_B)
        positive = 0 if self.config.positive == "exact" else 1
        return torch.cat([drawn_BM[:, positive : positive + 1], drawn_BM[:, 2:]], 1)

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """Updates both banks with the embeddings of the step's batches, from all processes."""
        for indices_B, *embeddings in self._unremembered:
            indices_B = self.gather(indices_B)
            for bank_NE, new_BE in zip((self.bank_student, self.bank_teacher), embeddings, strict=True):
                new_BE = self.gather(new_BE)
                new_BE = torch.lerp(new_BE, bank_NE[indices_B], self.config.momentum)
                bank_NE[indices_B] = F.normalize(new_BE, dim=1)
        self._unremembered.clear()
        self.draws.advance()
