"""MoCo v2 (He et al., CVPR 2020; Chen et al., 2020): contrasts views with a queue, without labels."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcompress.config import Section
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import UserError
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.gather import gather_rows, own_rows, world_size
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.queue import check_whole_batches, replace_oldest
from kdcompress.methods.requirements import pooled_width
from kdcompress.networks.activations import POOLED
from kdcompress.networks.networks import Networks
from kdcompress.networks.norm_groups import grouped_batch_norm
from kdcompress.networks.tapped import wide
from kdcompress.tasks import EMBEDDING

LONGEST_QUEUE = 4096
"""Longest queue by default: the authors found nothing gained beyond it on CIFAR-10."""
QUEUE_SHARE = 0.25
"""Largest share of the training images in the queue by default. The queue holds earlier keys of the image
itself too, which it must not be told apart from: of 3 % of the images at this share, of half at 1."""
MOST_GROUPS = 8
"""Groups of the published batch norms: one per GPU."""
LEAST_ROWS = 16
"""Least rows of a group by default."""


class MoCo(Method):
    """Minimises the cross-entropy of finding an image's key among those of a queue: -log softmax(q·k / T).

    The query q is the student's embedding of the first view, through a head of two layers (D → D → E, a ReLU
    between). Its key is that of the second view, from a copy of student and head whose parameters are their
    moving average; the queue has the keys of earlier batches, of all processes. All have length 1. Copy, head
    and queue are saved in the checkpoint and discarded after training; the backbone ships. The last epoch
    ships where no image has a label.

    A query must not find its key by the statistics of their common batch. So batch norm is computed in groups
    of the batch (`norm_groups`), and the keys' images are dealt out over groups and processes anew: the group
    of a query and that of its key have few images in common (B / groups², at least the image itself).

    Source:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020; Chen et al.,
        Improved Baselines with Momentum Contrastive Learning, 2020; and the authors' code for several GPUs
        and for one (CIFAR-10). There the keys are shuffled at random, here dealt out row by row; the copy
        follows before a step there, here after it, which is the same.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published for CIFAR-10, for one GPU with batches of 512 and a rate of 0.06, with a head of one "
            "layer and crops of 8 to 100 % of the area.",
            epochs=200, optim={"weight_decay": 5e-4, "schedule": "cosine", "lr": 0.06},
            temperature=0.1, queue=4096, momentum=0.99, width=128, norm_groups=8,
        ),
        "imagenet": imagenet(
            "Published with batches of 256 on eight GPUs; the rate is that of 256. The queue must be a "
            "multiple of the batch.",
            epochs=200, optim={"weight_decay": 1e-4, "schedule": "cosine", "lr": 0.03},
            temperature=0.2, queue=65_536, momentum=0.999, width=128, norm_groups=8,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure(
            "imagenet", "", "torchvision/resnet50", 67.5,
            "MoCo repository, linear probe after 200 epochs, mean of five trainings", "imagenet",
        ),
        PublishedFigure(
            "imagenet", "", "torchvision/resnet50", 71.1,
            "MoCo repository, linear probe after 800 epochs", None,
        ),
    )  # fmt: skip

    class Config(Section):
        """The defaults are the values of the authors' CIFAR-10 recipe, bounded by the data."""

        temperature: float = Field(0.1, gt=0)
        """Divides the inner products; 0.2 on ImageNet."""
        queue: int | None = Field(None, ge=1)
        """Keys in the queue, a multiple of the batch and no more than there are training images. None: as
        many as a quarter of the images, at most 4,096. Each takes 4 · width bytes, in the checkpoint too."""
        momentum: float = Field(0.99, ge=0, lt=1)
        """Share of the copy's parameters that stays at every step; 0.999 on ImageNet, where the steps are
        many."""
        width: int = Field(128, ge=1)
        """E, width of the embeddings."""
        norm_groups: int | None = Field(None, ge=1)
        """Groups of the batch of all processes in which batch norm is computed; a process has at least one.
        None: at most 8, of at least 16 images. 1 in a run of one process: the whole batch, and the loss can
        fall without anything being learnt."""

    config: Config
    queue: Tensor
    pointer: Tensor

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        pooled = pooled_width("moco", "embeds the pooled vectors of images", "student", networks.student)
        places = _queue_places(config.queue, len(data.labels), data.batch_size)
        _check_groups(config.norm_groups, data.batch_size)
        self.head = nn.Sequential(nn.Linear(pooled, pooled), nn.ReLU(), nn.Linear(pooled, config.width))
        encoder = nn.Sequential(copy.deepcopy(networks.student.network), copy.deepcopy(self.head))
        self.key_encoder = encoder.requires_grad_(False)
        # Evenly spread directions, until as many batches have been seen.
        self.register_buffer("queue", losses.unit_rows(torch.randn(places, config.width)).T.contiguous())
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self._unqueued: list[Tensor] = []

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires two strong views, no labels, and a student without a classifier."""
        return Needs(
            views=2, augment=("moco_v2", "moco_v2"), labels=False, unlabelled=True, student=POOLED,
            task=EMBEDDING,
        )  # fmt: skip

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the term contrast."""
        student, (query, key) = self.networks.student, batch.views
        groups = self.groups(len(batch))
        with grouped_batch_norm(student.network, groups):
            pooled_BD = student(query.images, POOLED).pooled
        assert pooled_BD is not None
        with student.autocast():
            queries_BE = wide(self.head(pooled_BD))
        return {"contrast": self.contrast(queries_BE, self.keys(key.images, groups))}

    def groups(self, rows: int) -> int:
        """Returns the number of groups of this process's rows, which divides them."""
        world, groups = world_size(), self.config.norm_groups
        if groups is None:
            groups = min(MOST_GROUPS, rows * world // LEAST_ROWS)
        wanted = max(1, min(groups // world, rows))
        return next(count for count in range(wanted, 0, -1) if rows % count == 0)

    @torch.no_grad()
    def keys(self, images: Tensor, groups: int) -> Tensor:
        """Computes the keys `[B, E]` of a view's images, whose rows are dealt out over all groups.

        Args:
            images: `[B, C, H, W]` of this process.
            groups: Groups in each process.
        """
        student, total = self.networks.student, groups * world_size()
        if total > 1:
            images = own_rows(deal(gather_rows(images), total))
        with student.autocast(), grouped_batch_norm(self.key_encoder, groups):
            keys_BE = wide(self.key_encoder(student.normalise(images)))
        return own_rows(collect(gather_rows(keys_BE), total)) if total > 1 else keys_BE

    def contrast(self, queries_BE: Tensor, keys_BE: Tensor) -> Tensor:
        """Computes the term; `after_step` queues the keys.

        Args:
            queries_BE: `[B, E]` of any length.
            keys_BE: `[B, E]` of any length, constants: the keys of the same images.
        """
        queries_BE, keys_BE = losses.unit_rows(queries_BE), losses.unit_rows(keys_BE)
        self._unqueued.append(keys_BE)
        logits_BM = losses.queue_logits(queries_BE, keys_BE, self.queue, self.config.temperature)
        return losses.own_column_cross_entropy(logits_BM)

    def after_step(self, batch: Batch) -> None:
        """Queues the step's keys, of all processes, and moves the copy of student and head."""
        self.enqueue()
        trained = (*self.networks.student.network.parameters(), *self.head.parameters())
        self.follow(self.key_encoder.parameters(), trained)

    @torch.no_grad()
    def enqueue(self) -> None:
        """Replaces the queue's oldest keys by those that `contrast` was given since the last call."""
        for rows_BE in self._unqueued:
            replace_oldest(self.queue, self.pointer, self.gather(rows_BE))
        self._unqueued.clear()

    @torch.no_grad()
    def follow(self, averages: Iterable[Tensor], values: Iterable[Tensor]) -> None:
        """Moves each average by 1 - momentum towards its value, in place."""
        for average, value in zip(averages, values, strict=True):
            average.lerp_(value, 1 - self.config.momentum)


def deal(rows: Tensor, groups: int) -> Tensor:
    """Orders rows so that group g has the rows g, g + groups, g + 2 · groups and so on.

    Args:
        rows: `[B, ...]`, B a multiple of `groups`.
        groups: Number of groups of equal size, one after the other in the result.
    """
    return rows.reshape(-1, groups, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)


def collect(rows: Tensor, groups: int) -> Tensor:
    """Undoes `deal`."""
    return rows.reshape(groups, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)


def _queue_places(queue: int | None, images: int, batch_size: int) -> int:
    """Returns the number of keys in the queue.

    Raises:
        UserError: The queue is longer than the training set, or not made of whole batches.
    """
    if queue is None:
        batch = batch_size or 1
        return max(1, int(min(LONGEST_QUEUE, QUEUE_SHARE * images)) // batch) * batch
    if queue > images:
        raise UserError(
            f"method moco: a queue of {queue} would hold several keys of one image, since there are {images} "
            "training images; set method.queue to a smaller multiple of the batch"
        )
    check_whole_batches("moco", queue, batch_size)
    return queue


def _check_groups(groups: int | None, batch_size: int) -> None:
    if groups is not None and batch_size and (batch_size % groups or batch_size < 2 * groups):
        raise UserError(
            f"method moco: a batch of {batch_size} images cannot be split into {groups} equal groups of at "
            "least two images; set method.norm_groups to a divisor of the batch"
        )
