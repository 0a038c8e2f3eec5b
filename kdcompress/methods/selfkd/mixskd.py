"""MixSKD (Yang et al., ECCV 2022): mixed images and interpolated outputs of plain ones teach each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, cat, nn, stack

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.fusion_method import of_one_size
from kdcompress.methods.hierarchy import cuttable
from kdcompress.methods.mixup import Mixup, interpolate, partners
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.short_runs import ShortRuns
from kdcompress.networks.exits import exit_after
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import wide
from kdcompress.networks.undisturbed import undisturbed

Sides = tuple[Tensor, Tensor]
"""Interpolated outputs of the plain images, and outputs of the mixed images."""


class MixSKD(Method):
    """CE + mixup CE + soft_weight · Σ KL_T + map_weight · Σ MSE + discriminator_weight · Σ BCE.

    A batch holds every image plain and mixed with another one, λ·x + (1−λ)·x', λ ~ Beta(a, a). Behind each
    earlier stage stands an auxiliary branch, a copy of what follows the stage. For every branch and the
    student, the interpolated outputs λ·f(x) + (1−λ)·f(x') and the outputs f(mixed) are brought together:
    maps by their squared difference and by a discriminator that tries to tell them apart, logits of the
    branches by KL_T in both directions. The student's logits learn from a self-teacher instead, a classifier
    on the concatenation of all last maps: interpolated logits from its logits of the mixed maps, and mixed
    logits from its logits of the interpolated maps. Branches, self-teacher and discriminators are discarded.

    An image is mixed with any of the global batch: with several processes, images and last maps are gathered.

    Source:
        Yang et al., MixSKD: Self-Knowledge Distillation from Mixup for Image Recognition, ECCV 2022; the
        total of the authors' ImageNet script. Their CIFAR script leaves the mixup CE out (`mixup_ce: false`),
        so that the self-teacher stays random. In both, the discriminators are never trained and the networks
        make their work easier (`discriminator: published`); the paper describes an adversarial loss, which
        is the default here. The self-teacher is one 1x1 convolution, an average and a linear layer.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published with batches of 64 images, each plain and mixed. The authors' CIFAR script lacks the "
            "mixup CE, trains no discriminator and scores the best of the four classifiers, which may be "
            "that of a branch.",
            epochs=205, optim={"lr": 0.1, "nesterov": True, "milestones": [105, 155], "warmup": 5.0},
            temperature=3.0, mix_alpha=0.4, mixup_ce=True, discriminator="adversarial",
            soft_weight=1.0, map_weight=1.0, discriminator_weight=1.0,
        ),
        "imagenet": imagenet(
            "Published with batches of 128 images, each plain and mixed. The code trains no discriminator.",
            epochs=305, optim={"schedule": "cosine", "warmup": 5.0},
            temperature=3.0, mix_alpha=0.2, mixup_ce=True, discriminator="adversarial",
            soft_weight=1.0, map_weight=1.0, discriminator_weight=1.0,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure(
            "cifar100", "", "cifar/resnet18", 80.32,
            "Self-KD-Lib README, pre-activation network, best epoch and best of four classifiers on the test "
            "set", None,
        ),
        PublishedFigure("imagenet", "", "torchvision/resnet50", 78.76, "MixSKD paper, ECCV 2022", None),
    )  # fmt: skip

    class Config(ShortRuns):
        """The code's values. CE and KL are means over rows, squared differences over all elements."""

        temperature: float = Field(3.0, gt=0)
        """T of all soft labels. Their terms carry the factor T²."""
        mix_alpha: float = Field(0.4, gt=0, le=1)
        """a of Beta(a, a), from which one λ per batch is drawn: 0.4 for CIFAR, 0.2 for ImageNet."""
        mixup_ce: bool = True
        """False leaves the labels of mixed images out, as the authors' CIFAR script does; the self-teacher
        then stays as it was drawn."""
        discriminator: Literal["adversarial", "published"] = "adversarial"
        """adversarial: discriminators learn to tell interpolated from mixed maps, and the networks learn the
        opposite. published: as the code runs, discriminators stay as they were drawn, and the networks learn
        to make the maps easy for them to tell apart."""
        soft_weight: float = Field(1.0, ge=0)
        """Weight of all soft labels."""
        map_weight: float = Field(1.0, ge=0)
        """Weight of the squared differences of the last maps."""
        discriminator_weight: float = Field(1.0, ge=0)
        """Weight of the discriminators' cross-entropies; 0: there are none."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        student = networks.student
        later = cuttable(student, "student", "mixskd")
        self.stages = [stage for stage, count in later.items() if count]
        if not self.stages:
            height, width = data.image_size
            raise NetworkError(
                "method mixskd: puts a branch behind each stage before the last, and "
                f"{student.model} has none that it can be cut behind at {height}x{width} pixels; name stages "
                "in student.taps, take larger images or choose another network"
            )
        self.mixup = Mixup(config.mix_alpha)
        self.branches = nn.ModuleList(exit_after(student, stage) for stage in self.stages)
        channels = self._channels()
        self.self_teacher = SelfTeacher(channels, student.num_classes)
        self.self_teacher.requires_grad_(config.mixup_ce)
        count = len(channels) if config.discriminator_weight else 0
        self.discriminators = nn.ModuleList(discriminator(channels[k]) for k in range(count))
        self.discriminators.requires_grad_(config.discriminator == "adversarial")

    def _channels(self) -> list[int]:
        """Measures the last maps of the branches and of the student, in this order."""
        maps = self.networks.student.dry_run(frozenset({"stages"})).stages
        channels = []
        for stage, branch in zip(self.stages, self.branches, strict=True):
            with undisturbed(branch):
                channels.append(branch(maps[stage]).stages["map"].shape[1])
        return [*channels, list(maps.values())[-1].shape[1]]

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires the student's stage maps, and a student that can be split."""
        return Needs(student=frozenset({"logits", "stages"}), cut=True)

    def statistics_images(self, images: Tensor) -> Tensor:
        """Returns the images and as many interpolated ones, as a step shows them."""
        return cat([images, self.mixup.spread(images)])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce, ce_branches, ce_mixed, mutual, self_teacher, maps and discriminator."""
        student = self.networks.student
        share, order_A = self.mixup.draw(len(batch))
        images = cat([batch.images, interpolate(batch.images, share, order_A)])
        outputs = student(images, self.needs(self.config).student)
        pairs = zip(self.stages, self.branches, strict=True)
        exits = [branch(outputs.stages[stage]) for stage, branch in pairs]
        logits = [read.logits for read in (*exits, outputs)]
        maps = [list(read.stages.values())[-1] for read in (*exits, outputs)]
        sides = [interpolated_and_mixed(map_RCHW, share, order_A) for map_RCHW in maps]
        with student.autocast():
            taught = [self.self_teacher([pair[side] for pair in sides]) for side in (0, 1)]
            scores = self.scores(sides, self.discriminators)
        labels = (batch.labels, partners(batch.labels, order_A))
        return self.terms(logits, sides, (wide(taught[0]), wide(taught[1])), scores, labels, share, order_A)

    def scores(self, maps: Sequence[Sides], discriminators: Iterable[nn.Module]) -> list[Sides]:
        """Runs each discriminator on the pooled maps of its branch, which learn against it if adversarial.

        Returns:
            Its logits `[B, 2]` of the interpolated and of the mixed maps; empty if there are no
            discriminators.
        """
        if not self.config.discriminator_weight:
            return []
        scores = []
        for judge, pair in zip(discriminators, maps, strict=True):
            pooled_RD = cat(pair).mean((2, 3))
            if self.config.discriminator == "adversarial":
                pooled_RD = losses.reverse_gradient(pooled_RD)
            interpolated_B2, mixed_B2 = judge(pooled_RD).chunk(2)
            scores.append((interpolated_B2, mixed_B2))
        return scores

    def terms(
        self,
        logits: Sequence[Tensor],
        maps: Sequence[Sides],
        self_teacher: Sides,
        scores: Sequence[Sides],
        labels: tuple[Tensor, Tensor],
        share: Tensor | float,
        order_A: Tensor,
    ) -> dict[str, Tensor]:
        """Computes the weighted terms.

        Args:
            logits: `[2·B, K]` of every branch, shallow to deep, then of the student; plain images first.
            maps: `[B, C, H, W]` of the same.
            self_teacher: `[B, K]` logits of the interpolated and of the mixed maps.
            scores: `[B, 2]` of the discriminators; empty where their weight is 0.
            labels: `[B]` of the images, and of those that they are mixed with.
            share: λ.
            order_A: `[A]`, by which the rows of all processes are mixed.
        """
        c, rows = self.config, len(labels[0])
        plain = [self.cross_entropy(z[:rows], labels[0]) for z in logits]
        terms = {"ce": plain[-1], "ce_branches": _sum(plain[:-1])}
        *branches, own = [interpolated_and_mixed(z, share, order_A) for z in logits]
        if c.mixup_ce:
            mixed = [pair[1] for pair in (*branches, own)]
            terms["ce_mixed"] = _sum(
                share * self.cross_entropy(z, labels[0]) + (1 - share) * self.cross_entropy(z, labels[1])
                for z in (*mixed, *self_teacher)
            )
        factor = self.short_run_factor()
        if c.soft_weight:
            mutual = _sum(self._soft(one, other) + self._soft(other, one) for one, other in branches)
            imitation = self._soft(own[0], self_teacher[1]) + self._soft(own[1], self_teacher[0])
            terms["mutual"] = factor * c.soft_weight * mutual
            terms["self_teacher"] = factor * c.soft_weight * imitation
        if c.map_weight:
            terms["maps"] = factor * c.map_weight * _sum(losses.mse(one, other) for one, other in maps)
        if c.discriminator_weight:
            separation = _sum(losses.side_cross_entropy(*pair) for pair in scores)
            terms["discriminator"] = factor * c.discriminator_weight * separation
        return terms

    def _soft(self, learner_BK: Tensor, target_BK: Tensor) -> Tensor:
        return losses.kl(learner_BK, target_BK.detach(), self.config.temperature)


class SelfTeacher(nn.Module):
    """Classifies the concatenation of several maps: 1x1 convolution, average, linear layer.

    Args:
        channels: Of each map; the convolution gives as many as the last one has.
        num_classes: K.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(sum(channels), channels[-1], 1, bias=False)
        self.classifier = nn.Linear(channels[-1], num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Computes logits `[B, K]` of maps `[B, C, H, W]`; larger ones are averaged to the smallest size."""
        logits_BK: Tensor = self.classifier(self.mix(cat(of_one_size(maps), 1)).mean((2, 3)))
        return logits_BK


def discriminator(channels: int, hidden: int = 128) -> nn.Module:
    """Builds a discriminator of pooled maps `[B, channels]`, which gives two logits."""
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 2))


def interpolated_and_mixed(rows_R: Tensor, share: Tensor | float, order_A: Tensor) -> Sides:
    """Interpolates the first half of the rows, those of plain images.

    Args:
        rows_R: `[2·B, ...]`, those of the mixed images last.
        share: λ.
        order_A: `[A]`, by which the rows of all processes are mixed.

    Returns:
        Interpolated and mixed rows, both `[B, ...]`.
    """
    plain_B, mixed_B = rows_R.chunk(2)
    return interpolate(plain_B, share, order_A), mixed_B


def _sum(terms: object) -> Tensor:
    return stack(list(terms)).sum()  # type: ignore[call-overload]
