"""Schemas of the figures of a network."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Len
from pydantic import model_validator

from kdcompress.schemas.document import MOST_CLASSES, Count, Document, Number, Share, Text

FigureName = Literal[
    "top1", "balanced_top1", "knn_top1", "nmi", "cluster_accuracy", "agreement", "loss", "kl"
]  # fmt: skip

Ends = Annotated[list[Share], Len(2, 2)]


class Figures(Document):
    """Figures of a network on a split."""

    top1: Share | None = None
    balanced_top1: Share | None = None
    knn_top1: Share | None = None
    nmi: Share | None = None
    cluster_accuracy: Share | None = None
    agreement: Share | None = None
    top1_ci95: Ends | None = None
    balanced_top1_ci95: Ends | None = None
    loss: Number | None = None
    kl: Number | None = None
    n: Count | None = None
    decides: FigureName | None = None

    @model_validator(mode="after")
    def _has_what_decides(self) -> Self:
        if self.decides is not None and getattr(self, self.decides) is None:
            raise ValueError(f"decides: names {self.decides}, which is not among the figures")
        return self


class Scores(Figures):
    """Figures of a network and its sizes."""

    params: Count | None = None
    macs: Count | None = None
    bytes: Count | None = None
    file: Text | None = None
    per_class: Annotated[list[Share | None], Len(0, MOST_CLASSES)] | None = None
    single_class: Count | None = None


class Sized(Scores):
    """Figures of a network whose sizes are known."""

    params: Count
    macs: Count
