"""The base of methods that contrast the embeddings of networks that train together."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdcompress.config import Section
from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import DataError
from kdcompress.methods import losses
from kdcompress.methods.class_draws import ClassDraws
from kdcompress.methods.cohort_method import CohortMethod
from kdcompress.methods.memory import SampleMemory
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import wide


class ContrastMethod(CohortMethod):
    """Holds embedding heads' options, memory banks and the columns that anchors are compared with.

    Two forms. batch: an anchor is compared with the other images of a class-paired batch. memory: with one
    bank per network that remembers the embeddings of all training images; columns are the image itself,
    another image of its class, and negatives.

    Attributes:
        banks: One per network in the memory form, else empty.
        draws: Chooses the columns of the memory form.
    """

    class Config(Section):
        """Weights of the four contrastive losses, temperatures, and where compared embeddings come from."""

        form: Literal["batch", "memory"] = "batch"
        """batch: class-paired batches, compared among each other. memory: ordinary batches, compared with
        remembered embeddings of all images; for data of many classes."""
        vcl_weight: float = Field(0.1, ge=0)
        """α, contrast within each network."""
        soft_vcl_weight: float = Field(1.0, ge=0)
        """γ, imitation of the other networks' similarities within themselves."""
        icl_weight: float = Field(0.1, ge=0)
        """β, contrast across networks."""
        soft_icl_weight: float = Field(1.0, ge=0)
        """λ, agreement of the similarities across two networks in both directions."""
        contrast_temperature: float = Field(0.1, gt=0)
        """Inner products of embeddings are divided by it; published: 0.1 in a batch, 0.07 with a memory."""
        soft_temperature: float = Field(3.0, gt=0)
        """T of both soft losses, on top of contrast_temperature and with the factor T²."""
        width: int = Field(128, ge=1)
        """Width of the embeddings."""
        negatives: int = Field(8192, ge=1)
        """Memory form: images of other classes per row, at most as many as there are."""
        bank_momentum: float = Field(0.5, ge=0, lt=1)
        """Memory form: share of the remembered embedding in what is remembered next."""
        bank_device: Literal["method", "cpu"] = "method"
        """Memory form: where the banks lie. They take 4 · width bytes per image and network: 26 MB for CIFAR,
        656 MB for ImageNet. method: beside the networks. cpu: in CPU memory, and every step waits for the
        rows that it reads."""

        @model_validator(mode="after")
        def _no_bank_unread(self) -> Self:
            if self.form == "batch" and (self.negatives, self.bank_momentum, self.bank_device) != (
                8192, 0.5, "method",
            ):  # fmt: skip
                raise ValueError("negatives, bank_momentum and bank_device go with form: memory")
            return self

    config: Any

    def __init__(self, config: Any, networks: Networks, data: DataInfo, **branches: int) -> None:
        super().__init__(config, networks, data, **branches)
        self.banks = nn.ModuleList()
        self.draws: ClassDraws | None = None
        self._unremembered: list[tuple[Tensor, list[Tensor]]] = []

    def build_banks(self, name: str, count: int) -> None:
        """Creates the banks of the memory form.

        Args:
            name: Name of the method.
            count: Number of networks.

        Raises:
            DataError: There are no images of other classes.
        """
        if self.config.form == "batch":
            return
        if self.data.labelled_classes < 2:
            raise DataError(
                f"method {name}: with form: memory the negatives of an image are images of other classes, "
                f"and the training images are of {self.data.labelled_classes}; take data of several classes"
            )
        self.draws = ClassDraws(self.data.labels, self.config.negatives)
        # As in the code: numbers whose rows have length 1 in the mean square, not each.
        bound = (3 / self.config.width) ** 0.5
        for _ in range(count):
            bank = SampleMemory(
                len(self.data.labels), self.config.width,
                dtype=torch.float32, device=self.config.bank_device,
            )  # fmt: skip
            bank.rows.uniform_(-bound, bound)
            self.banks.append(bank)

    def embedding_head(self, features: int) -> nn.Sequential:
        """Builds the map from pooled features to an embedding."""
        width = self.config.width
        return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width))

    def embed(self, head: nn.Module, pooled_BD: Tensor) -> Tensor:
        """Computes unit embeddings `[B, E]`, the map in the student's precision."""
        with self.networks.student.autocast():
            rows_BE = head(pooled_BD)
        return losses.unit_rows(wide(rows_BE))

    def compare(self, one_BE: Tensor, other_BE: Tensor) -> Tensor:
        """Computes the similarities `[B, B]` of embeddings of a batch."""
        return losses.similarities(one_BE, other_BE, self.config.contrast_temperature)

    def compare_with_bank(
        self, embeddings: list[Tensor], bank: nn.Module, columns_BM: Tensor
    ) -> list[Tensor]:
        """Computes the similarities `[B, M]` of embeddings with chosen rows of a bank."""
        assert isinstance(bank, SampleMemory)
        images, width = bank.rows.shape
        if self.config.bank_device == "cpu" or images > columns_BM.shape[1] * width:
            # Read once for all embeddings: 1 GB for 256 images and 8,192 negatives of width 128.
            rows_BME = bank.read(columns_BM)
            products = [losses.row_products(rows_BE, rows_BME) for rows_BE in embeddings]
        else:
            products = [losses.bank_products(rows_BE, bank.rows, columns_BM) for rows_BE in embeddings]
        return [each / self.config.contrast_temperature for each in products]

    def imitate(self, learner_BN: Tensor, target_BN: Tensor, weights_B: Tensor | None = None) -> Tensor:
        """Computes a soft loss; the target is a constant."""
        return losses.similarity_imitation(learner_BN, target_BN, self.config.soft_temperature, weights_B)

    def weighted(self, vcl: Tensor, soft_vcl: Tensor, icl: Tensor, soft_icl: Tensor) -> dict[str, Tensor]:
        """Multiplies the four losses by their weights."""
        c = self.config
        return {
            "vcl": c.vcl_weight * vcl,
            "soft_vcl": c.soft_vcl_weight * soft_vcl,
            "icl": c.icl_weight * icl,
            "soft_icl": c.soft_icl_weight * soft_icl,
        }

    def keep(self, indices_B: Tensor, embeddings: list[Tensor]) -> None:
        """Collects the embeddings `[B, E]` of each network, which `after_step` writes into its bank."""
        self._unremembered.append((indices_B, [rows_BE.detach() for rows_BE in embeddings]))

    def after_step(self, batch: Batch) -> None:
        """Updates the banks with the embeddings of the step's batches."""
        if self.draws is not None:
            self.update_banks()
            self.draws.advance()

    @torch.no_grad()
    def update_banks(self) -> None:
        """Writes the collected embeddings into the banks."""
        for indices_B, embeddings in self._unremembered:
            for bank, new_BE in zip(self.banks, embeddings, strict=True):
                assert isinstance(bank, SampleMemory)
                old_BE = bank.read(indices_B).to(new_BE.dtype)
                mixed_BE = torch.lerp(new_BE, old_BE, self.config.bank_momentum)
                bank.write(indices_B, losses.unit_rows(mixed_BE))
        self._unremembered.clear()
