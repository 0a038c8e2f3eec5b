"""Multi-level knowledge distillation (Ding et al., 2020): aligns, correlates and contrasts features."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import DataError
from kdcompress.methods import losses
from kdcompress.methods.base import Needs
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.requirements import pooled_widths, square_images
from kdcompress.methods.soft_labels import SoftLabelMethod
from kdcompress.methods.turned import turned
from kdcompress.networks.activations import POOLED, Want
from kdcompress.networks.networks import Networks
from kdcompress.tasks import CLASSIFICATION, EMBEDDING


class MLKD(SoftLabelMethod):
    """Adds three terms between the pooled features of four rotations to CE and KD of upright images.

    Each rotation is of an augmentation of its own. Alignment of each student feature with the teacher's;
    correlation of the turned with the upright images (KL of softmaxed cosines); contrast of the rows of one
    class, of either network, with all others. Both networks see 4·B images a step. The projections, the
    teacher's too, are trained and thrown away.
    With ce_weight, kd_weight and sup_weight 0 no labels are needed and a backbone ships, the paper's
    self-supervised form.
    Not the Multi-Level Logit Distillation (CVPR 2023) that is also called MLKD.

    Source:
        Ding et al., Multi-level Knowledge Distillation, arXiv 2012.00573 (journal version: DLKD); the
        authors' code. Where the paper's wording differs, `align` and `contrast` choose.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Both networks see four rotations of every image.",
            ce_weight=1.0, corr_weight=50.0, sup_weight=1.0, align_weight=20.0, kd_weight=0.0,
        ),
        "imagenet": imagenet(
            "Both networks see four rotations of every image. The paper has 100 epochs, its code 120.",
            ce_weight=1.0, corr_weight=20.0, sup_weight=0.5, align_weight=10.0, kd_weight=0.0,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure(
            "cifar100", "cifar/resnet32x4", "cifar/shufflenet-v2", 79.54,
            "MLKD paper as quoted by a reviewer, own teacher", "cifar100",
        ),
    )  # fmt: skip

    class Config(SoftLabelMethod.Config):
        """The code's values for CIFAR-100 beside soft labels; ImageNet: corr 20, sup 0.5, align 10."""

        ce_weight: float = Field(1.0, ge=0)
        """Mean over the upright images. With kd_weight 0 too, the student is built without a classifier."""
        kd_weight: float = Field(1.0, ge=0)
        """Weight of the soft labels of the upright images; 0 in the presets, as published."""
        corr_weight: float = Field(50.0, ge=0)
        """Weight of the correlation, mean over the 3·B turned images, without a factor T²."""
        sup_weight: float = Field(1.0, ge=0)
        """Weight of the contrast, mean over all rows of both networks."""
        align_weight: float = Field(20.0, ge=0)
        """Weight of the alignment, mean over the 4·B rows."""
        corr_temperature: float = Field(0.5, gt=0)
        """Divides the cosines of the correlation."""
        sup_temperature: float = Field(0.07, gt=0)
        """Divides the cosines of the contrast."""
        embedding_width: int = Field(128, ge=1)
        """Width of the contrast's embeddings."""
        expansion: int = Field(16, ge=1)
        """The aligning layers are this many times as wide as the teacher's pooled features."""
        align: Literal["cosine", "squared"] = "cosine"
        """cosine: 2 - 2 · cos, the code. squared: the squared distance, summed over features, the paper."""
        contrast: Literal["both", "across"] = "both"
        """both: with the rows of both networks, the code. across: with the other network's alone."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        self.check_teacher_has_logits()
        square_images("mlkd", data)
        widths = pooled_widths("mlkd", "aligns the pooled features of images", networks)
        if config.sup_weight and data.labelled_classes < 2:
            raise DataError(
                "method mlkd: tells images from those of other classes, and the labelled training images are "
                f"of {data.labelled_classes}; take data of two classes or more, or set method.sup_weight to 0"
            )
        self.projections = Projections(config, *widths)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires both networks' pooled features; labels if cross-entropy or contrast has a weight."""
        both: Want = frozenset({"logits", "pooled"})
        classifier = config.ce_weight > 0 or config.kd_weight > 0
        return Needs(
            teacher=True,
            views=4,
            turned=True,
            labels=config.ce_weight > 0 or config.sup_weight > 0,
            unlabelled=True,
            student=both if classifier else POOLED,
            read_of_teacher=both if config.kd_weight > 0 else POOLED,
            task=CLASSIFICATION if classifier else EMBEDDING,
        )

    def statistics_images(self, images: Tensor) -> Tensor:
        """Returns the images in all four turns, as a step shows them."""
        return losses.four_rotations(images)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms align, corr, sup, ce and kd; a term without weight is left out."""
        assert self.networks.teacher is not None
        needs = self.needs(self.config)
        views = turned(batch)
        student = self.networks.student(views.images, needs.student)
        teacher = self.networks.teacher(views, needs.read_of_teacher)
        assert student.pooled is not None
        assert teacher.pooled is not None
        with self.networks.student.autocast():
            projected = self.projections(student.pooled, teacher.pooled)
        return self.terms(student.logits, projected, teacher.pooled, batch.labels, teacher.logits)

    def terms(
        self,
        logits_RK: Tensor | None,
        projected: Projected,
        teacher_RE: Tensor,
        labels_B: Tensor,
        teacher_RK: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Computes the weighted terms from the networks' outputs.

        Args:
            logits_RK: `[4·B, K]`, of the student; row 4·i + k is image i turned k times. None for a backbone.
            projected: Projections of the same rows.
            teacher_RE: `[4·B, E]` pooled features.
            labels_B: `[B]`.
            teacher_RK: `[4·B, K]`, the teacher's logits; not read where kd_weight is 0.
        """
        c = self.config
        terms = {}
        if projected.aligned_RE is not None:
            distance = losses.cosine_alignment if c.align == "cosine" else losses.squared_alignment
            terms["align"] = c.align_weight * distance(projected.aligned_RE, teacher_RE)
        if projected.related_RD is not None:
            turned_s, upright_s = _turned_and_upright(projected.related_RD)
            turned_t, upright_t = _turned_and_upright(teacher_RE)
            # Every turned image is compared with the upright ones of all processes.
            upright_s, upright_t = self.gather(upright_s), self.gather(upright_t)
            terms["corr"] = c.corr_weight * losses.relation_kl(
                turned_s, upright_s, turned_t, upright_t, c.corr_temperature
            )
        if projected.contrasted is not None:
            student_RM, teacher_RM = projected.contrasted
            terms["sup"] = c.sup_weight * losses.supervised_contrast(
                self.gather(student_RM),
                self.gather(teacher_RM),
                self.gather(labels_B.repeat_interleave(4)),
                c.sup_temperature,
                across=c.contrast == "across",
            )
        if logits_RK is None:
            return terms
        upright_BK = None if teacher_RK is None else teacher_RK[0::4]
        return terms | self.label_terms(logits_RK[0::4], upright_BK, labels_B)


class Projected(NamedTuple):
    """Holds the rows that the terms compare; None if a term has no weight.

    Args:
        aligned_RE: The student's rows, as wide as the teacher's.
        related_RD: The student's rows, as wide as before.
        contrasted: The student's and the teacher's rows, equally wide.
    """

    aligned_RE: Tensor | None
    related_RD: Tensor | None
    contrasted: tuple[Tensor, Tensor] | None


class Projections(nn.Module):
    """Projects pooled features for the losses; layers of terms without weight are left out.

    Args:
        config: Widths and weights.
        student: D, width of the student's pooled features.
        teacher: E, width of the teacher's.
    """

    def __init__(self, config: MLKD.Config, student: int, teacher: int) -> None:
        super().__init__()
        width = config.embedding_width
        align, corr, sup = config.align_weight > 0, config.corr_weight > 0, config.sup_weight > 0
        self.align = _two_layers(student, config.expansion * teacher, teacher) if align else None
        self.corr = _two_layers(student, student, student) if corr else None
        self.embed_student = nn.Linear(student, width) if sup else None
        self.embed_teacher = nn.Linear(teacher, width) if sup else None

    def forward(self, student_RD: Tensor, teacher_RE: Tensor) -> Projected:
        """Projects the pooled features `[R, D]` and `[R, E]`."""
        contrasted = None
        if self.embed_student is not None and self.embed_teacher is not None:
            contrasted = (self.embed_student(student_RD), self.embed_teacher(teacher_RE))
        return Projected(
            None if self.align is None else self.align(student_RD),
            None if self.corr is None else self.corr(student_RD),
            contrasted,
        )


def _two_layers(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))


def _turned_and_upright(rows_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Splits the rows into turned `[3·B, D]` and upright `[B, D]`."""
    by_image = rows_RD.reshape(-1, 4, rows_RD.shape[1])
    return by_image[:, 1:].flatten(0, 1), by_image[:, 0]
