"""Hierarchical self-supervised augmented KD (Yang et al., IJCAI 2021): joint class and rotation labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Needs, Preparation
from kdcompress.methods.frozen import Frozen
from kdcompress.methods.hierarchy import TeacherHeads, cuttable, joint_heads
from kdcompress.methods.presets import Preset, cifar100, crd_table, imagenet, resnet34_to_resnet18
from kdcompress.methods.requirements import square_images
from kdcompress.methods.soft_labels import ClassifierConfig, SoftLabelMethod
from kdcompress.networks.activations import LOGITS, Want
from kdcompress.networks.networks import Networks
from kdcompress.networks.teacher import teacher_network


class HSAKD(SoftLabelMethod):
    """ce_weight · CE + kd_weight · KL_T + joint_weight · Σ_stages KL_T(joint classes), of all four turns.

    Every image is turned by 0, 90, 180 and 270 degrees, so both networks see 4·B images a step. CE is of the
    upright ones. Behind each stage, an auxiliary classifier (a copy of what follows the stage in its own
    network) tells 4·K joint classes, 4·y + k for class y turned k times; the student's learn from the
    teacher's of the stage that lies as far from the end. The student's are trained along and thrown away; the
    teacher's are trained before, by the preparation, and frozen.

    Source:
        Yang, An, Cai & Xu, Hierarchical Self-supervised Augmented Knowledge Distillation, IJCAI 2021; the
        authors' code, all weights 1. The teacher is one that was trained without classifiers (HSAKD in the
        paper's tables). HSAKD* has another teacher, trained together with its classifiers from scratch, and
        is not offered: that would be a training of the teacher itself.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Not comparable with the CRD paper's tables: four rotations of every image, other baselines.",
            optim={"nesterov": True}, ce_weight=1.0, kd_weight=1.0, joint_weight=1.0, temperature=3.0,
            head_epochs=100, head_lr=0.05,
        ),
        "imagenet": imagenet(
            optim={"nesterov": True}, ce_weight=1.0, kd_weight=1.0, joint_weight=1.0, temperature=3.0,
            head_epochs=100, head_lr=0.05,
        ),
    }  # fmt: skip
    FIGURES = (
        *crd_table(
            "HSAKD paper, IJCAI 2021, own teachers (79.63 for resnet32x4)",
            77.20, 77.00, 72.58, None, None, 77.26, None, None, None, None, None, 79.93, 78.51,
        ),
        resnet34_to_resnet18(72.16, "HSAKD paper, IJCAI 2021"),
    )  # fmt: skip

    class Config(ClassifierConfig):
        """The code's values for CIFAR-100. CE is a mean over the upright images, the KLs over all turns."""

        kd_weight: float = Field(1.0, ge=0)
        """Weight of the soft labels at the classifier that ships."""
        joint_weight: float = Field(1.0, gt=0)
        """Weight of each auxiliary classifier; their terms are summed, not averaged."""
        temperature: float = Field(3.0, gt=0)
        """T of all soft labels. Their terms carry the factor T²."""
        head_epochs: int = Field(100, ge=1)
        """Epochs of the training of the teacher's auxiliary classifiers, before the student's."""
        head_lr: float = Field(0.05, gt=0)
        """Learning rate of that training."""
        head_milestones: list[Annotated[float, Field(gt=0, lt=1)]] = Field([0.3, 0.6, 0.9])
        """Fractions of that training; its rate is divided by ten at each."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        square_images("hsakd", data)
        assert networks.teacher is not None
        student, teacher = networks.student, teacher_network(networks.teacher, "method hsakd")
        ours, theirs = cuttable(student, "student"), cuttable(teacher, "teacher")
        # Counted from the deepest, so that both classifiers of a pair are made of as many stages; where one
        # network has more of them than the other, its shallowest stay out.
        self.stages = {a: b for a in ours for b in theirs if ours[a] == theirs[b]}
        if not self.stages:
            raise NetworkError(
                f"method hsakd: {student.model} can be cut behind {', '.join(ours)} and {teacher.model} "
                f"behind {', '.join(theirs)}; counted from the deepest, no two of them match. Choose another "
                "teacher"
            )
        self.heads = joint_heads(student, self.stages)
        # Heads of all stages, as the preparation saved them, even if this student has no match for some.
        heads = joint_heads(teacher, theirs)
        self.teacher_heads = nn.ModuleDict({stage: Frozen(head) for stage, head in heads.items()})

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires logits and stage maps of both networks and a student that can be split."""
        want: Want = frozenset({"logits", "stages"})
        return Needs(
            teacher=True,
            labels=config.ce_weight > 0,
            unlabelled=True,
            student=want,
            read_of_teacher=want if config.kd_weight else want - LOGITS,
            cut=True,
        )

    @classmethod
    def preparations(cls, config: Config) -> tuple[Preparation, ...]:
        """Lists the training of the teacher's auxiliary classifiers."""
        heads = Preparation(
            TeacherHeads,
            TeacherHeads.Config(),
            epochs=config.head_epochs,
            lr=config.head_lr,
            milestones=tuple(config.head_milestones),
        )
        return (heads,)

    def take_prepared(self, name: str, state: dict[str, Tensor]) -> None:
        """Takes over the weights of the teacher's auxiliary classifiers."""
        self.teacher_heads.load_state_dict(state, strict=True)

    def statistics_images(self, images: Tensor) -> Tensor:
        """Returns the images in all four turns, as a step shows them."""
        return losses.four_rotations(images)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce, kd, and one for each stage of the student that has a counterpart."""
        assert self.networks.teacher is not None
        needs = self.needs(self.config)
        images = losses.four_rotations(batch.images)
        student = self.networks.student(images, needs.student)
        teacher = self.networks.teacher(images, needs.read_of_teacher)
        joint = {
            ours: (
                self.heads[ours](student.stages[ours]).logits,
                self.teacher_heads[theirs](teacher.stages[theirs]).logits,
            )
            for ours, theirs in self.stages.items()
        }
        return self.terms(student.logits, teacher.logits, joint, batch.labels)

    def terms(
        self,
        student_RK: Tensor | None,
        teacher_RK: Tensor | None,
        joint: Mapping[str, tuple[Tensor, Tensor]],
        labels_B: Tensor,
    ) -> dict[str, Tensor]:
        """Computes the weighted terms; row 4·i + k is image i turned k times.

        Args:
            student_RK: `[4·B, K]` logits.
            teacher_RK: `[4·B, K]`, a constant; not read where kd_weight is 0.
            joint: By stage the student's `[4·B, 4·K]` logits of joint classes and the teacher's, a constant.
            labels_B: `[B]`.
        """
        c = self.config
        # A turned image has no label of its own: cross-entropy passes it over.
        labels_R = labels_B.new_full((4 * len(labels_B),), -1)
        labels_R[0::4] = labels_B
        terms = self.label_terms(student_RK, teacher_RK, labels_R)
        for stage, (ours_RJ, theirs_RJ) in joint.items():
            terms[f"joint_{stage}"] = c.joint_weight * losses.kl(ours_RJ, theirs_RJ, c.temperature)
        return terms
