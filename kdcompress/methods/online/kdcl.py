"""Collaborative learning (Guo et al., CVPR 2020): networks imitate one target made of all their logits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import DataError, NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Needs
from kdcompress.methods.cohort_method import CohortMethod, logits_of
from kdcompress.methods.gather import process_rank, world_size
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.short_runs import ShortRuns
from kdcompress.networks.networks import Networks
from kdcompress.networks.undisturbed import undisturbed


class KDCL(CohortMethod):
    """Minimises, for every network, ce_weight · CE(labels) + weight · KL(target ‖ network).

    The target is one set of logits per image, a constant, made of the logits of all networks. Each network
    sees its own augmentation of the image. Nothing is discarded: the best network on held-out images ships.

    general measures the networks' errors on the held-out images at the start of each epoch, in evaluation
    mode, each process its share of the batches. These images choose the best epoch as well, so that its
    held-out figures are slightly optimistic; test figures are not affected.

    Source:
        Guo et al., Online Knowledge Distillation via Collaborative Learning, CVPR 2020; no authors' code was
        released, and the formulas follow two reading notes that agree. They leave open if linear has one
        mixture for a batch or one for each image: `linear_over`. mean_logits with both weights 0.5 and
        temperature 4 is the loss of the public reproduction, which the paper does not have.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "No schedule is known: it is that of the CRD set-up. Temperature and weight are the paper's.",
            target="minlogit", temperature=2.0, weight=1.0, ce_weight=1.0, views="own",
        ),
        "imagenet": imagenet(
            "Published with batches of 2048 and synchronised batch norm. The temperature is that of "
            "CIFAR-100: one note on the paper says 4.",
            epochs=200, optim={"milestones": [60, 120, 180], "nesterov": True, "warmup": 5.0},
            target="minlogit", temperature=2.0, weight=1.0, ce_weight=1.0, views="own",
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure("cifar100", "", "cifar/resnet32", 73.76, "PCL paper's table", None),
        PublishedFigure("cifar100", "", "cifar/resnet110", 78.28, "PCL paper's table", None),
        PublishedFigure(
            "imagenet", "", "torchvision/resnet50", 78.2, "KDCL paper's abstract, with a MobileNetV2", None
        ),
        PublishedFigure(
            "imagenet", "", "torchvision/mobilenet_v2", 74.0, "KDCL paper's abstract, with a ResNet-50", None
        ),
        PublishedFigure(
            "imagenet", "", "torchvision/resnet18", 73.1, "note on the KDCL paper, with a ResNet-50", None
        ),
    )  # fmt: skip

    class Config(ShortRuns):
        """The paper's values; where they are open, the cheapest target."""

        peers: int = Field(1, ge=1, le=7)
        """Number of networks beside the student, as many as the recipe's `peers:`."""
        target: Literal["naive", "linear", "minlogit", "general", "mean_logits"] = "minlogit"
        """naive: for each image, the logits of the network with the lowest cross-entropy. linear: the convex
        mixture of logits with the lowest cross-entropy. minlogit: the smallest logit of each class, relative
        to the true one. general: a mixture by the errors on held-out images. mean_logits: their mean."""
        linear_over: Literal["batch", "image"] = "batch"
        """One mixture for the batch of all processes, or one for each image; linear only."""
        ridge: float = Field(0.01, ge=0)
        """Share of the mean squared error added to the networks' own ones, so that nearly equal networks get
        nearly equal weights; general only. 0: the paper's formula."""
        temperature: float = Field(2.0, gt=0)
        """Of the divergence, which has the factor T²."""
        weight: float = Field(1.0, ge=0)
        """Weight of the divergence; stable from 0.2 to 5 according to the paper."""
        ramp_share: float = Field(0.0, ge=0, le=1)
        """Share of the run's epochs over which the weight grows; 0: no ramp, as published."""
        ramp_epochs: float | None = Field(None, ge=0)
        """Epochs over which the weight grows; replaces ramp_share."""
        ce_weight: float = Field(1.0, ge=0)
        """Weight of the cross-entropy; 0.5 in the public reproduction."""
        views: Literal["own", "shared"] = "own"
        """own: each network sees its own augmentation of an image. shared: all see the same."""

        @model_validator(mode="after")
        def _nothing_unread(self) -> KDCL.Config:
            if self.target != "linear" and self.linear_over != "batch":
                raise ValueError("linear_over goes with target: linear")
            if self.target != "general" and self.ridge != 0.01:
                raise ValueError("ridge goes with target: general")
            return self

    config: Config
    weights: Tensor
    measured_epoch: Tensor

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        if len(networks.peers) != config.peers:
            raise NetworkError(
                f"method kdcl: method.peers is {config.peers}, and the recipe has {len(networks.peers)} "
                "networks under peers; give both the same number, since each network has its own augmentation"
            )
        count = 1 + config.peers
        # In the checkpoint, so that a resume within an epoch continues with the weights of its start.
        self.register_buffer("weights", torch.full((count,), 1 / count))
        self.register_buffer("measured_epoch", torch.tensor(-1))
        if config.target == "general" and not any(bool((b.labels >= 0).any()) for b in data.held_out()):
            raise DataError(
                "method kdcl: target general weighs the networks by their errors on held-out images with "
                "labels, and there are none; set data.held_out (such as 0.1), or method.target: minlogit"
            )

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires peers, and a view for each network."""
        return Needs(peers=config.peers, views=1 if config.views == "shared" else 1 + config.peers)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce and kl of the student and of each peer."""
        return self.terms(logits_of(self.read_all(batch)), batch.labels)

    def terms(self, logits: Sequence[Tensor], labels_B: Tensor) -> dict[str, Tensor]:
        """Computes the weighted terms from logits.

        Args:
            logits: `[B, K]` of every network.
            labels_B: `[B]`, none of them -1.
        """
        c = self.config
        target_BK = self.target(logits, labels_B)
        terms = {}
        for name, z in zip(self.names(), logits, strict=True):
            terms[f"ce_{name}"] = c.ce_weight * self.cross_entropy(z, labels_B)
            terms[f"kl_{name}"] = self.ramp() * c.weight * losses.kl(z, target_BK, c.temperature)
        return terms

    def target(self, logits: Sequence[Tensor], labels_B: Tensor) -> Tensor:
        """Computes the target `[B, K]`, without gradients; arguments as in `terms`."""
        c = self.config
        stacked_MBK = torch.stack([z.detach() for z in logits])
        if c.target == "naive":
            return losses.most_certain_logits(stacked_MBK, labels_B)
        if c.target == "minlogit":
            return losses.minimum_logits(stacked_MBK, labels_B)
        if c.target == "mean_logits":
            return stacked_MBK.mean(0)
        if c.target == "general":
            return torch.einsum("m,mbk->bk", self.weights.to(stacked_MBK.dtype), stacked_MBK)
        if c.linear_over == "image":
            weights_BM = losses.mixture_weights(stacked_MBK, labels_B, per_row=True)
            return torch.einsum("bm,mbk->bk", weights_BM, stacked_MBK)
        # The mixture is that of the global batch, so it takes the rows of all processes.
        rows_MBK = self.gather(stacked_MBK.transpose(0, 1)).transpose(0, 1)
        weights_M = losses.mixture_weights(rows_MBK, self.gather(labels_B))
        return torch.einsum("m,mbk->bk", weights_M, stacked_MBK)

    def on_epoch_start(self, epoch: int, epochs: int) -> None:
        """Weighs the networks by their errors on held-out images, once per epoch (general)."""
        super().on_epoch_start(epoch, epochs)
        if self.config.target != "general" or int(self.measured_epoch) == epoch:
            return
        self.weights.copy_(losses.generalization_weights(self._error_products(), self.config.ridge))
        self.measured_epoch.fill_(epoch)

    def _error_products(self) -> Tensor:
        """Computes the networks' error products `[M, M]` over the held-out images of all processes."""
        networks = (self.networks.student, *self.networks.peers)
        total = torch.zeros(self.count, self.count, dtype=torch.float64, device=self.weights.device)
        with ExitStack() as stack:
            for network in networks:
                stack.enter_context(undisturbed(network.network))
            for number, batch in enumerate(self.data.held_out()):
                if number % world_size() != process_rank():
                    continue
                logits = [network(batch.images).logits for network in networks]
                stacked_MBK = torch.stack([z for z in logits if z is not None])
                total += losses.error_products(stacked_MBK, batch.labels)
        # Summed in the order of the processes, so that all have the same bits.
        return self.gather(total[None]).sum(0)
