"""Mutual contrastive learning (Yang et al., AAAI 2022): networks contrast and align their embeddings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.methods import losses
from kdcompress.methods.base import Needs
from kdcompress.methods.contrast_method import ContrastMethod
from kdcompress.methods.losses import ContrastColumns
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.requirements import pooled_width
from kdcompress.networks.activations import Want
from kdcompress.networks.networks import Networks

READS: Want = frozenset({"logits", "pooled"})
README = "MCL README, best network and epoch on the test images"


class MCL(ContrastMethod):
    """Minimises Σ CE(labels) + α·VCL + γ·softVCL + β·ICL + λ·softICL of K networks' embeddings.

    With v_i the unit embeddings of network i and S_ij = v_i·v_jᵀ / τ: VCL = Σ_i C(S_ii) and
    ICL = Σ_{i≠j} C(S_ij) contrast images by class; softVCL = Σ_{i≠j} KL(S_jj ‖ S_ii) and
    softICL = Σ_{i≠j} KL(S_ji ‖ S_ij) align the networks' similarities, with constant targets. The image
    itself is neither a positive nor in the denominator of C, but in the rows of both soft losses. Embedding
    heads, banks and further branches are discarded.

    Source:
        Yang et al., Mutual Contrastive Learning for Visual Representation Learning, AAAI 2022; the authors'
        code. There a class that a batch holds once gives NaN: here such an anchor is left out of C. In the
        memory form the second positive is another image of the class; in the code it may be the image itself.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Two whole networks, batches of 128. With 4 networks: branches: 4, own_stages: 2; that figure "
            "with logits: logit_weight: 1, logit_learners: last.",
            epochs=300, optim={"schedule": "cosine", "lr": 0.1, "nesterov": True},
            form="batch", vcl_weight=0.1, soft_vcl_weight=1.0, icl_weight=0.1, soft_icl_weight=1.0,
            contrast_temperature=0.1, soft_temperature=3.0, width=128, logit_weight=0.0, branches=0,
        ),
        "imagenet": imagenet(
            "Two whole networks. With 4 networks: branches: 4, own_stages: 2; that figure with logits: "
            "logit_weight: 1, logit_learners: last, logit_detach: false.",
            epochs=90, optim={"milestones": [30, 60]},
            form="memory", vcl_weight=0.1, soft_vcl_weight=1.0, icl_weight=0.1, soft_icl_weight=1.0,
            contrast_temperature=0.07, soft_temperature=3.0, width=128, negatives=8192, bank_momentum=0.5,
            logit_weight=0.0, branches=0,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure("cifar100", "", "cifar/resnet32", 72.96, f"{README}; two networks", "cifar100"),
        PublishedFigure("cifar100", "", "cifar/resnet56", 74.48, f"{README}; two networks", "cifar100"),
        PublishedFigure("cifar100", "", "cifar/resnet110", 77.12, f"{README}; two networks", "cifar100"),
        PublishedFigure("cifar100", "", "cifar/wrn-16-2", 74.56, f"{README}; two networks", "cifar100"),
        PublishedFigure("cifar100", "", "cifar/wrn-40-2", 77.51, f"{README}; two networks", "cifar100"),
        PublishedFigure("cifar100", "", "cifar/shufflenet-v2", 73.26, f"{README}; two networks", "cifar100"),
        PublishedFigure("cifar100", "", "cifar/resnet32", 74.04, f"{README}; four branches", None),
        PublishedFigure("cifar100", "", "cifar/resnet56", 75.74, f"{README}; four branches", None),
        PublishedFigure("cifar100", "", "cifar/resnet110", 78.82, f"{README}; four branches", None),
        PublishedFigure("cifar100", "", "cifar/wrn-16-2", 75.79, f"{README}; four branches", None),
        PublishedFigure("cifar100", "", "cifar/wrn-40-2", 78.84, f"{README}; four branches", None),
        PublishedFigure("cifar100", "", "cifar/shufflenet-v2", 75.18, f"{README}; four branches", None),
        PublishedFigure("cifar100", "", "cifar/wrn-16-2", 76.34, f"{README}; four branches, logits", None),
        PublishedFigure("cifar100", "", "cifar/wrn-40-2", 80.02, f"{README}; four branches, logits", None),
        PublishedFigure(
            "cifar100", "", "cifar/shufflenet-v2", 77.02, f"{README}; four branches, logits", None
        ),
        PublishedFigure("imagenet", "", "torchvision/resnet18", 70.32, f"{README}; two networks", "imagenet"),
        PublishedFigure("imagenet", "", "torchvision/resnet34", 74.13, f"{README}; two networks", "imagenet"),
        PublishedFigure("imagenet", "", "torchvision/resnet18", 70.77, f"{README}; four branches", None),
        PublishedFigure("imagenet", "", "torchvision/resnet34", 74.34, f"{README}; four branches", None),
        PublishedFigure(
            "imagenet", "", "torchvision/resnet18", 70.82, f"{README}; four branches, logits", None
        ),
    )  # fmt: skip

    class Config(ContrastMethod.Config):
        """The contrastive losses are sums over networks, or over ordered pairs of them."""

        branches: int = Field(0, ge=0)
        """0: the student and its peers, whole networks. 2 or more: so many branches of the student, its own
        included, that share its first stages."""
        own_stages: int = Field(2, ge=1)
        """Number of last stages that each branch has of its own."""
        logit_weight: float = Field(0.0, ge=0)
        """Weight of T² · KL from the mean of all networks' logits; 1 where the authors add it."""
        logit_temperature: float = Field(3.0, gt=0)
        """T of that term."""
        logit_learners: Literal["all", "last"] = "all"
        """Networks that have this term. The authors' CIFAR code: all of two networks, the last of more; their
        ImageNet code: the last."""
        logit_detach: bool = True
        """Stops the gradient of the mean logits; the authors' ImageNet code does not."""

        @field_validator("branches")
        @classmethod
        def _several_branches(cls, branches: int) -> int:
            if branches == 1:
                raise ValueError("0 for whole networks, or at least 2 branches")
            return branches

        @model_validator(mode="after")
        def _nothing_unread(self) -> MCL.Config:
            if not self.branches and self.own_stages != 2:
                raise ValueError("own_stages goes with branches of 2 or more")
            return self

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data, branches=config.branches, own_stages=config.own_stages)
        reads = "embeds the pooled features of each network"
        self.heads = nn.ModuleList(
            self.embedding_head(pooled_width("mcl", reads, name.rstrip("0123456789"), network))
            for name, network in zip(self.names(), self.architectures(), strict=True)
        )
        self.build_banks("mcl", self.count)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Requires a peer, or a student that can be split; class-paired batches in the batch form."""
        return Needs(
            peers=None if config.branches else 1,
            order="class_paired" if config.form == "batch" else "shuffled",
            student=READS,
            cut=config.branches > 0,
            compiles=config.branches == 0,
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ce of each network, logits if they have a weight, vcl, soft_vcl, icl and soft_icl."""
        readings = self.read_all(batch, READS)
        logits, embeddings = [], []
        terms: dict[str, Tensor] = {}
        for name, head, read in zip(self.names(), self.heads, readings, strict=True):
            assert read.logits is not None
            assert read.pooled is not None
            terms[f"ce_{name}"] = self.cross_entropy(read.logits, batch.labels)
            logits.append(read.logits)
            embeddings.append(self.embed(head, read.pooled))
        if self.config.logit_weight:
            terms["logits"] = self.logit_imitation(logits)
        if self.draws is not None:
            self.keep(batch.indices, embeddings)
            return terms | self.bank_contrast(embeddings, self.draws(batch.indices))
        gathered = [self.gather(rows_BE) for rows_BE in embeddings]
        return terms | self.contrast(gathered, self.gather(batch.labels))

    def contrast(self, embeddings: Sequence[Tensor], labels_B: Tensor) -> dict[str, Tensor]:
        """Computes the weighted contrastive terms of a batch.

        Args:
            embeddings: `[B, E]` unit rows of each network, of all processes.
            labels_B: `[B]`.

        Returns:
            vcl, soft_vcl, icl and soft_icl; the second and the last are 0 when all networks agree.
        """
        columns = losses.batch_columns(labels_B, embeddings[0].dtype)
        own = [self.compare(rows_BE, rows_BE) for rows_BE in embeddings]
        across = {
            (i, j): self.compare(embeddings[i], embeddings[j])
            for i, j in itertools.permutations(range(len(embeddings)), 2)
        }
        return self._terms(own, across, columns, columns)

    def bank_contrast(self, embeddings: Sequence[Tensor], columns_BM: Tensor) -> dict[str, Tensor]:
        """Computes the weighted contrastive terms against the banks.

        Args:
            embeddings: `[B, E]` unit rows of each network.
            columns_BM: `[B, 2 + K]` rows of the banks: the image itself, another one of its class, negatives.

        Returns:
            As `contrast` does.
        """
        table = [self.compare_with_bank(list(embeddings), bank, columns_BM) for bank in self.banks]
        # Within a network the image's own row is left out: it is the embedding of a step before.
        own = [row[i][:, 1:] for i, row in enumerate(table)]
        across = {(j, i): table[i][j] for i, j in itertools.permutations(range(len(table)), 2)}
        rows, columns = columns_BM.shape
        like = embeddings[0]
        return self._terms(
            own, across, losses.bank_columns(rows, columns - 1, 1, like),
            losses.bank_columns(rows, columns, 2, like),
        )  # fmt: skip

    def logit_imitation(self, logits: Sequence[Tensor]) -> Tensor:
        """Computes the weighted sum of the divergences from the mean logits.

        Args:
            logits: `[B, K]` of each network.
        """
        c = self.config
        target = torch.stack(list(logits)).mean(0)
        target = target.detach() if c.logit_detach else target
        learners = logits if c.logit_learners == "all" else logits[-1:]
        each = [losses.kl(rows_BK, target, c.logit_temperature) for rows_BK in learners]
        return c.logit_weight * torch.stack(each).sum()

    def _terms(
        self,
        own: list[Tensor],
        across: dict[tuple[int, int], Tensor],
        own_columns: ContrastColumns,
        across_columns: ContrastColumns,
    ) -> dict[str, Tensor]:
        """Sums over networks and ordered pairs; `across[i, j]` has the anchors of network i."""
        return self.weighted(
            vcl=_sum(losses.class_contrast(s, own_columns) for s in own),
            soft_vcl=_sum(self.imitate(own[i], own[j]) for i, j in across),
            icl=_sum(losses.class_contrast(s, across_columns) for s in across.values()),
            soft_icl=_sum(self.imitate(s, across[j, i]) for (i, j), s in across.items()),
        )


def _sum(terms: object) -> Tensor:
    total = sum(terms)  # type: ignore[call-overload]
    assert isinstance(total, Tensor)
    return total
