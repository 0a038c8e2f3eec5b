"""Activation boundaries (Heo et al., AAAI 2019): first learns the signs of the teacher's pre-activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Needs, ParameterSet, Phase
from kdcompress.methods.feature_kd import FeatureKD
from kdcompress.methods.presets import CRD_TABLES, Preset, cifar100, crd_table, imagenet
from kdcompress.networks.activations import LOGITS, Want
from kdcompress.networks.networks import Networks
from kdcompress.networks.undisturbed import undisturbed


class AB(FeatureKD):
    """Phase "boundaries": weight · Σ_pairs boundary loss. Phase "labels": ce_weight · CE + kd_weight · KL.

    In the first phase what makes the student's paired maps (all but its classifier, as a rule) and the
    connectors move, on the boundary loss alone, at a constant learning rate; in the second the student moves,
    with a fresh optimiser and the recipe's schedule. The first phase may end within an epoch.
    Pairs are stages of exactly one size, shallow to deep with weights 2^(l-n+1): 1 for the deepest, half of
    it for the one before. Where the channels differ a connector (1×1 convolution without bias, batch norm, no
    activation) stands between them; it is thrown away.

    Source:
        Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons,
        AAAI 2019; the weights are those of the authors' and the RepDistiller code. The authors' code leaves
        the teacher in training mode, so that its batch-norm statistics drift; here it is frozen.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "30 of the 270 epochs are the first phase; milestones count within a phase.",
            epochs=270, initial_share=30 / 270, weight=0.003, margin=1.0, ce_weight=1.0, kd_weight=0.0,
        ),
        "imagenet": imagenet(
            "No setting is published: the values are those of CIFAR-100.",
            initial_share=30 / 270, weight=0.003, margin=1.0, ce_weight=1.0, kd_weight=0.0,
        ),
    }  # fmt: skip
    FIGURES = crd_table(
        CRD_TABLES, 72.50, 72.38, 69.47, 69.53, 70.98, 73.17, 70.94, 66.06, 67.20, 70.65, 73.55, 74.31, 73.34
    )  # fmt: skip

    class Config(FeatureKD.Config):
        """The boundary loss is a sum over a map's elements and a mean over rows."""

        initial_share: float = Field(30 / 270, gt=0, lt=1)
        """Share of the run's steps for the first phase. RepDistiller has 30 epochs before the 240 of the
        training."""
        weight: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
        """Weight of the boundary loss: 0.003 in the published figures and the presets. auto: 1 divided by
        the elements of the deepest pair's map, so that the deepest pair's term is a mean over elements; the
        published weight is 24.6 times that at the last map of a WRN-40-2. Its large gradients make the
        weights in front of batch norms so long that a short second phase hardly turns them any more."""
        margin: float = Field(1.0, gt=0)
        """Distance from 0 beyond which a pre-activation of the right sign costs nothing."""
        ce_weight: float = Field(1.0, ge=0)
        """In the second phase. 0 needs no labels."""
        kd_weight: float = Field(1.0, ge=0)
        """Weight of soft labels in the second phase: 0 in RepDistiller and the presets, above it in the
        authors' code."""
        temperature: float = Field(3.0, gt=0)
        """The authors' temperature of the soft labels. Their term carries the factor T²."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        assert networks.teacher is not None
        student, teacher = networks.student, networks.teacher
        ours, theirs = student.shapes(), teacher.shapes()
        self.pairs = losses.pairs_of_one_size(ours, theirs)
        if not self.pairs:
            raise NetworkError(
                "method ab: signs are compared pixel by pixel, and no stage of the student "
                f"{losses.stage_maps(student.model, ours)} is exactly as large as one of the teacher "
                f"{losses.stage_maps(teacher.model, theirs)}; choose networks that halve their maps alike, "
                "or name stages in student.taps and teacher.taps"
            )
        self.connectors = nn.ModuleDict(
            {
                pair.student: _connector(pair.student_shape[0], pair.teacher_shape[0])
                for pair in self.pairs
                if not pair.same_channels
            }
        )

    @classmethod
    def reads(cls, config: Config) -> tuple[Want, Want]:
        """Returns the maps of both networks before activation."""
        return frozenset({"pre"}), frozenset({"pre"})

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Adds that the soft labels of the second phase are read without the maps of the first."""
        return replace(super().needs(config), cached=LOGITS if config.kd_weight else frozenset())

    def parameter_sets(self) -> dict[str, ParameterSet]:
        """Names the student's features, the rest of it (its classifier), and connectors if there are any."""
        trainable = [p for p in self.networks.student.network.parameters() if p.requires_grad]
        features = self._makes_maps(trainable)
        sets = {
            "features": [p for p, makes in zip(trainable, features, strict=True) if makes],
            "rest": [p for p, makes in zip(trainable, features, strict=True) if not makes],
            "connectors": list(self.connectors.parameters()),
        }
        return {name: ParameterSet(tuple(parameters)) for name, parameters in sets.items() if parameters}

    def phases(self) -> list[Phase]:
        """Lists the phases boundaries and labels."""
        sets, share = self.parameter_sets(), self.config.initial_share
        return [
            Phase(
                "boundaries", share, tuple(name for name in sets if name != "rest"),
                whole_epochs=False, schedule="constant",
            ),
            Phase(
                "labels", 1 - share, tuple(name for name in sets if name != "connectors"), whole_epochs=False
            ),
        ]  # fmt: skip

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes boundaries in the first phase, ce and kd in the second."""
        if self.phase == "boundaries":
            return {"boundaries": self._boundaries(batch)}
        assert self.networks.teacher is not None
        logits = self.networks.student(batch.images).logits
        teacher_logits = self.networks.teacher(batch.views[0]).logits if self.config.kd_weight else None
        return self.label_terms(logits, teacher_logits, batch.labels)

    def boundaries(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
        """Computes the weighted boundary loss of each pair.

        Args:
            student: Pre-activations `[B, C, H, W]`, connected, shallow to deep.
            teacher: Pre-activations of the same shapes.
        """
        c, last = self.config, len(student) - 1
        weight = 1.0 / student[-1][0].numel() if c.weight == "auto" else c.weight
        return [
            weight * 2.0 ** (i - last) * losses.activation_boundaries(s, t, c.margin)
            for i, (s, t) in enumerate(zip(student, teacher, strict=True))
        ]

    def _makes_maps(self, parameters: Sequence[nn.Parameter]) -> list[bool]:
        """Finds the parameters that the paired maps depend on, by the gradients of a dry run."""
        student = self.networks.student
        images = torch.zeros(2, student.channels, *student.image_size, device=student.device)
        with undisturbed(student.network), torch.enable_grad():
            maps = student(images, frozenset({"pre"})).pre
            total = torch.stack([maps[pair.student].sum() for pair in self.pairs]).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        return [gradient is not None for gradient in gradients]

    def _boundaries(self, batch: Batch) -> Tensor:
        assert self.networks.teacher is not None
        student = self.networks.student
        ours = student(batch.images, frozenset({"pre"})).pre
        theirs = self.networks.teacher(batch.views[0], frozenset({"pre"})).pre
        for stage, connector in self.connectors.items():
            with student.autocast():
                ours[stage] = connector(ours[stage])
        each = self.boundaries(
            [ours[pair.student] for pair in self.pairs],
            [theirs[pair.teacher] for pair in self.pairs],
        )
        return torch.stack(each).sum()


def _connector(before: int, after: int) -> nn.Sequential:
    # No activation: what it is compared with is a pre-activation.
    return nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))
