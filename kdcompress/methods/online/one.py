"""On-the-fly native ensemble (Lan et al., NeurIPS 2018): branches learn from their gated mixture."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.methods import losses
from kdcompress.methods.base import Needs
from kdcompress.methods.cohort_method import CohortMethod, last_shared_stage, logits_of
from kdcompress.methods.gather import gather_rows, own_rows
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.short_runs import ShortRuns
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import wide


class ONE(CohortMethod):
    """Minimises Σᵢ CE(zᵢ) + CE(z) + weight · ramp · Σᵢ T² · KL(z ‖ zᵢ), with z = Σᵢ gᵢ zᵢ for every image.

    The weights g come from a gate on the pooled map of the shared stages. The gate learns from CE(z) alone
    unless `detach` is off. The gate and the other branches are discarded; any branch may ship. The ensemble
    of `train.ship: ensemble` is the mean prediction of the branches, without the gate.

    Source:
        Lan, Zhu & Gong, Knowledge Distillation by On-the-Fly Native Ensemble, NeurIPS 2018; the authors'
        code. Its ResNet-110 is built of bottleneck blocks and is not `cifar/resnet110`.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published with batches of 128.",
            epochs=300, optim={"lr": 0.1, "milestones": [151, 225], "weight_decay": 1e-4},
            branches=3, temperature=3.0, weight=1.0, shift=1e-7, detach=True, ramp_epochs=80.0,
        ),
        "imagenet": imagenet(
            "No setting was available: the values are those of CIFAR-100, the ramp in the same share.",
            branches=3, temperature=3.0, weight=1.0, shift=1e-7, detach=True,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure("cifar100", "", "cifar/resnet32", 73.79, "PCL paper's table", None),
        PublishedFigure("cifar100", "", "cifar/resnet110", 78.40, "PCL paper's table", None),
        PublishedFigure("cifar100", "", "cifar/vgg16", 74.37, "PCL paper's table", None),
        PublishedFigure(
            "imagenet", "", "torchvision/resnet18", 70.55, "ONE paper, NeurIPS 2018 (alone 69.52)", None
        ),
    )

    class Config(ShortRuns):
        """The authors' values; the ramp is 80 of 300 epochs."""

        branches: int = Field(3, ge=2)
        """Number of branches, the student's own included."""
        own_stages: int = Field(1, ge=1)
        """Number of last stages that each branch has of its own; the earlier ones are shared."""
        temperature: float = Field(3.0, gt=0)
        """With the factor T²."""
        weight: float = Field(1.0, ge=0)
        """Weight of the divergences beside the cross-entropies, after the ramp."""
        shift: float = Field(1e-7, ge=0)
        """Added to target probabilities, as in the authors' code; 0: exact."""
        detach: bool = True
        """Stops the gradient of the mixture where it is a target; the OKDDip repository does not."""
        ramp_share: float = Field(80 / 300, ge=0, le=1)
        """Share of the run's epochs over which the weight grows."""
        ramp_epochs: float | None = Field(None, ge=0)
        """Epochs over which the weight grows, as published: 80 of 300. Replaces ramp_share; 0: no ramp."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data, branches=config.branches, own_stages=config.own_stages)
        student = networks.student
        shared = student.shapes().stages[last_shared_stage(student, config.own_stages)]
        self.gate = Gate(shared.shape[1], config.branches)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires a student that can be split at its stages."""
        return Needs(student=frozenset({"logits", "stages"}), cut=True, compiles=False)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce and mimicry of each branch, and ce_ensemble."""
        shared_BCHW, readings = self.read_branches(batch)
        with self.networks.student.autocast():
            gate_BM = self.gate(shared_BCHW.mean((2, 3)))
        return self.terms(logits_of(readings), gate_BM, batch.labels)

    def terms(self, logits: list[Tensor], gate_BM: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """Computes the weighted terms.

        Args:
            logits: `[B, K]` of each branch.
            gate_BM: `[B, M]` weight of each branch.
            labels_B: `[B]`.
        """
        ensemble_BK = self.ensemble(logits, gate_BM)
        terms = {"ce_ensemble": self.cross_entropy(ensemble_BK, labels_B)}
        for name, own_BK in zip(self.names(), logits, strict=True):
            terms[f"ce_{name}"] = self.cross_entropy(own_BK, labels_B)
            terms[f"mimicry_{name}"] = self.mimicry(own_BK, ensemble_BK)
        return terms

    def ensemble(self, logits: list[Tensor], gate_BM: Tensor) -> Tensor:
        """Computes the gate-weighted sum `[B, K]` of the branches' logits."""
        return losses.mix_logits(gate_BM.unsqueeze(1), torch.stack(logits, 1)).squeeze(1)

    def mimicry(self, own_BK: Tensor, ensemble_BK: Tensor) -> Tensor:
        """Computes the weighted divergence of a branch from the ensemble."""
        c = self.config
        target_BK = ensemble_BK.detach() if c.detach else ensemble_BK
        return c.weight * self.ramp() * losses.kl(own_BK, target_BK, c.temperature, shift=c.shift)


class Gate(nn.Module):
    """Weights M branches for each image: linear layer, batch norm over the images, ReLU, softmax.

    The linear layer has no bias, since the batch norm subtracts it: the authors' code has one, without
    effect. In training the batch norm takes the rows of all processes. A single row has no variance: it is
    normalised by the running statistics and leaves them as they are.

    Args:
        channels: C, width of the pooled map.
        branches: M.
    """

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, branches, bias=False)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, pooled_BC: Tensor) -> Tensor:
        """Maps `[B, C]` to weights `[B, M]`, float32, that add up to 1."""
        return losses.gate_weights(self._normalise(wide(self.linear(pooled_BC))))

    def _normalise(self, scores_BM: Tensor) -> Tensor:
        norm = self.norm
        every_AM = gather_rows(scores_BM) if norm.training else scores_BM
        if norm.training and len(every_AM) > 1:
            return own_rows(norm(every_AM))
        return F.batch_norm(
            scores_BM, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
