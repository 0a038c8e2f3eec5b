"""Cuts a data set into splits and hides labels, both the same for every seed of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcompress.data.batch import no_labels
from kdcompress.data.random_bits import permutation
from kdcompress.data.raw import Raw
from kdcompress.data.source import FolderSource, MemorySource
from kdcompress.errors import DataError

DATA_SEED = 20_150_309
"""Seed of every cut. No recipe key and no `--seeds` changes it: runs are compared on the same images."""
LABELS_SEED = DATA_SEED + 1
"""Seed of the choice which images keep their labels if only some do; nothing changes it either."""
TEST_SHARE = 0.1
"""Test share of a set without an official split: 80/10/10 with the default `data.held_out` of 0.1."""


_Part = MemorySource | FolderSource


def cut_splits(
    raw: Raw, held_out: float, *, by_class: bool = True
) -> tuple[_Part, _Part | None, _Part, list[str]]:
    """Cuts a data set by the rules that `open_data` states.

    Args:
        raw: The data set as it comes.
        held_out: Share (below 1) or number of the held-out images; 0: none.
        by_class: True cuts the same share of every class; False reads no label.

    Returns:
        (train, held-out, test, warnings).

    Raises:
        DataError: There are not enough images for these splits.
    """
    train, test, warnings = raw.train, raw.test, []
    everything = len(train)
    if test is None:
        rest, cut = stratified(_strata(train, by_class), TEST_SHARE)
        train, test = train.subset(rest), train.subset(cut)
    if raw.held_out is not None:
        if held_out > 0:
            return train, raw.held_out, test, []
        warnings.append(
            f"the validation split of {len(raw.held_out)} images is left out, since data.held_out is 0"
        )
    if held_out == 0:
        return train, None, test, warnings
    # A share is meant of all images that came uncut, so that 0.1 gives 80/10/10.
    count = held_out if held_out >= 1 else max(1, round(held_out * everything))
    rest, cut = stratified(_strata(train, by_class), count)
    return train.subset(rest), train.subset(cut), test, warnings


def _strata(images: _Part, by_class: bool) -> Tensor:
    return images.labels if by_class else no_labels(len(images))


def hide_labels(
    train: _Part, held_out: _Part | None, labels: Literal["all", "none"] | int, class_names: Sequence[str]
) -> tuple[_Part, _Part | None]:
    """Replaces labels by -1 (no label).

    Args:
        train: Training images.
        held_out: Held-out images, or None.
        labels: `data.labels` of the recipe. A number leaves the held-out labels: they choose among epochs and
            are not trained on.
        class_names: K names.

    Returns:
        (train, held-out).

    Raises:
        DataError: So many labels cannot be left.
    """
    if labels == "all":
        return train, held_out
    if labels == "none":
        hidden = None if held_out is None else replace(held_out, labels=no_labels(len(held_out)))
        return replace(train, labels=no_labels(len(train))), hidden
    count = int((train.labels >= 0).sum())
    if count == 0:
        raise DataError(f"data.labels: {labels}, and no training image has a label")
    most = count - len(class_names)
    if not len(class_names) <= labels <= most:
        raise DataError(
            f"data.labels: {labels} of {count} training labels in {len(class_names)} classes; expected "
            f"{len(class_names)} to {most}, or all"
        )
    hidden_at, _ = stratified(train.labels, labels, LABELS_SEED)
    visible_labels = train.labels.clone()
    visible_labels[hidden_at] = -1
    return replace(train, labels=visible_labels), held_out


def stratified(labels: Tensor, share_or_count: float, seed: int = DATA_SEED) -> tuple[Tensor, Tensor]:
    """Cuts the same share of every class, as nearly as whole images allow.

    The least cut is one image. A class always keeps at least one; if the cut is as large as the number of
    classes, every class of two or more images also gives at least one.

    Args:
        labels: `[N]` int64; -1 (no label) counts as a class.
        share_or_count: Below 1 a share of the N images, from 1 on a number of images.
        seed: Seed of the choice which images of a class are taken.

    Returns:
        (rest, cut): positions, ascending int64.

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
    rest, cut = np.sort(grouped[~is_cut]), np.sort(grouped[is_cut])
    return torch.from_numpy(rest), torch.from_numpy(cut)


def _quotas(sizes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Computes how many images each class gives: largest remainders, within the bounds of `stratified`."""
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
