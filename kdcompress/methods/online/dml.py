"""Deep mutual learning (Zhang et al., CVPR 2018): networks trained together imitate each other."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdcompress.data.batch import Batch
from kdcompress.methods import losses
from kdcompress.methods.base import Minimise, Needs, ParameterSet
from kdcompress.methods.cohort_method import CohortMethod, logits_of
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.short_runs import ShortRuns


class DML(CohortMethod):
    """Minimises, for every network, CE(labels) + weight · KL from each other network's prediction.

    All networks are updated at once from one batch with detached targets, as in every re-implementation. With
    `update: sequential` one network is updated after the other, and the next one imitates the predictions
    that those before it make after their update, as in the paper's algorithm and the authors' code (which
    takes a new batch for every update; here all share one).

    Source:
        Zhang, Xiang, Hospedales & Lu, Deep Mutual Learning, CVPR 2018. `over_peers` selects a sum over
        the other networks, as in the code, or a mean, as in the paper; for two networks they are equal.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "The authors' code has no CIFAR-100 setting: the schedule is an author's, given in an issue, "
            "with batches of 64.",
            epochs=200, optim={"lr": 0.1, "nesterov": True, "milestones": [60, 120, 180]},
            weight=1.0, temperature=1.0, over_peers="sum", target="each",
        ),
        "imagenet": imagenet(
            "No setting is published.", weight=1.0, temperature=1.0, over_peers="sum", target="each"
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure("cifar100", "", "cifar/resnet32", 73.68, "PCL paper's table, two networks", None),
        PublishedFigure("cifar100", "", "cifar/resnet110", 77.86, "PCL paper's table, two networks", None),
        PublishedFigure("imagenet", "", "torchvision/resnet18", 70.19, "AFD paper's table", None),
        PublishedFigure("imagenet", "", "torchvision/resnet34", 73.57, "AFD paper's table", None),
    )  # fmt: skip

    class Config(ShortRuns):
        """Selects the version of the loss; the defaults are those of the authors' code."""

        weight: float = Field(1.0, ge=0)
        """Weight of the divergence beside the cross-entropy."""
        ramp_share: float = Field(0.0, ge=0, le=1)
        """Share of the run's epochs over which the weight grows; 0: no ramp, as published."""
        ramp_epochs: float | None = Field(None, ge=0)
        """Epochs over which the weight grows; replaces ramp_share."""
        temperature: float = Field(1.0, gt=0)
        """With the factor T². The authors use 1; the baselines of later papers use 2 or 3."""
        over_peers: Literal["sum", "mean"] = "sum"
        """sum: the authors' code; mean: the paper."""
        target: Literal["each", "mean_logits"] = "each"
        """Imitate every other network, or the mean of their logits."""
        detach: bool = True
        """Stops the gradient of the targets."""
        shift: float = Field(0.0, ge=0)
        """Added to target probabilities (1e-7 in repositories that follow ONE, Lan et al., NeurIPS 2018)."""
        guard: float = Field(0.0, ge=0)
        """Above 0: the authors' TensorFlow expression with its epsilons (1e-8), at T = 1. 0: exact, in log
        space."""

        update: Literal["joint", "sequential"] = "joint"
        """Update all networks at once, or one after the other; sequential takes one more forward pass of each
        network but the last. With `train.accumulate` the last batch of a step alone sees those updates."""

        @model_validator(mode="after")
        def _one_form(self) -> DML.Config:
            if self.guard and (self.temperature != 1 or self.shift):
                raise ValueError("guard goes with temperature 1 and shift 0")
            if self.update == "sequential" and not self.detach:
                raise ValueError("with update: sequential the targets are constants; leave detach: true")
            return self

    config: Config

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires at least one peer, of any architecture."""
        return Needs(peers=1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce and mimicry of the student and of each peer."""
        logits = logits_of(self.read_all(batch))
        terms: dict[str, Tensor] = {}
        for i, name in enumerate(self.names()):
            terms[f"ce_{name}"] = self.cross_entropy(logits[i], batch.labels)
            terms[f"mimicry_{name}"] = self.mimicry(logits, i)
        return terms

    @property
    def has_own_step(self) -> bool:
        """True with sequential updates."""
        return bool(self.config.update == "sequential")

    def parameter_sets(self) -> dict[str, ParameterSet]:
        """Returns one set of all networks, or with sequential updates one of each."""
        if not self.has_own_step:
            return super().parameter_sets()
        trained = zip(self.names(), self.networks.trained(), strict=True)
        return {name: ParameterSet(tuple(network.parameters())) for name, network in trained}

    def step(self, batch: Batch, minimise: Minimise) -> None:
        """Updates all networks at once, or one after the other.

        Sequential: a network's prediction is computed anew after its update, in training mode, so that its
        batch-norm statistics see the batch twice.
        """
        if not self.has_own_step:
            super().step(batch, minimise)
            return
        networks = (self.networks.student, *self.networks.peers)
        logits = logits_of(self.read_all(batch))
        for i, name in enumerate(self.names()):
            ce = self.cross_entropy(logits[i], batch.labels)
            minimise({f"ce_{name}": ce, f"mimicry_{name}": self.mimicry(logits, i)}, name)
            if i + 1 < len(networks):
                with torch.no_grad():
                    logits[i] = logits_of([networks[i](batch.images)])[0]

    def mimicry(self, logits: list[Tensor], learner: int) -> Tensor:
        """Computes the weighted divergence of one network from the others.

        Args:
            logits: `[B, K]` of every network.
            learner: Index of the network that imitates.

        Returns:
            Scalar; 0 when all networks agree.
        """
        c = self.config
        others = [z.detach() if c.detach else z for j, z in enumerate(logits) if j != learner]
        if c.target == "mean_logits":
            others = [torch.stack(others).mean(0)]
        if c.guard:
            each = [losses.guarded_kl(logits[learner], z, c.guard) for z in others]
        else:
            each = [losses.kl(logits[learner], z, c.temperature, shift=c.shift) for z in others]
        total = torch.stack(each).sum()
        return self.ramp() * c.weight * (total / len(each) if c.over_peers == "mean" else total)
