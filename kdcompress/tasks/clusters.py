"""Clusters: a logit per cluster of a network trained without labels, scored against classes it never saw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdcompress.metrics.clustering import cluster_figures
from kdcompress.tasks.base import Decisions
from kdcompress.tasks.classification import Classification, Predictions, accuracy


class Assignments(Predictions):
    """Clusters of the images of a split."""

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Adds logits `[B, K]` and labels `[B]`, which are classes."""
        # No class has the number of a cluster, so there is no cross-entropy.
        self._batches.append((outputs.argmax(1).cpu(), torch.zeros(len(labels)).double(), labels.cpu()))

    def result(self) -> dict[str, Any]:
        """Returns the keys of `accuracy`, empty, and those of `of_clusters`."""
        labels = self.labels
        empty = accuracy(torch.zeros(0, dtype=torch.int64), labels[:0], self.num_classes)
        return {**empty, **of_clusters(self.classes, labels), "n": int((labels >= 0).sum())}


class Clusters(Classification):
    """A logit for each of K clusters, whose numbers mean nothing."""

    name = "clusters"
    output = "clusters"
    metrics = ("cluster_accuracy", "agreement")
    numbers_are_labels = False

    def scorer(self, num_classes: int, *, keep_outputs: bool = True) -> Assignments:
        """Collects clusters."""
        return Assignments(num_classes)

    def score(
        self, outputs: Tensor | Decisions, labels: Tensor, teacher_outputs: Tensor | None = None
    ) -> dict[str, Any]:
        """Returns no figures: a training is not judged by labels that it must not see."""
        return {}

    def parts(
        self, outputs: Tensor | Decisions, labels: Tensor, teacher_outputs: Tensor | None = None
    ) -> None:
        """Returns none, as `score` returns no figure."""
        return None


CLUSTERS = Clusters()


def of_clusters(assigned_N: Tensor, labels_N: Tensor) -> dict[str, float | None]:
    """Computes `cluster_accuracy`, `nmi`, `ari` and `purity`, each None without labels (`cluster_figures`).

    Args:
        assigned_N: int64 clusters.
        labels_N: int64 classes; -1 = none.
    """
    figures = cluster_figures(assigned_N, labels_N)
    return {"cluster_accuracy": figures.pop("accuracy"), **figures}
