"""Be your own teacher (Zhang et al., ICCV 2019): heads on shallow stages learn from the deepest one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.requirements import pooled_width
from kdcompress.methods.stage_gradient import StageGradient, with_gradient_share
from kdcompress.methods.stage_heads import StageClassifier, StageHead, attention_head, bottleneck_head
from kdcompress.networks.activations import Activations
from kdcompress.networks.exits import Exit, exit_after
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import wide
from kdcompress.networks.undisturbed import undisturbed

HINTS = {
    "norm": losses.euclidean,
    "mean_squared": losses.mse,
    "active_sum": losses.active_squared_sum,
}


class BYOT(Method):
    """Adds a CE, a soft-label and a feature-hint term for a head on each shallower stage.

    With heads counted from the deepest (0) to the shallowest, the total is
    CE₀ + Σ_{i≥1} [(1−α)·CEᵢ + α·SCE_T(zᵢ ← z₀)] + λ·Σ_{i≥2} ‖Aᵢfᵢ − f₀‖, as in the authors' journal code: the
    soft term is a cross-entropy without T², the hint an unsquared norm over the batch, and the head next to
    the deepest has no hint. That the heads give the student's stages a tenth of their gradient is ours
    (`stage_gradient`). Attention gates, heads and linear maps A are discarded; the plain student ships.
    `export.exits: true` also writes the heads, as outputs of a further file.

    Two other codes differ, and options reach both, with `stage_gradient: 1`. Self-KD-Lib (by MixSKD's
    authors): `soft: kl`, `squared_factor: true`, `alpha: 1`, `ce_weight: 1`, `hint: mean_squared`,
    `hint_weight: 0.05`, `hint_reads: map`, `hinted: all`, `adapters: false`, `head: stages`, `heads: 2`. The
    unofficial code of luanyunteng: `squared_factor: true`, `alpha: 0.1`, `deepest_ce_weight: 0.9`,
    `hint: active_sum`, `hint_weight: 1e-6`, `hinted: all`, `adapters: false`, `head: bottleneck`; the inner
    width of its heads is ours.

    Source:
        Zhang, Bao & Ma, Self-Distillation: Towards Efficient and Compact Neural Networks, TPAMI 2022
        (conference version ICCV 2019). The heads average their last map of any size; the code expects 4×4.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published with batches of 128, AutoAugment and Cutout.",
            epochs=250, optim={"lr": 0.1, "milestones": [83, 166, 240]},
            temperature=3.0, alpha=0.3, hint_weight=0.03, stage_gradient=1.0,
        ),
        "imagenet": imagenet(
            "No setting is published: the values are those of CIFAR-100.",
            temperature=3.0, alpha=0.3, hint_weight=0.03, stage_gradient=1.0,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure("cifar100", "", "cifar/resnet18", 78.64, "BYOT paper, ICCV 2019", None),
        PublishedFigure("cifar100", "", "cifar/resnet50", 80.56, "BYOT paper, ICCV 2019", None),
    )  # fmt: skip

    class Config(StageGradient):
        """The journal code's values, without its hint."""

        temperature: float = Field(3.0, gt=0)
        """Divides the logits of the soft labels."""
        alpha: float = Field(0.3, ge=0, le=1)
        """Weight of the soft labels in every head but the deepest."""
        soft: Literal["cross_entropy", "kl"] = "cross_entropy"
        """Distance from the soft labels; the gradients are equal, and KL is 0 where they are met."""
        squared_factor: bool = False
        """Multiply the soft labels' term by T²; without it the gradient shrinks as T grows."""
        ce_weight: float | None = Field(None, ge=0)
        """Weight of the labels in every head but the deepest. null: 1 − alpha."""
        deepest_ce_weight: float = Field(1.0, ge=0)
        """Weight of the labels in the student's own output."""
        hint_weight: float = Field(0.0, ge=0)
        """λ; its size depends on `hint`: 0.03 for norm (the code and the presets), 0.05 for mean_squared,
        1e-6 for active_sum. Users of the authors' code report as good or better results without a hint."""
        hint: Literal["norm", "mean_squared", "active_sum"] = "norm"
        """Distance of features. norm: Euclidean, of the whole batch, not squared; mean_squared: mean over all
        elements; active_sum: sum over the batch of the squares where either side is positive."""
        hint_reads: Literal["pooled", "map"] = "pooled"
        """Features to compare: pooled vectors, or the last maps before pooling."""
        hinted: Literal["all_but_next", "all"] = "all_but_next"
        """Heads with a hint. all_but_next: not the one next to the deepest, as the authors' code runs."""
        adapters: bool = True
        """Put a linear map (on maps a 1x1 convolution) on a head's features before they are compared."""
        head: Literal["attention", "stages", "bottleneck"] = "attention"
        """Form of the heads. attention: gate and depthwise-separable blocks; stages: copies of the student's
        later stages, one block each; bottleneck: three convolutions, of which one shrinks the map at once."""
        heads: int | None = Field(None, ge=1)
        """Largest number of heads, those on the deepest stages. null: one on every stage but the last."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        student = networks.student
        maps = student.shapes().stages
        if len(maps) < 2:
            height, width = data.image_size
            raise NetworkError(
                f"method byot: needs two stages or more, {student.model} has {len(maps)} at {height}x{width} "
                "pixels; name them in student.taps or take larger images"
            )
        pooled_width("byot", "compares heads with the pooled features", "student", student)
        # The deepest map has the student's own classifier; deepest first, as the formula counts.
        self.deepest, *stages = list(maps)[::-1]
        self.stages = stages[: config.heads]
        self.heads = nn.ModuleList(self._head(stage, maps, i + 1) for i, stage in enumerate(self.stages))
        self.adapters = nn.ModuleList()
        if config.hint_weight and len(self.stages) <= self._unhinted:
            raise NetworkError(
                f"method byot: hint_weight is {config.hint_weight:g}, and the only head has no hint; set "
                "method.hinted: all, or method.hint_weight: 0"
            )
        if config.hint_weight:
            maps = student.dry_run(frozenset({"stages"})).stages
            self.adapters.extend(self._adapter(maps, i) for i in range(self._unhinted, len(self.stages)))

    def _head(self, stage: str, maps: Mapping[str, Tensor], halvings: int) -> nn.Module:
        """Builds the head of a stage in the configured form."""
        student = self.networks.student
        channels, *size = maps[stage].shape[1:]
        width = pooled_width("byot", "compares heads with the pooled features", "student", student)
        if self.config.head == "stages":
            return exit_after(student, stage, blocks=1)
        if self.config.head == "attention":
            return attention_head(channels, width, student.num_classes, halvings)
        rows, columns = (max(1, a // b) for a, b in zip(size, maps[self.deepest].shape[2:], strict=True))
        return bottleneck_head(channels, width, student.num_classes, (rows, columns))

    @property
    def _unhinted(self) -> int:
        """Number of heads without a hint, from the deepest."""
        return 0 if self.config.hinted == "all" else 1

    def _adapter(self, maps: Mapping[str, Tensor], number: int) -> nn.Module:
        """Builds the map from a head's features to the student's.

        Raises:
            NetworkError: They are compared, but have other shapes.
        """
        student, head = self.networks.student, self.heads[number]
        with undisturbed(head):
            # A head of one's own is moved to the network's device later.
            ours = self._compared(head(maps[self.stages[number]].to(next(head.parameters()))))
        own = Activations(pooled=student.shapes().pooled, stages={"map": maps[self.deepest]})
        target = self._compared(own)
        if ours.shape[2:] != target.shape[2:] or not (self.config.adapters or ours.shape == target.shape):
            shapes = " and ".join("x".join(map(str, x.shape[1:])) for x in (ours, target))
            raise NetworkError(
                f"method byot: hint_reads: {self.config.hint_reads} compares features of one shape, those of "
                f"the head on {self.stages[number]} and of {student.model} are {shapes}; choose hint_reads: "
                "pooled, or another form of heads (method.head)"
            )
        if not self.config.adapters:
            return nn.Identity()
        widths = ours.shape[1], target.shape[1]
        return nn.Linear(*widths) if ours.ndim == 2 else nn.Conv2d(*widths, 1)

    def _compared(self, read: Activations) -> Tensor:
        """Returns the features that the hint compares."""
        features = read.stages["map"] if self.config.hint_reads == "map" else read.pooled
        assert features is not None
        return features

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires the student's stage maps and pooled vector; for heads of its own stages, to split it."""
        return Needs(student=frozenset({"logits", "pooled", "stages"}), cut=config.head == "stages")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce, ce_heads, soft and hint."""
        student = self.networks.student
        outputs = student(batch.images, self.needs(self.config).student)
        reads: list[Activations] = []
        factor = self.config.stage_gradient
        for stage, head in zip(self.stages, self.heads, strict=True):
            with student.autocast():
                reads.append(head(with_gradient_share(outputs.stages[stage], factor)))
        own = Activations(outputs.logits, outputs.pooled, {"map": outputs.stages[self.deepest]})
        logits = [wide(read.output(student.task)) for read in (own, *reads)]
        features = [wide(self._compared(read)) for read in (own, *reads)]
        return self.terms(logits, features, list(self.adapters), batch.labels)

    def early_exits(self) -> dict[str, nn.Module]:
        """Names the heads, shallowest first."""
        heads = list(zip(self.stages, self.heads, strict=True))[::-1]
        return {stage: _classifier(head) for stage, head in heads}

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
            features: `[B, D]` or maps `[B, D, H, W]` of each head, deepest first.
            adapters: The linear maps of the heads with a hint; none: there is no hint.
            labels_B: `[B]`.
        """
        c = self.config
        deepest_BK = logits[0].detach()
        ce_weight = 1 - c.alpha if c.ce_weight is None else c.ce_weight
        terms = {"ce": c.deepest_ce_weight * self.cross_entropy(logits[0], labels_B)}
        terms["ce_heads"] = ce_weight * _sum(self.cross_entropy(z, labels_B) for z in logits[1:])
        terms["soft"] = c.alpha * _sum(self.soft_term(z, deepest_BK) for z in logits[1:])
        if adapters:
            hints = list(zip(adapters, features[1 + self._unhinted :], strict=True))
            # A norm or sum over the batch is no mean over rows, so it takes the rows of all processes.
            rows = (lambda own: own) if c.hint == "mean_squared" else self.gather
            target = rows(features[0].detach())
            terms["hint"] = c.hint_weight * _sum(HINTS[c.hint](rows(adapt(f)), target) for adapt, f in hints)
        return terms

    def soft_term(self, logits_BK: Tensor, deepest_BK: Tensor) -> Tensor:
        """Computes a head's distance from the soft labels, before α."""
        c = self.config
        if c.soft == "kl":
            factor = 1.0 if c.squared_factor else c.temperature**-2  # `kl` has T²
            return factor * losses.kl(logits_BK, deepest_BK, c.temperature)
        factor = c.temperature**2 if c.squared_factor else 1.0
        return factor * losses.soft_cross_entropy(logits_BK, deepest_BK, c.temperature)


def _classifier(head: nn.Module) -> nn.Module:
    """Wraps a head as a module that returns logits alone."""
    if isinstance(head, Exit):
        return nn.Sequential(OrderedDict(head.named_children()))
    assert isinstance(head, StageHead)
    return StageClassifier(head)


def _sum(terms: object) -> Tensor:
    total = sum(terms)  # type: ignore[call-overload]
    assert isinstance(total, Tensor)
    return total
