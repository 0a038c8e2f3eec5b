"""Figures of a clustering beside the true classes.

Shape letters: N images, K clusters, C classes. Clusters and classes are int64 from 0; gaps in their numbers
change nothing, and so does their order. Every figure is 1 where clusters and classes are the same partition.
"""

from __future__ import annotations

from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor


def cluster_figures(assigned_N: Tensor, labels_N: Tensor) -> dict[str, float | None]:
    """Computes nmi, ari, accuracy and purity of a clustering.

    Args:
        assigned_N: Cluster of each image.
        labels_N: Classes; images of -1 are left out.

    Returns:
        Each of them None if no image has a label.
    """
    known = labels_N >= 0
    figures = {
        "nmi": normalized_mutual_information,
        "ari": adjusted_rand_index,
        "accuracy": matched_accuracy,
        "purity": purity,
    }
    if not bool(known.any()):
        return dict.fromkeys(figures)
    return {name: figure(assigned_N[known], labels_N[known]) for name, figure in figures.items()}


def normalized_mutual_information(assigned_N: Tensor, labels_N: Tensor) -> float:
    """Computes the mutual information over the mean of both entropies (arithmetic normaliser).

    Returns:
        0 to 1; 0 for one cluster of several classes. Grows by chance with the number of clusters.
    """
    return float(
        normalized_mutual_info_score(labels_N.numpy(), assigned_N.numpy(), average_method="arithmetic")
    )


def adjusted_rand_index(assigned_N: Tensor, labels_N: Tensor) -> float:
    """Computes the share of pairs of images that clusters and classes agree on, corrected for chance.

    Returns:
        At most 1; near 0 for clusters drawn at random, and negative for less than chance.
    """
    return float(adjusted_rand_score(labels_N.numpy(), assigned_N.numpy()))


def matched_accuracy(assigned_N: Tensor, labels_N: Tensor) -> float:
    """Computes the accuracy after the best one-to-one matching of clusters and classes (Hungarian method).

    Returns:
        0 to 1. Images of clusters without a class of their own count as errors.
    """
    table_KC = contingency(assigned_N, labels_N).numpy()
    rows, columns = linear_sum_assignment(table_KC, maximize=True)
    return float(table_KC[rows, columns].sum() / len(labels_N))


def purity(assigned_N: Tensor, labels_N: Tensor) -> float:
    """Computes the share of images that are of the most frequent class of their cluster.

    Returns:
        The largest class's share to 1; 1 with a cluster for each image, so it compares equal numbers of
        clusters only.
    """
    return float(contingency(assigned_N, labels_N).amax(1).sum() / len(labels_N))


def contingency(assigned_N: Tensor, labels_N: Tensor) -> Tensor:
    """Counts the images of each cluster and class: `[K, C]` int64."""
    classes = int(labels_N.max()) + 1
    clusters = int(assigned_N.max()) + 1
    counts = (assigned_N * classes + labels_N).bincount(minlength=clusters * classes)
    return counts.reshape(clusters, classes)
