"""Be your own teacher (Zhang et al., ICCV 2019): heads on shallow stages learn from the deepest one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcompress.config import Section
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import wide


class BYOT(Method):
    """Adds a CE, a soft-label and a feature-hint term for a head on each shallower stage.

    With heads counted from the deepest (0) to the shallowest, the total is
    CE₀ + Σ_{i≥1} [(1−α)·CEᵢ + α·SCE_T(zᵢ ← z₀)] + λ·Σ_{i≥2} ‖Aᵢfᵢ − f₀‖, as in the authors' journal code: the
    soft term is a cross-entropy without T², the hint an unsquared norm over the batch, and the head next to
    the deepest has no hint. Attention gates, heads and linear maps A are discarded; the plain student ships.

    Source:
        Zhang, Bao & Ma, Self-Distillation: Towards Efficient and Compact Neural Networks, TPAMI 2022
        (conference version ICCV 2019). The heads average their last map of any size; the code expects 4×4.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published with batches of 128, AutoAugment and Cutout.",
            epochs=250, optim={"lr": 0.1, "milestones": [83, 166, 240]},
            temperature=3.0, alpha=0.3, hint_weight=0.03,
        ),
        "imagenet": imagenet(
            "No setting is published: the values are those of CIFAR-100.",
            temperature=3.0, alpha=0.3, hint_weight=0.03,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure("cifar100", "", "cifar/resnet18", 78.64, "BYOT paper, ICCV 2019", None),
        PublishedFigure("cifar100", "", "cifar/resnet50", 80.56, "BYOT paper, ICCV 2019", None),
    )  # fmt: skip

    class Config(Section):
        """The journal code's values, without its hint."""

        temperature: float = Field(3.0, gt=0)
        """Divides the logits of the soft labels; the term carries no T²."""
        alpha: float = Field(0.3, ge=0, le=1)
        """Share of the soft labels beside the true ones in every head but the deepest."""
        hint_weight: float = Field(0.0, ge=0)
        """λ, of a norm summed over the batch; values for averaged or squared forms are not comparable. 0.03
        in the code and the presets; users of the code report as good or better results without it."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        student = networks.student
        shapes = student.shapes()
        maps = list(shapes.stages.values())
        if len(maps) < 2:
            height, width = data.image_size
            raise NetworkError(
                f"method byot: needs two stages or more, {student.model} has {len(maps)} at {height}x{width} "
                "pixels; name them in student.taps or take larger images"
            )
        assert shapes.pooled is not None
        width = shapes.pooled.shape[1]
        # The deepest map has the student's own classifier; deepest first, as the formula counts.
        self.stages = list(shapes.stages)[-2::-1]
        self.heads = nn.ModuleList(
            Head(maps[-2 - i].shape[1], width, data.num_classes, halvings=i + 1)
            for i in range(len(self.stages))
        )
        hinted = self.stages[1:] if config.hint_weight else []
        self.adapters = nn.ModuleList(nn.Linear(width, width) for _ in hinted)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires the student's stage maps and pooled vector."""
        return Needs(student=frozenset({"logits", "pooled", "stages"}))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce, ce_heads, soft and hint."""
        student = self.networks.student
        outputs = student(batch.images, self.needs(self.config).student)
        assert outputs.logits is not None
        assert outputs.pooled is not None
        logits, features = [outputs.logits], [outputs.pooled]
        for stage, head in zip(self.stages, self.heads, strict=True):
            with student.autocast():
                feature_BD, logits_BK = head(outputs.stages[stage])
            logits.append(wide(logits_BK))
            features.append(wide(feature_BD))
        return self.terms(logits, features, list(self.adapters), batch.labels)

    def terms(
        self,
        logits: Sequence[Tensor],
        features: Sequence[Tensor],
        adapters: Sequence[nn.Module],
        labels_B: Tensor,
    ) -> dict[str, Tensor]:
        """Computes the weighted terms from the heads' outputs.

        Args:
            logits: `[B, K]` of each head, deepest first.
            features: `[B, D]` of each head, deepest first.
            adapters: The linear maps of heads 2, 3, ....
            labels_B: `[B]`.
        """
        c = self.config
        deepest_BK, deepest_BD = logits[0].detach(), features[0].detach()
        terms = {"ce": self.cross_entropy(logits[0], labels_B)}
        terms["ce_heads"] = (1 - c.alpha) * _sum(self.cross_entropy(z, labels_B) for z in logits[1:])
        terms["soft"] = c.alpha * _sum(
            losses.soft_cross_entropy(z, deepest_BK, c.temperature) for z in logits[1:]
        )
        if adapters:
            hints = zip(adapters, features[2:], strict=True)
            # A norm over the batch is no mean over rows, so it takes the rows of all processes.
            deepest_BD = self.gather(deepest_BD)
            terms["hint"] = c.hint_weight * _sum(
                losses.euclidean(self.gather(adapt(f)), deepest_BD) for adapt, f in hints
            )
        return terms


class Head(nn.Module):
    """Classifies a stage map: attention gate, strided blocks to D channels, average, linear layer.

    Args:
        channels: Channels of the stage map.
        width: D, width of the student's pooled vector.
        num_classes: K.
        halvings: Number of strided blocks; the last one has D channels.
    """

    def __init__(self, channels: int, width: int, num_classes: int, halvings: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(*_separable(channels, channels))
        # Channels grow to D geometrically, rounded, as in the stages of the backbone.
        ratio = (width / channels) ** (1 / halvings)
        steps = [channels, *(round(channels * ratio**k) for k in range(1, halvings)), width]
        self.chain = nn.Sequential(
            *(layer for before, after in itertools.pairwise(steps) for layer in _separable(before, after))
        )
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, map_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `[B, C, H, W]` to features `[B, D]` and logits `[B, K]`."""
        gate = F.interpolate(
            self.gate(map_BCHW), size=map_BCHW.shape[2:], mode="bilinear", align_corners=False
        )
        feature_BD = self.chain(map_BCHW * gate.sigmoid()).mean((2, 3))
        return feature_BD, self.classifier(feature_BD)


def _separable(before: int, after: int) -> list[nn.Module]:
    """Builds a depthwise-separable convolution that halves the map."""
    return [
        nn.Conv2d(before, before, 3, stride=2, padding=1, groups=before, bias=False),
        nn.Conv2d(before, after, 1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    ]


def _sum(terms: object) -> Tensor:
    total = sum(terms)  # type: ignore[call-overload]
    assert isinstance(total, Tensor)
    return total
