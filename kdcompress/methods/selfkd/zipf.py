"""Zipf's label smoothing (Liang et al., ECCV 2022): smooths the label by the ranks of the other classes."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcompress.config import Section
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import DataError, NetworkError
from kdcompress.methods import losses
from kdcompress.methods.base import Method, Needs
from kdcompress.methods.gather import row_share
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.networks.activations import LOGITS, STAGES
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped

_ALIKE = 0.05
"""Largest difference of two logits that are called the same, over the largest: above what bf16 rounds."""


class Zipf(Method):
    """Minimises CE(labels) + weight · KL(rank^-power ‖ softmax over the other classes).

    The other classes are ranked by how many cells of the last map the classifier gives to them, or by the
    logits. Ties share the better rank; the label's class takes part in the ranking and gets no target.
    Nothing is discarded after training.

    Source:
        Liang et al., Efficient One Pass Self-distillation with Zipf's Label Smoothing, ECCV 2022, and the
        authors' PyTorch code with one level of votes; `zipf_dense_multi` of their code adds classifiers on
        shallower stages, whose weight is without effect under its default.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published with batches of 128; the rate drops one epoch later in the authors' code.",
            epochs=200, optim={"lr": 0.1, "weight_decay": 1e-4, "milestones": [100, 150]},
            weight=0.1, power=1.0, votes="dense", upsample=2,
        ),
        "imagenet": imagenet(weight=0.1, power=1.0, votes="dense", upsample=1),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure(
            "cifar100", "", "cifar/resnet18", 77.38, "Zipf's LS repository (plain 75.51)", "cifar100"
        ),
    )  # fmt: skip

    class Config(Section):
        """The authors' values for CIFAR-100 and ImageNet."""

        weight: float = Field(0.1, ge=0)
        """Weight of the term beside the cross-entropy; 1.0 for TinyImageNet and iNaturalist."""
        power: float = Field(1.0, ge=0)
        """Exponent of the ranks; 0 gives all other classes the same target."""
        votes: Literal["auto", "dense", "logits"] = "auto"
        """Scores that are ranked. dense: votes of the last map's cells; logits: the logits of the image;
        auto: dense where the classifier can read the cells of a map of more than one, else logits."""
        upsample: int = Field(2, ge=1, le=4)
        """The map is enlarged so many times before its cells vote, so that there are more votes."""
        only_correct: bool = False
        """Leaves out images that are not classified correctly."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        if data.num_classes < 3:
            raise DataError(
                f"method zipf: ranks the classes that are not the label, and the data has "
                f"{data.num_classes}; take data of at least three classes, or another method"
            )
        shapes = networks.student.shapes()
        self.stage = list(shapes.stages)[-1] if shapes.stages else ""
        reason = None
        if not self.stage or shapes.pooled is None:
            reason = "has no linear classifier behind a map"
        elif shapes.stages[self.stage].shape[1] != shapes.pooled.shape[1]:
            reason = "has a hidden layer between its last map and its classifier"
        elif shapes.stages[self.stage].shape[2:].numel() == 1:
            reason = "has a last map of a single cell at this image size"
        elif config.votes != "logits" and not _reads_mean(networks.student, self.stage):
            reason = "has a layer between its last map and its classifier"
        if config.votes == "dense" and reason is not None:
            raise NetworkError(
                f"method zipf: the cells of the last map cannot vote, since {networks.student.model} "
                f"{reason}; set method.votes: logits"
            )
        self.dense = config.votes != "logits" and reason is None

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires the student's last map unless logits are ranked."""
        if config.votes == "logits":
            return Needs()
        return Needs(student=LOGITS | STAGES)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the terms ce and zipf."""
        student = self.networks.student
        outputs = student(batch.images, LOGITS | STAGES if self.dense else LOGITS)
        assert outputs.logits is not None
        scores = outputs.logits.detach()
        if self.dense:
            layer = student.classifier
            assert isinstance(layer, nn.Linear)
            scores = losses.dense_votes(
                outputs.stages[self.stage], layer.weight, layer.bias, self.config.upsample
            )
        return self.terms(outputs.logits, scores, batch.labels)

    def terms(self, logits_BK: Tensor, scores_BK: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """Computes the weighted terms.

        Args:
            logits_BK: `[B, K]`.
            scores_BK: `[B, K]` votes or logits, without gradient.
            labels_B: `[B]` int64.
        """
        c = self.config
        target_BM = losses.zipf_targets(scores_BK, labels_B, c.power)
        zipf = losses.other_classes_kl(logits_BK, target_BM, labels_B, only_correct=c.only_correct)
        if c.only_correct:  # a mean over the correct rows of all processes
            zipf = zipf * row_share((logits_BK.argmax(1) == labels_B).sum(), labels_B)
        return {"ce": self.cross_entropy(logits_BK, labels_B), "zipf": c.weight * zipf}


@torch.no_grad()
def _reads_mean(student: Tapped, stage: str) -> bool:
    """Tells if the classifier reads the mean over the cells of a map, so that it can read a cell."""
    read = student.dry_run(LOGITS | STAGES)
    layer = student.classifier
    assert isinstance(layer, nn.Linear)
    assert read.logits is not None
    mean_BD = read.stages[stage].mean((2, 3)).to(layer.weight)
    own_BK = layer(mean_BD).to(read.logits)
    return bool((own_BK - read.logits).abs().amax() <= _ALIKE * read.logits.abs().amax().clamp(min=1e-6))
