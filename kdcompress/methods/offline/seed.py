"""SEED (Fang et al., ICLR 2021): imitates the teacher's similarities to a queue of image embeddings."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.methods import losses
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100
from kdcompress.methods.queue import check_whole_batches, replace_oldest
from kdcompress.methods.soft_labels import BackboneMethod
from kdcompress.networks.networks import Networks


class SEED(BackboneMethod):
    """weight · cross-entropy between both networks' softmaxed similarities to a queue of teacher embeddings.

    Needs no labels; the teacher may be one that learnt without any. Each network's embedding of an image is
    compared with the teacher's of the same image and with those that it gave to the images of earlier
    batches; the student learns the teacher's distribution over them. After the step the queue takes in the
    teacher's embeddings of this batch, of all processes, in place of its oldest. ce_weight and kd_weight
    train a classifier beside.

    The student embeds through a head of two layers (D → D → E with a ReLU between, as in MoCo v2), which is
    thrown away with the queue. The teacher's embedding is its pooled vector: a classifier has no head to
    embed through, and one drawn here and left frozen would tell nothing more. So E is that vector's width,
    where the paper's teachers bring the 128-wide head of their own training. To teach from such a head, give
    the teacher as a `python:` network without classifier that ends with it.

    Source:
        Fang et al., SEED: Self-supervised Distillation for Visual Representation, ICLR 2021, and the authors'
        code; its variant with small crops and a second queue is not here.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "No setting is published: a classifier learns beside, and the queue is shorter than an epoch, so "
            "that it never holds an earlier view of an image of the batch.",
            weight=1.0, queue=16384, teacher_temperature=0.01, student_temperature=0.2, ce_weight=1.0,
        ),
        "imagenet": Preset(
            {"weight": 1.0, "queue": 65_536, "teacher_temperature": 0.01, "student_temperature": 0.2},
            {"epochs": 200},
            {
                "name": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4,
                "schedule": "cosine", "warmup": 5.0, "lr": 0.03,
            },
            "lr is that of batches of 256; change it in proportion. A data set smaller than the queue needs "
            "a shorter one, a multiple of the batch.",
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure(
            "imagenet", "a self-supervised network", "torchvision/mobilenet_v3_large", 68.2,
            "SEED paper, ICLR 2021, linear probe, the strongest of its teachers (36.3 without one)", None,
        ),
    )  # fmt: skip

    class Config(BackboneMethod.Config):
        """The term is a mean over rows, without a factor of T²: its two temperatures differ."""

        weight: float = Field(1.0, gt=0)
        queue: int = Field(65_536, ge=1)
        """Embeddings it holds, a multiple of the batch. It takes 4 · E bytes each, in the checkpoint too:
        0.5 GB for a teacher whose pooled vector is 2,048 wide."""
        teacher_temperature: float = Field(0.01, gt=0)
        """The paper's value, as it is cited. The code's default, 1e-4, leaves all of the target to the own
        column, whose similarity is 1 and no other's more: what the teacher says of the queue is lost."""
        student_temperature: float = Field(0.2, gt=0)

    config: Config
    queue: Tensor
    pointer: Tensor

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        check_whole_batches("seed", config.queue, data.batch_size)
        student, teacher = self.widths
        self.head = nn.Sequential(nn.Linear(student, student), nn.ReLU(), nn.Linear(student, teacher))
        # Of no image: evenly spread directions, until as many batches have been seen.
        self.register_buffer("queue", losses.unit_rows(torch.randn(config.queue, teacher)).T.contiguous())
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self._unqueued: list[Tensor] = []

    def feature_terms(self, student_BD: Tensor, teacher_BE: Tensor) -> dict[str, Tensor]:
        """Computes the term similarities."""
        with self.networks.student.autocast():
            ours_BE = self.head(student_BD)
        return {"similarities": self.similarities(ours_BE, teacher_BE)}

    def similarities(self, ours_BE: Tensor, theirs_BE: Tensor) -> Tensor:
        """Computes the weighted term; `after_step` queues the teacher's embeddings.

        Args:
            ours_BE: `[B, E]` of any length.
            theirs_BE: `[B, E]` of any length, a constant.
        """
        c = self.config
        ours_BE, theirs_BE = losses.unit_rows(ours_BE), losses.unit_rows(theirs_BE)
        self._unqueued.append(theirs_BE)
        logits_BM = losses.queue_logits(ours_BE, theirs_BE, self.queue, c.student_temperature)
        target_BM = losses.queue_logits(theirs_BE, theirs_BE, self.queue, c.teacher_temperature)
        return c.weight * losses.soft_cross_entropy(logits_BM, target_BM, 1.0)

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """Replaces the queue's oldest rows by the teacher's embeddings of the step, from all processes."""
        for rows_BE in self._unqueued:
            replace_oldest(self.queue, self.pointer, self.gather(rows_BE))
        self._unqueued.clear()
