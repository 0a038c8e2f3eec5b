"""How a set is cut in two when it does not come cut."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcompress.data.random_bits import permutation
from kdcompress.errors import DataError

DATA_SEED = 20_150_309
"""Keys every cut. No recipe key and no `--seeds` moves it: runs to compare are judged on the same images."""


LABELS_SEED = DATA_SEED + 1
"""Keys which images keep their labels where only some may; likewise moved by nothing."""


def stratified(labels: Tensor, share_or_count: float, seed: int = DATA_SEED) -> tuple[Tensor, Tensor]:
    """A cut that takes the same share of every class, as nearly as whole images allow.

    The least cut is one image. A class always keeps at least one; if the cut is as large as the number of
    classes, every class of two or more images also gives at least one.

    Args:
        labels: `[N]` int64; -1 (no label) counts as a class.
        share_or_count: Below 1 a share of the N images, from 1 on a number of images.
        seed: Keys which images of a class are taken.

    Returns:
        (kept, cut): positions, ascending int64.

    Raises:
        DataError: There are not enough images for that cut.
    """
    n = len(labels)
    count = round(share_or_count * n) if share_or_count < 1 else int(share_or_count)
    count = max(1, count)
    _, class_of, sizes = np.unique(labels.numpy(), return_inverse=True, return_counts=True)
    most = int((sizes - 1).sum())
    if count > most:
        raise DataError(
            f"data.held_out: cannot set {count} of {n} images in {len(sizes)} classes aside to choose or "
            f"test on, since every class keeps one to train on; at most {most} can be"
        )
    quota = _quotas(sizes, count)
    order = permutation(seed, 0, n).numpy()
    # Stable sort by class: within each class the images stay in the drawn order, and the first `quota` are
    # cut.
    grouped = order[np.argsort(class_of[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = np.arange(n) - np.repeat(starts, sizes)
    is_cut = rank < np.repeat(quota, sizes)
    kept, cut = np.sort(grouped[~is_cut]), np.sort(grouped[is_cut])
    return torch.from_numpy(kept), torch.from_numpy(cut)


def _quotas(sizes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """How many images each class gives: largest remainders, between the bounds that `stratified` promises."""
    exact = sizes * (count / sizes.sum())
    most = sizes - 1
    quota: NDArray[np.int64] = np.minimum(np.floor(exact).astype(np.int64), most)
    least = np.minimum(1, most) if count >= len(sizes) else np.zeros_like(sizes)
    quota = np.maximum(quota, least)
    while quota.sum() < count:
        quota[np.argmax(np.where(quota < most, exact - quota, -np.inf))] += 1
    while quota.sum() > count:
        quota[np.argmax(np.where(quota > least, quota - exact, -np.inf))] -= 1
    return quota
