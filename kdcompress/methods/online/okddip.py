"""OKDDip (Chen et al., AAAI 2020): peers learn from mixtures by attention, a leader from their mean."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Candidate, Needs
from kdcompress.methods.cohort_method import CohortMethod, logits_of, pooled_of
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.requirements import pooled_width
from kdcompress.methods.short_runs import ShortRuns
from kdcompress.networks.activations import LOGITS, POOLED, Want
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import wide

LEADER = "leader"
READS = "computes the attention between pooled features"


class OKDDip(CohortMethod):
    """Minimises Σₐ CE(zₐ) + CE(leader) + weight · ramp · (Σₐ T² · KL(tₐ ‖ zₐ) + T² · KL(mean z ‖ leader)).

    The target of auxiliary peer a is tₐ = Σ_c Aₐc z_c, where A is the attention between the peers' pooled
    features, a itself included. The targets keep their gradient: the attention learns from nothing else.

    The student is the leader and the only candidate, under the name `leader`. Without a leader every network
    is an auxiliary peer and may ship, for the ensemble. Attention and the other networks are discarded.

    Source:
        Chen, Mei, Wang, Feng & Chen, Online Knowledge Distillation with Diverse Peers, AAAI 2020; the
        authors' code, whose option `en` is `leader: false` here. `target: mean_of_others` without a leader is
        CL-ILR (Song & Chai, NeurIPS 2018) as that code trains it; `stem_gradient: mean` is its `bpscale`.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published with batches of 128.",
            epochs=300,
            optim={"lr": 0.1, "milestones": [150, 225], "nesterov": True},
            form="branches", auxiliary=3, leader=True, target="attention", temperature=3.0, weight=1.0,
            shift=1e-7, detach=False, factor=8, ramp_epochs=80.0,
        ),
        "imagenet": imagenet(
            "Published in the form of whole networks, without a schedule that was available: this is the "
            "usual one, with the ramp in the share of CIFAR-100.",
            form="networks", auxiliary=3, leader=True, target="attention", temperature=3.0, weight=1.0,
            shift=1e-7, detach=False, factor=8,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure("cifar100", "", "cifar/resnet32", 74.35, "OKDDip paper, AAAI 2020", None),
        PublishedFigure("cifar100", "", "cifar/resnet32", 73.25, "PCL paper's table", None),
        PublishedFigure("cifar100", "", "cifar/resnet110", 78.54, "PCL paper's table", None),
        PublishedFigure("cifar100", "", "cifar/vgg16", 74.68, "PCL paper's table", None),
        PublishedFigure("imagenet", "", "torchvision/resnet34", 74.58, "OKDDip paper, AAAI 2020", None),
    )

    class Config(ShortRuns):
        """The authors' values; the ramp is 80 of 300 epochs."""

        form: Literal["branches", "networks"] = "branches"
        """branches: one network with several last parts; networks: whole networks, which the recipe names as
        `peers`."""
        auxiliary: int = Field(3, ge=2)
        """Number of auxiliary peers beside the leader; in the form of networks, the least number."""
        leader: bool = True
        """False: every network is an auxiliary peer, one more than `auxiliary`."""
        target: Literal["attention", "mean_of_others"] = "attention"
        """Target of an auxiliary peer: a mixture by attention, or the mean logit of the others (CL-ILR)."""
        own_stages: int = Field(1, ge=1)
        """Number of last stages that each branch has of its own; the earlier ones are shared."""
        stem_gradient: Literal["sum", "mean"] = "sum"
        """mean: the shared stages receive the branches' gradient divided by the number of branches."""
        temperature: float = Field(3.0, gt=0)
        """With the factor T²."""
        weight: float = Field(1.0, ge=0)
        """Weight of the divergences beside the cross-entropies, after the ramp."""
        shift: float = Field(1e-7, ge=0)
        """Added to target probabilities, as in the authors' code; 0: exact."""
        detach: bool = False
        """Stops the gradient of the targets. The attention then keeps its initial weights."""
        factor: int = Field(8, ge=1)
        """Queries and keys have the width of the pooled features divided by this."""
        ramp_share: float = Field(80 / 300, ge=0, le=1)
        """Share of the run's epochs over which the weight grows."""
        ramp_epochs: float | None = Field(None, ge=0)
        """Epochs over which the weight grows, as published: 80 of 300. Replaces ramp_share; 0: no ramp."""

        @model_validator(mode="after")
        def _nothing_unread(self) -> OKDDip.Config:
            if self.form == "networks" and (self.own_stages != 1 or self.stem_gradient != "sum"):
                raise ValueError("own_stages and stem_gradient go with form: branches")
            if self.target != "attention" and self.factor != 8:
                raise ValueError("factor goes with target: attention")
            return self

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        branches = config.auxiliary + 1 if config.form == "branches" else 0
        super().__init__(
            config, networks, data, branches=branches, own_stages=config.own_stages,
            stem_gradient=1 / branches if branches and config.stem_gradient == "mean" else 1.0,
        )  # fmt: skip
        self.attention: Attention | None = None
        if config.target == "attention":
            width = self._width(1 if config.leader else 0)
            self.attention = Attention(width, config.factor)
            # Nothing would reach it through a constant target, and weight decay would shrink it.
            self.attention.requires_grad_(not config.detach)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires as many peers as auxiliary ones, or a student that can be split at its stages."""
        want: Want = LOGITS | POOLED if config.target == "attention" else LOGITS
        if config.form == "networks":
            return Needs(peers=config.auxiliary, student=want)
        return Needs(student=want | frozenset({"stages"}), cut=True, compiles=False)

    def names(self) -> list[str]:
        """Returns the base's names; the student is `leader` if there is one."""
        names = super().names()
        return [LEADER, *names[1:]] if self.config.leader else names

    def candidates(self) -> dict[str, Candidate]:
        """Names the leader alone; without one, every network of the student's class."""
        every = super().candidates()
        return {LEADER: every[LEADER]} if self.config.leader else every

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce and mimicry of each network."""
        readings = self.read_all(batch, self.needs(self.config).student - {"stages"})
        logits = logits_of(readings)
        if self.attention is None:
            return self.terms(logits, None, batch.labels)
        first = 1 if self.config.leader else 0
        with self.networks.student.autocast():
            attention_BMM = self.attention(torch.stack(pooled_of(readings)[first:], 1))
        return self.terms(logits, attention_BMM, batch.labels)

    def _width(self, first: int) -> int:
        """Returns the width of the pooled features that all networks from the first one on have.

        Raises:
            NetworkError: One has none, or their widths differ.
        """
        roles = ["student", *(f"peers.{k}" for k in range(len(self.networks.peers)))]
        if self.cohort is not None:
            roles = ["student"] * self.count
        pairs = list(zip(roles, self.architectures(), strict=True))[first:]
        widths = {net.model: pooled_width("okddip", READS, role, net) for role, net in pairs}
        if len(set(widths.values())) > 1:
            listed = ", ".join(f"{model} {width}" for model, width in widths.items())
            raise NetworkError(
                f"method okddip: the attention needs pooled features of one width, got {listed}; choose "
                "auxiliary peers of one width, or set method.target to mean_of_others"
            )
        return next(iter(widths.values()))

    def terms(
        self, logits: list[Tensor], attention_BMM: Tensor | None, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """Computes the weighted terms.

        Args:
            logits: `[B, K]` of each network, the leader first if there is one.
            attention_BMM: Between the auxiliary peers; None with `target: mean_of_others`.
            labels_B: `[B]`.
        """
        leader, auxiliary = (logits[:1], logits[1:]) if self.config.leader else ([], logits)
        logits_BMK = torch.stack(auxiliary, 1)
        targets = [*self.targets(logits_BMK, attention_BMM).unbind(1)]
        if leader:
            targets = [logits_BMK.mean(1), *targets]
        terms: dict[str, Tensor] = {}
        for name, own_BK, target_BK in zip(self.names(), [*leader, *auxiliary], targets, strict=True):
            terms[f"ce_{name}"] = self.cross_entropy(own_BK, labels_B)
            terms[f"mimicry_{name}"] = self.mimicry(own_BK, target_BK)
        return terms

    def targets(self, logits_BMK: Tensor, attention_BMM: Tensor | None) -> Tensor:
        """Computes the target logits `[B, M, K]` of the M auxiliary peers, with gradients."""
        if attention_BMM is not None:
            return losses.mix_logits(attention_BMM, logits_BMK)
        return (logits_BMK.sum(1, keepdim=True) - logits_BMK) / (logits_BMK.shape[1] - 1)

    def mimicry(self, own_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Computes the weighted divergence of a network from its target."""
        c = self.config
        target_BK = target_BK.detach() if c.detach else target_BK
        return c.weight * self.ramp() * losses.kl(own_BK, target_BK, c.temperature, shift=c.shift)


class Attention(nn.Module):
    """Computes the attention between peers from their pooled features, by two linear maps that all share.

    Args:
        width: D, width of the pooled features.
        factor: Queries and keys have the width D / factor, at least 1.
    """

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, max(1, width // factor), bias=False)
        self.key = nn.Linear(width, max(1, width // factor), bias=False)

    def forward(self, pooled_BMD: Tensor) -> Tensor:
        """Maps `[B, M, D]` to float32 `[B, M, M]`, whose rows add up to 1."""
        return losses.peer_attention(wide(self.query(pooled_BMD)), wide(self.key(pooled_BMD)))
