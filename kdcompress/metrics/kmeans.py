"""Clusters of feature vectors by k-means."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

from kdcompress.errors import DataError

FEW_CLUSTERS = 100
MOST_STARTS, LEAST_STARTS = 10, 3
"""Starts by default with up to 100 clusters, and with more: one start of 1,000 clusters of 60,000 vectors of
64 numbers takes up to a minute on one core, ten of 10 clusters a few seconds."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """A partition of N vectors into K clusters, none of which is empty.

    Args:
        assigned: `[N]` int64, numbers of the clusters from 0 to K - 1.
        centres: `[K, D]` float32, the clusters' means (of the unit vectors, if they were normalised).
        inertia: Sum of the squared distances to the centres.
    """

    assigned: Tensor
    centres: Tensor
    inertia: float


KEPT = 0.99
"""Share of the variance that a whitening keeps."""
MOST_COMPONENTS = 256
"""Most components of a whitening, as in DeepCluster."""


@dataclass(frozen=True, slots=True)
class Whitening:
    """A change of features to uncorrelated components of equal variance, and to unit length.

    Without it a few directions in which all features vary most decide on the clusters.

    Args:
        mean: `[D]` float32 of the features.
        directions: `[D, P]` float32, principal axes over their standard deviations.

    Source:
        Caron et al., Deep clustering for unsupervised learning of visual features, ECCV 2018: PCA to 256
        dimensions, whitening, then L2 normalisation.
    """

    mean: Tensor
    directions: Tensor

    @classmethod
    def of(cls, features_ND: Tensor) -> Whitening:
        """Measures features: the fewest components with 99 % of their variance, two to 256.

        Raises:
            DataError: All images have the same features.
        """
        wide_ND = features_ND.double().cpu()
        mean = wide_ND.mean(0)
        variances, axes = torch.linalg.eigh((wide_ND - mean).T @ (wide_ND - mean) / len(wide_ND))
        variances, axes = variances.flip(0).clamp(min=0), axes.flip(1)
        if float(variances[0]) <= 1e-12 * float(wide_ND.square().mean() + 1e-30):
            raise DataError(
                "k-means: all images have the same features; take a network that tells them apart"
            )
        shares = variances.cumsum(0) / variances.sum()
        # Of one component unit length would leave the sign alone.
        least = min(2, int((variances > 0).sum()))
        count = min(max(int((shares < KEPT).sum()) + 1, least), MOST_COMPONENTS)
        return cls(mean.float(), (axes[:, :count] / variances[:count].sqrt()).float())

    def __call__(self, features_ND: Tensor) -> Tensor:
        """Changes features of any images, `[N, P]` float32 of unit length."""
        return F.normalize((features_ND.cpu().float() - self.mean) @ self.directions, dim=1)


def cluster(
    features_ND: Tensor,
    clusters: int,
    seed: int,
    *,
    starts: int | None = None,
    normalise: bool = True,
    threads: int = 1,
) -> Clusters:
    """Finds clusters by k-means (Lloyd's algorithm from k-means++ centres); the best of several starts.

    A cluster that becomes empty begins again at the vector farthest from its centre (scikit-learn).

    Args:
        features_ND: One row per image; finite.
        clusters: Clusters to find. There are fewer in the result only if vectors are so nearly alike that
            float32 does not tell them apart.
        seed: Of the first centres.
        starts: Trials, of which the one with the lowest inertia is the result. None: 10, or 3 with more than
            100 clusters.
        normalise: True: the rows are divided by their L2 norms here, so that angles are what is clustered.
        threads: With 1 a seed always gives the same bits; with more, sums are added in any order.

    Raises:
        DataError: There are fewer vectors, or fewer distinct ones, than clusters.
    """
    count = len(features_ND)
    if count < clusters:
        raise DataError(
            f"k-means: {clusters} clusters of {count} images are not possible; ask for at most {count} "
            "clusters or take more images"
        )
    values_ND = features_ND.float().cpu()
    if normalise:
        values_ND = F.normalize(values_ND, dim=1)
    distinct = len(torch.unique(values_ND, dim=0))
    if distinct < clusters:
        raise DataError(
            f"k-means: the {count} images have only {distinct} distinct feature vectors, so there cannot be "
            f"{clusters} clusters; ask for at most {distinct} clusters, or take a network that tells the "
            "images apart"
        )
    if starts is None:
        starts = MOST_STARTS if clusters <= FEW_CLUSTERS else LEAST_STARTS
    model = KMeans(clusters, n_init=starts, random_state=seed, algorithm="lloyd")
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters: seen in the result
        model.fit(values_ND.numpy())
    present, assigned_N = torch.unique(torch.from_numpy(model.labels_).long(), return_inverse=True)
    return Clusters(assigned_N, torch.from_numpy(model.cluster_centers_)[present], float(model.inertia_))
