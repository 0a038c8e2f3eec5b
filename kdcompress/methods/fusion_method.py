"""The base of methods whose networks learn from a classifier on their fused last maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdcompress.data.batch import Batch
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Needs, ParameterSet
from kdcompress.methods.cohort_method import CohortMethod, last_map, logits_of
from kdcompress.methods.short_runs import ShortRuns
from kdcompress.networks.activations import Want
from kdcompress.networks.tapped import Tapped, wide
from kdcompress.networks.undisturbed import undisturbed

_LOGITS_AND_MAP: Want = frozenset({"logits", "stages"})


class FusionConfig(ShortRuns):
    """The loss of FFL; a method adds the fields of its fusion module."""

    form: Literal["branches", "networks"] = "branches"
    """branches: they share the student's first stages. networks: the student and the recipe's peers."""
    branches: int = Field(2, ge=2, le=8)
    """Number of branches, the student's own included; of form branches alone."""
    own_stages: int = Field(1, ge=1)
    """Number of last stages that each branch has of its own; of form branches alone."""
    temperature: float = Field(3.0, gt=0)
    """Of all divergences, which have the factor T²."""
    weight: float = Field(1.0, ge=0)
    """Weight of the divergences beside the cross-entropies, at the end of the ramp."""
    ramp_share: float = Field(80 / 300, ge=0, le=1)
    """Share of the run over which the divergences gain their weight, as exp(-5 (1 - t)²)."""
    ramp_epochs: float | None = Field(None, ge=0)
    """Length of the ramp in epochs, as published: 80 of 300. Replaces ramp_share."""
    shift: float = Field(1e-7, ge=0)
    """Added to target probabilities."""
    detach: bool = True
    """Stops the gradient of the targets."""
    fusion_weight_decay: float = Field(1e-5, ge=0)
    """Weight decay of the fusion module, which has an optimiser of its own; that of the networks is
    optim.weight_decay."""

    @model_validator(mode="after")
    def _nothing_unread(self) -> Self:
        if self.form == "networks" and (self.branches, self.own_stages) != (2, 1):
            raise ValueError("branches and own_stages go with form: branches")
        return self


class FusionMethod(CohortMethod):
    """Minimises CE of every network and of the fused classifier, and divergences between them.

    Total: Σ_i CE_i + CE_f + ramp · weight · (Σ_i KL(f ‖ i) + KL(mean logits ‖ f)), targets detached.

    Attributes:
        fusion: Maps the networks' last maps to the fused logits `[B, K]`; the constructor of a method sets
            it. It is discarded.
    """

    config: FusionConfig
    fusion: nn.Module

    @classmethod
    def needs(cls, config: FusionConfig) -> Needs:
        """Requires a student that can be split, or a peer; and the last maps."""
        whole = config.form == "networks"
        return Needs(peers=1 if whole else None, cut=not whole, compiles=whole, student=_LOGITS_AND_MAP)

    def parameter_sets(self) -> dict[str, ParameterSet]:
        """Sets main (networks and branches) and fusion, which has a weight decay of its own."""
        fusion = tuple(self.fusion.parameters())
        own = {id(p) for p in fusion}
        main = tuple(p for p in super().parameter_sets()["main"].parameters if id(p) not in own)
        decay = self.config.fusion_weight_decay
        return {"main": ParameterSet(main), "fusion": ParameterSet(fusion, weight_decay=decay)}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce and fused_to of every network, ce_fused and mean_to_fused."""
        readings = self.read_all(batch, _LOGITS_AND_MAP)
        with self.networks.student.autocast():
            fused = wide(self.fusion([last_map(read) for read in readings]))
        return self.terms(logits_of(readings), fused, batch.labels)

    def terms(self, logits: Sequence[Tensor], fused_BK: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """Computes the weighted terms from logits.

        Args:
            logits: `[B, K]` of every network.
            fused_BK: Logits of the fused classifier.
            labels_B: `[B]`.
        """
        terms = {
            f"ce_{name}": self.cross_entropy(z, labels_B)
            for name, z in zip(self.names(), logits, strict=True)
        }
        terms["ce_fused"] = self.cross_entropy(fused_BK, labels_B)
        for name, z in zip(self.names(), logits, strict=True):
            terms[f"fused_to_{name}"] = self._divergence(z, fused_BK)
        terms["mean_to_fused"] = self._divergence(fused_BK, torch.stack(list(logits)).mean(0))
        return terms

    def _divergence(self, learner_BK: Tensor, target_BK: Tensor) -> Tensor:
        c = self.config
        target_BK = target_BK.detach() if c.detach else target_BK
        return self.ramp() * c.weight * losses.kl(learner_BK, target_BK, c.temperature, shift=c.shift)

    def channels(self) -> list[int]:
        """Returns the number of channels of every network's last map.

        Raises:
            NetworkError: A network has no stage.
        """
        if self.cohort is None:
            return [_last_shape(each)[1] for each in self.architectures()]
        student = self.networks.student
        images = torch.zeros(2, student.channels, *student.image_size, device=student.device)
        with undisturbed(student.network), undisturbed(self.cohort):
            _, readings = self.cohort(images, frozenset({"stages"}))
        return [last_map(read).shape[1] for read in readings]


def of_one_size(maps: Sequence[Tensor]) -> list[Tensor]:
    """Averages maps `[B, C, H, W]` down to the smallest height and width among them."""
    size = (min(m.shape[2] for m in maps), min(m.shape[3] for m in maps))
    return [m if m.shape[2:] == size else F.adaptive_avg_pool2d(m, size) for m in maps]


def _last_shape(network: Tapped) -> torch.Size:
    stages = network.shapes().stages
    if not stages:
        raise NetworkError(
            f"{network.model}: has no stage whose map could be fused; name stages in its taps, or choose "
            "another network"
        )
    return list(stages.values())[-1].shape
