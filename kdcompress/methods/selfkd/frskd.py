"""FRSKD (Ji et al., CVPR 2021): a feature pyramid refines the network's maps and teaches it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.short_runs import ShortRuns
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import wide


class FRSKD(Method):
    """CE(z) + CE(z_T) + soft_weight · KL_T(z ← z_T) + attention_weight · Σ_stages AT(F ← R).

    A self-teacher, a feature pyramid on the network's stage maps F, gives refined maps R of the same sizes
    and the logits z_T of its own classifier on the deepest refined map. It learns from the labels alone, and
    that gradient also reaches the network through the maps. The network learns from its logits (KL_T with
    the factor T²) and from the attention of its maps (AT, as in attention transfer). Pyramid and classifier
    are discarded.

    Source:
        Ji et al., Refine Myself by Teaching Myself: Feature Refinement via Self-Knowledge Distillation,
        CVPR 2021; the form with attention of the authors' code. The layers of the pyramid are written from
        the description: those between the blocks may differ from the code.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published with batches of 128 images.",
            epochs=200, optim={"lr": 0.1, "weight_decay": 1e-4, "milestones": [100, 150]},
            temperature=4.0, soft_weight=2.0, attention_weight=100.0, width=2, depth=2,
        ),
        "imagenet": imagenet(
            "No setting is published: the values are those of CIFAR-100.",
            temperature=4.0, soft_weight=2.0, attention_weight=100.0, width=2, depth=2,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure(
            "cifar100", "", "cifar/resnet18", 76.60,
            "Self-KD-Lib README, pre-activation network, best epoch on the test set", None,
        ),
    )  # fmt: skip

    class Config(ShortRuns):
        """The authors' values for CIFAR-100. All terms are means over rows."""

        temperature: float = Field(4.0, gt=0)
        """T of the soft labels. Their term carries the factor T²."""
        soft_weight: float = Field(2.0, ge=0)
        """α, weight of the soft labels."""
        attention_weight: float = Field(100.0, ge=0)
        """β, weight of the stages' attention; each stage's term is a mean over positions, and they are
        summed."""
        width: int = Field(2, ge=1)
        """Channels of a refined map, as a multiple of the stage's."""
        depth: int = Field(2, ge=1)
        """Depthwise-separable convolutions in each block of the pyramid."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        student = networks.student
        channels = [m.shape[1] for m in student.shapes().stages.values()]
        if len(channels) < 2:
            height, width = data.image_size
            raise NetworkError(
                "method frskd: refines the map of each stage with those of the others, so it needs two "
                f"stages or more; {student.model} has {len(channels)} at {height}x{width} pixels; name them "
                "in student.taps or take larger images"
            )
        self.self_teacher = FeaturePyramid(channels, data.num_classes, config.width, config.depth)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires the student's stage maps."""
        return Needs(student=frozenset({"logits", "stages"}))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce, ce_self_teacher, soft and attention."""
        student = self.networks.student
        outputs = student(batch.images, self.needs(self.config).student)
        assert outputs.logits is not None
        maps = list(outputs.stages.values())
        with student.autocast():
            taught_BK, refined = self.self_teacher(maps)
        return self.terms(
            outputs.logits, wide(taught_BK), maps, [wide(map_BCHW) for map_BCHW in refined], batch.labels
        )

    def terms(
        self,
        logits_BK: Tensor,
        taught_BK: Tensor,
        maps: Sequence[Tensor],
        refined: Sequence[Tensor],
        labels_B: Tensor,
    ) -> dict[str, Tensor]:
        """Computes the weighted terms.

        Args:
            logits_BK: `[B, K]` of the network.
            taught_BK: `[B, K]` of the self-teacher.
            maps: `[B, C, H, W]` of each stage.
            refined: `[B, C', H, W]` of each stage.
            labels_B: `[B]`.
        """
        c = self.config
        terms = {
            "ce": self.cross_entropy(logits_BK, labels_B),
            "ce_self_teacher": self.cross_entropy(taught_BK, labels_B),
        }
        share = self.short_run_factor()
        if c.soft_weight:
            terms["soft"] = share * c.soft_weight * losses.kl(logits_BK, taught_BK.detach(), c.temperature)
        if c.attention_weight:
            each = [losses.attention_transfer(f, r.detach()) for f, r in zip(maps, refined, strict=True)]
            terms["attention"] = share * c.attention_weight * torch.stack(each).sum()
        return terms


class FeaturePyramid(nn.Module):
    """Refines stage maps from deep to shallow and back (BiFPN), and classifies the deepest refined map.

    A 1x1 convolution first gives each stage's map the channels of its refined map. The first pass, from deep
    to shallow, fuses each such map with the next deeper result. The second pass, from shallow to deep, fuses
    it with the stage's result of the first pass and the next shallower result of the second. A fusion is a
    weighted mean with learnt weights, followed by a block of depthwise-separable convolutions. Between
    stages, 1x1 convolutions change the channels, and a map of any size is brought to that of the other stage.

    Args:
        channels: Of each stage, shallow to deep; at least two.
        num_classes: K.
        width: Channels of a refined map, as a multiple of the stage's.
        depth: Convolutions in a block.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, width: int = 2, depth: int = 2) -> None:
        super().__init__()
        wider = [width * c for c in channels]
        pairs = list(itertools.pairwise(wider))
        self.lateral = nn.ModuleList(_pointwise(*pair) for pair in zip(channels, wider, strict=True))
        self.from_deeper = nn.ModuleList(_pointwise(deep, shallow) for shallow, deep in pairs)
        self.first_pass = nn.ModuleList(WeightedFusion(2, c, depth) for c in wider[:-1])
        self.from_shallower = nn.ModuleList(_pointwise(shallow, deep) for shallow, deep in pairs)
        # The deepest stage has no result of the first pass.
        inputs = [3] * (len(pairs) - 1) + [2]
        self.second_pass = nn.ModuleList(
            WeightedFusion(n, c, depth) for n, c in zip(inputs, wider[1:], strict=True)
        )
        self.classifier = nn.Linear(wider[-1], num_classes)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Maps `[B, C, H, W]` of each stage to logits `[B, K]` and refined maps, which are not negative."""
        lateral = [convolve(map_BCHW) for convolve, map_BCHW in zip(self.lateral, maps, strict=True)]
        deepest = len(lateral) - 1
        first = [lateral[deepest]]
        for stage in reversed(range(deepest)):
            deeper = resized(self.from_deeper[stage](first[0]), lateral[stage])
            first.insert(0, self.first_pass[stage]([lateral[stage], deeper]))
        refined = [first[0]]
        for stage in range(1, deepest + 1):
            shallower = resized(self.from_shallower[stage - 1](refined[-1]), lateral[stage])
            own = [lateral[stage]] if stage == deepest else [lateral[stage], first[stage]]
            refined.append(self.second_pass[stage - 1]([*own, shallower]))
        logits_BK: Tensor = self.classifier(refined[-1].mean((2, 3)))
        return logits_BK, refined


class WeightedFusion(nn.Module):
    """Computes a weighted mean of maps and runs a block of depthwise-separable convolutions on it.

    Args:
        inputs: Number of maps.
        channels: Of each of them and of the result.
        depth: Number of convolutions.
    """

    def __init__(self, inputs: int, channels: int, depth: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.block = nn.Sequential(*(layer for _ in range(depth) for layer in _separable(channels)))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuses maps `[B, C, H, W]` of one shape."""
        weights = self.weights.relu()
        weights = weights / (weights.sum() + 1e-6)
        fused = sum(weight * map_BCHW for weight, map_BCHW in zip(weights.unbind(), maps, strict=True))
        refined: Tensor = self.block(fused)
        return refined


def resized(map_BCHW: Tensor, like: Tensor) -> Tensor:
    """Brings a map to the size of another one.

    A longer side is halved by the maximum of three positions; what then still differs in size takes the
    nearest positions, so that a shorter side repeats them.
    """
    size = like.shape[2:]
    stride = [2 if side > other else 1 for side, other in zip(map_BCHW.shape[2:], size, strict=True)]
    if 2 in stride:
        map_BCHW = F.max_pool2d(map_BCHW, 3, stride=stride, padding=1)
    return map_BCHW if map_BCHW.shape[2:] == size else F.interpolate(map_BCHW, size=size, mode="nearest")


def _pointwise(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))


def _separable(channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]
