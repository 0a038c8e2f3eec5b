"""Self-supervision KD (Xu et al., ECCV 2020): imitates similarities of rotated and upright images."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from kdcompress.config import Section
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.methods import losses
from kdcompress.methods.base import Candidate, Method, Needs, ParameterSet, Preparation
from kdcompress.methods.frozen import Frozen
from kdcompress.methods.presets import Preset, cifar100, crd_table, imagenet, resnet34_to_resnet18
from kdcompress.methods.requirements import pooled_width, pooled_widths, square_images
from kdcompress.methods.soft_labels import SoftLabelMethod
from kdcompress.methods.turned import turned
from kdcompress.networks.activations import POOLED
from kdcompress.networks.networks import Networks

VIEWS = 4
"""Views per image: turned by 0 to 3 quarters, each cropped and flipped on its own."""
READS = "projects the pooled features of images"


class SSKD(SoftLabelMethod):
    """Adds soft labels and similarities of rotated images to CE and soft labels of the upright ones.

    Each network's pooled features go through a projection head. The cosines between the projections of
    turned and of upright images are softmaxed; the student imitates the teacher's, except those in which the
    teacher errs most. The student's head is trained with it and discarded; the teacher's is trained before,
    on the frozen teacher (`Pretext`). Both networks see
    4·B images a step.

    Source:
        Xu, Liu, Li & Loy, Knowledge Distillation Meets Self-Supervision, ECCV 2020, and the authors' code,
        whose only transformation is the rotation. Equal ranks at the cut: the earlier rows are kept, which
        the code leaves open. With several processes, the images of all of them are told apart.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Both networks see four rotations of every image; not comparable with the CRD paper's tables.",
            ce_weight=0.1, kd_weight=0.9, tf_weight=2.7, ss_weight=10.0, head_epochs=60, head_lr=0.05,
        ),
        "imagenet": imagenet(
            "No setting is published: the values are those of CIFAR-100.",
            ce_weight=0.1, kd_weight=0.9, tf_weight=2.7, ss_weight=10.0, head_epochs=60, head_lr=0.05,
        ),
    }  # fmt: skip
    FIGURES = (
        *crd_table(
            "SSKD paper, ECCV 2020, own teachers (79.63 for resnet32x4)",
            76.04, 76.13, 71.49, None, None, 76.20, 75.33, 71.53, 72.57, 75.76, 78.44, 78.61, 77.40,
        ),
        resnet34_to_resnet18(71.62, "derived from the HSAKD paper, IJCAI 2021", None),
        resnet34_to_resnet18(70.09, "torchdistill, own settings", None),
    )  # fmt: skip

    class Config(SoftLabelMethod.Config):
        """Every term is a mean over rows; ss and the soft labels carry the factor of their T²."""

        ce_weight: float = Field(0.1, ge=0)
        """Weight of the B upright images. 0 needs no labels where tf_ratio is 1."""
        kd_weight: float = Field(0.9, ge=0)
        """Weight of the soft labels of the B upright images."""
        tf_weight: float = Field(2.7, ge=0)
        """Weight of the soft labels of the 3·B turned images, mean over the kept ones."""
        tf_temperature: float = Field(4.0, gt=0)
        """Divides the logits of the turned images."""
        tf_ratio: float = Field(1.0, ge=0, le=1)
        """Share kept of the turned images that the teacher classifies wrong, the least wrong of them. Those
        classified right are all kept, and those without a label, of which no error is known."""
        ss_weight: float = Field(10.0, gt=0)
        """Weight of the similarities of the 3·B turned to the upright images, mean over the kept ones."""
        ss_temperature: float = Field(0.5, gt=0)
        """Divides the cosines."""
        ss_ratio: float = Field(0.75, ge=0, le=1)
        """Share kept of the turned images that the teacher takes for another one, the least wrong of them."""
        head_epochs: int = Field(60, ge=1)
        """Epochs of the training of the teacher's projection head."""
        head_lr: float = Field(0.05, gt=0)
        """Its learning rate."""
        head_milestones: list[Annotated[float, Field(gt=0, lt=1)]] = Field([30 / 60, 45 / 60])
        """Fractions of that training after which the rate is divided by ten."""

        @model_validator(mode="after")
        def _classifier_learns(self) -> Self:
            if not self.ce_weight and not self.kd_weight and not self.tf_weight:
                raise ValueError(
                    "nothing trains the classifier where ce_weight, kd_weight and tf_weight are all 0"
                )
            return self

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        square_images("sskd", data)
        student, teacher = pooled_widths("sskd", READS, networks)
        self.head_student = _head(student)
        # `take_prepared` loads the head that `Pretext` trained.
        self.head_teacher = Frozen(_head(teacher))

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires both networks' pooled features; labels for cross-entropy and for ranking turned images."""
        soft_labels = config.kd_weight > 0 or config.tf_weight > 0
        return Needs(
            teacher=True,
            views=VIEWS,
            turned=True,
            labels=config.ce_weight > 0 or (config.tf_weight > 0 and config.tf_ratio < 1),
            unlabelled=True,
            student=frozenset({"logits", "pooled"}),
            read_of_teacher=frozenset({"logits", "pooled"} if soft_labels else {"pooled"}),
        )

    @classmethod
    def preparations(cls, config: Config) -> tuple[Preparation, ...]:
        """Lists the training of the teacher's projection head."""
        milestones = tuple(config.head_milestones)
        c = config
        return (Preparation(cls.Pretext, cls.Pretext.Config(), c.head_epochs, c.head_lr, milestones),)

    def take_prepared(self, name: str, state: dict[str, Tensor]) -> None:
        """Takes over the teacher's projection head."""
        self.head_teacher.load_state_dict(state, strict=True)

    def statistics_images(self, images: Tensor) -> Tensor:
        """Returns the images in all four turns, as a step shows them."""
        return losses.four_rotations(images)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ss, tf, ce and kd; a term without weight is left out."""
        assert self.networks.teacher is not None
        needs = self.needs(self.config)
        views = turned(batch)
        student = self.networks.student(views.images, needs.student)
        teacher = self.networks.teacher(views, needs.read_of_teacher)
        assert student.logits is not None
        with self.networks.student.autocast():
            projected = self.head_student(student.pooled)
        teacher_projected = self.head_teacher(teacher.pooled)
        return self.terms(student.logits, teacher.logits, projected, teacher_projected, batch.labels)

    def terms(
        self,
        student_RK: Tensor,
        teacher_RK: Tensor | None,
        projected_RD: Tensor,
        taught_RE: Tensor,
        labels_B: Tensor,
    ) -> dict[str, Tensor]:
        """Computes the weighted terms from the networks' outputs.

        Args:
            student_RK: `[4·B, K]` logits; row 4·i + k is image i turned k times.
            teacher_RK: `[4·B, K]` logits; None if kd_weight and tf_weight are 0.
            projected_RD: `[4·B, D]` outputs of the student's head.
            taught_RE: `[4·B, E]`, of the teacher's.
            labels_B: `[B]`.
        """
        c = self.config
        # Images of all processes are compared, and the least wrong of all are selected.
        ours_AB = losses.turned_cosines(self.gather(projected_RD))
        theirs_AB = losses.turned_cosines(self.gather(taught_RE))
        kept_A = losses.top_ratio_correct(losses.rank_of(theirs_AB, losses.own_images(theirs_AB)), c.ss_ratio)
        terms = {"ss": c.ss_weight * losses.masked_kl(ours_AB, theirs_AB, kept_A, c.ss_temperature)}
        if c.tf_weight:
            assert teacher_RK is not None
            ours_AK, theirs_AK = losses.rotation_rows(student_RK), losses.rotation_rows(teacher_RK)
            labels_A = labels_B.repeat_interleave(VIEWS - 1)
            if c.tf_ratio < 1:  # a mean over all rows needs no rows of other processes
                ours_AK, theirs_AK = self.gather(ours_AK), self.gather(theirs_AK)
                labels_A = self.gather(labels_A)
            kept_A = losses.top_ratio_correct(losses.rank_of(theirs_AK, labels_A), c.tf_ratio)
            terms["tf"] = c.tf_weight * losses.masked_kl(ours_AK, theirs_AK, kept_A, c.tf_temperature)
        upright_BK = None if teacher_RK is None else teacher_RK[0::VIEWS]
        return terms | self.label_terms(student_RK[0::VIEWS], upright_BK, labels_B)

    class Pretext(Method):
        """Trains the teacher's head to find a rotated image's upright version by cosine.

        Nested, since a method's file defines one method. The head runs in the precision of the teacher's
        features, float32, here and beside the student.

        Source:
            Xu et al. 2020; the authors' code, which divides the cosines by no temperature.
        """

        class Config(Section):
            """No options."""

        config: Config

        def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
            super().__init__(config, networks, data)
            square_images("sskd", data)
            assert networks.teacher is not None
            self.head = _head(pooled_width("sskd", READS, "teacher", networks.teacher))

        @classmethod
        def needs(cls, config: Config) -> Needs:
            """Requires the teacher's pooled features and no labels."""
            return Needs(
                teacher=True,
                views=VIEWS,
                turned=True,
                labels=False,
                unlabelled=True,
                read_of_teacher=POOLED,
            )

        def parameter_sets(self) -> dict[str, ParameterSet]:
            """Trains the head alone."""
            return {"head": ParameterSet(tuple(self.head.parameters()))}

        def candidates(self) -> dict[str, Candidate]:
            """Returns the head, which `SSKD.take_prepared` loads."""
            assert self.networks.teacher is not None
            return {"head": Candidate(self.networks.student, self.head.state_dict, self.head)}

        def losses(self, batch: Batch) -> dict[str, Tensor]:
            """Computes the term pretext."""
            assert self.networks.teacher is not None
            return self.terms(self.head(self.networks.teacher(turned(batch), POOLED).pooled))

        def terms(self, projected_RE: Tensor) -> dict[str, Tensor]:
            """Computes the term from projections `[4·B, E]`, gathered from all processes."""
            return {"pretext": losses.own_image_cross_entropy(self.gather(projected_RE))}


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
