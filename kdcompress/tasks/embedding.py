"""Embedding: a feature vector per image, scored by its nearest neighbours."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.metrics.neighbours import knn_top1, overlap
from kdcompress.tasks.base import Decisions, Deviation, Scorer, Task
from kdcompress.tasks.classification import accuracy, described


class Embeddings(Scorer):
    """Features of the images of a split."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Adds features `[B, D]` and labels `[B]`."""
        self._batches.append((outputs.cpu(), labels.cpu()))

    @property
    def features(self) -> Tensor:
        """`[N, D]` float32."""
        return torch.cat([features for features, _ in self._batches])

    @property
    def labels(self) -> Tensor:
        """`[N]` int64; -1 = none."""
        return torch.cat([labels for _, labels in self._batches])

    def result(self) -> dict[str, Any]:
        """Returns the keys of `accuracy`, empty, and `knn_top1`, None without labels."""
        labels = self.labels
        empty = accuracy(torch.zeros(0, dtype=torch.int64), labels[:0], 0)
        return {**empty, "knn_top1": knn_top1(self.features, labels), "n": int((labels >= 0).sum())}

    def agreement(self, teacher_outputs: Tensor) -> float | None:
        """Returns the share of nearest neighbours that are also the teacher's; None of a single image."""
        return overlap(self.features, teacher_outputs)


class DirectionDeviation(Deviation):
    """The largest 1 - cosine between two embeddings of an image."""

    name = "embedding"

    def __init__(self, limit: float, spread: float, least: float = 1.0) -> None:
        super().__init__(limit, spread, least)
        self._worst: list[Tensor] = []

    def update(self, reference: Tensor, outputs: Tensor) -> None:
        """Adds features `[B, D]` of both."""
        # Half the squared distance of the unit vectors: exact where 1 - cosine cancels, 0 for two zeros.
        apart = F.normalize(reference.double(), dim=1) - F.normalize(outputs.double(), dim=1)
        self._worst.append(apart.square().sum(1).max() / 2)

    @property
    def figure(self) -> float:
        """Largest 1 - cosine; NaN where any of them is, since the maximum of tensors is."""
        return float(torch.stack(self._worst).max())

    @property
    def limit(self) -> float:
        """Largest 1 - cosine allowed: what an error of `parity` times the spread in every feature causes."""
        return self.parity**2 / 2

    @property
    def passed(self) -> bool:
        """True if no embedding is rotated further than the limit."""
        return self.figure <= self.limit

    def detail(self, reference: str, images: str) -> str:
        """Describes the figure; see the base class."""
        return f"largest 1 - cosine between {reference} and the file's embedding {images}"


class Embedding(Task):
    """A vector of D features, of a network without a classifier."""

    name = "embedding"
    output = "embedding"
    activation = "pooled"
    metrics = ("knn_top1", "agreement")
    one_output = "a feature"
    outputs = "features"
    has_classes = False

    def output_problem(self, outputs: object, batch: int) -> str | None:
        """Features `[batch, features]` are right."""
        if isinstance(outputs, Tensor) and outputs.ndim == 2 and len(outputs) == batch:
            return None
        expected = "a backbone gives one tensor of features [batch, features]"
        return f"{expected}; this one gives {described(outputs)}"

    def scorer(self, num_classes: int, *, keep_outputs: bool = True) -> Embeddings:
        """Collects the features."""
        return Embeddings()

    def score(
        self, outputs: Tensor | Decisions, labels: Tensor, teacher_outputs: Tensor | None = None
    ) -> dict[str, Any]:
        """Computes `knn_top1`, if there are labels, and `agreement` (`overlap`), if there is a teacher."""
        assert isinstance(outputs, Tensor)
        figures = {"knn_top1": knn_top1(outputs, labels)}
        figures["agreement"] = None if teacher_outputs is None else overlap(outputs, teacher_outputs)
        return {name: figure for name, figure in figures.items() if figure is not None}

    def deviation(self, limit: float, spread: float, least: float = 1.0) -> DirectionDeviation:
        """Compares directions."""
        return DirectionDeviation(limit, spread, least)


EMBEDDING = Embedding()
