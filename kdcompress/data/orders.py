"""Orders of the training images: which image stands in which row of which batch.

An order is a function of (seed, epoch): it has no state, so that every process computes the same batches and
a resumed training continues with the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from kdcompress.data.pools import Pool, rows_of_pools
from kdcompress.data.random_bits import permutation
from kdcompress.errors import UserError

Order = Literal["shuffled", "class_paired", "cluster_uniform"]

_STREAM = 1 << 40
"""Epochs of the shuffled order count from 0; the passes through each pool or group have their own numbers."""


class BatchOrder(Protocol):
    """The sample indices of every epoch."""

    @property
    def steps(self) -> int:
        """Batches of an epoch."""

    def __call__(self, epoch: int) -> Tensor:
        """Returns the sample indices of an epoch, `[steps · batch_size]` int64, batch after batch."""


def batch_order(
    name: Order, labels: Tensor, *, batch_size: int, seed: int, pools: Sequence[Pool] = ()
) -> BatchOrder:
    """Builds the order of a training set.

    Args:
        name: `shuffled`: every image once, the rest of an incomplete batch left out. `class_paired`: groups
            of at least two images of a class. `cluster_uniform`: the labels are clusters, and each is drawn
            equally often. The last two are a `GroupedOrder`.
        labels: `[N]` int64, -1 for an image without a label.
        batch_size: Rows of a batch in all processes together; a smaller training set is one batch.
        seed: The run's seed.
        pools: Kinds of images with a fixed share of every batch (`PooledOrder`); empty: one kind.

    Raises:
        UserError: Such batches cannot be made of these images; the message says why.
    """
    batch_size = min(batch_size, len(labels))
    if name == "shuffled":
        if pools:
            return PooledOrder(pools, batch_size=batch_size, seed=seed)
        return ShuffledOrder(len(labels), batch_size=batch_size, seed=seed)
    if pools:
        kinds = ", ".join(pool.name for pool in pools)
        raise UserError(
            f"data: the method's batches are {name}, and fixed shares of each batch are taken by images of "
            f"several kinds ({kinds}); leave data.extra out and use labelled images alone, or choose another "
            "method"
        )
    _check_labels(name, labels, batch_size)
    return GroupedOrder(labels, rows=2 if name == "class_paired" else 1, batch_size=batch_size, seed=seed)


class ShuffledOrder:
    """A permutation of all images in every epoch.

    Args:
        count: N, the number of images.
        batch_size: Rows of a batch, at most N.
        seed: The run's seed.

    Attributes:
        steps: Complete batches of an epoch.
    """

    def __init__(self, count: int, *, batch_size: int, seed: int) -> None:
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self.steps = count // batch_size

    def __call__(self, epoch: int) -> Tensor:
        """Returns the sample indices of an epoch, `[steps · batch_size]` int64."""
        return permutation(self._seed, epoch, self._count)[: self.steps * self._batch_size]


class FirstBatches:
    """The first batches of every epoch of an order, for a training that is only measured.

    Args:
        order: The whole epochs.
        steps: Batches of an epoch; at least 1.
    """

    def __init__(self, order: BatchOrder, steps: int) -> None:
        self._order = order
        self.steps = min(steps, order.steps)

    def __call__(self, epoch: int) -> Tensor:
        """Returns the sample indices of the batches, `[steps · batch_size]` int64."""
        indices = self._order(epoch)
        return indices[: len(indices) // self._order.steps * self.steps]


class PooledOrder:
    """Batches that hold a fixed number of images of each pool.

    An epoch is one pass through the first pool, so that ramps and schedules in epochs keep their meaning
    however many images the other pools have. Those are visited in shuffled passes of their own, across the
    borders of epochs.

    Args:
        pools: At least one.
        batch_size: Rows of a batch in all processes together.
        seed: The run's seed.

    Attributes:
        counts: Rows of each pool in a batch.
        steps: Batches of an epoch.

    Raises:
        UserError: A batch is too small to hold one image of each pool.
    """

    def __init__(self, pools: Sequence[Pool], *, batch_size: int, seed: int) -> None:
        self._pools, self._seed = tuple(pools), seed
        self.counts = rows_of_pools([pool.share for pool in pools], batch_size)
        if 0 in self.counts:
            name = pools[self.counts.index(0)].name
            raise UserError(f"data.batch_size: {batch_size} is too small to hold one {name} image per batch")
        self.steps = max(1, len(self._pools[0].indices) // self.counts[0])
        # Evenly mixed, so that every process's part of the batch has nearly the same composition.
        places = [(row + 0.5) / n for n in self.counts for row in range(n)]
        self._pool_of_row = torch.tensor(
            [number for number, n in enumerate(self.counts) for _ in range(n)], dtype=torch.int64
        )[torch.tensor(places).argsort(stable=True)]

    def __call__(self, epoch: int) -> Tensor:
        """Returns the sample indices of an epoch, `[steps · batch_size]` int64."""
        order = torch.empty(self.steps, len(self._pool_of_row), dtype=torch.int64)
        for number, (pool, count) in enumerate(zip(self._pools, self.counts, strict=True)):
            length, size = self.steps * count, len(pool.indices)
            rows = pool.indices[_draws(self._seed, (number + 1) * _STREAM, size, epoch * length, length)]
            order[:, self._pool_of_row == number] = rows.reshape(self.steps, count)
        return order.flatten()


class GroupedOrder:
    """Batches made of groups of images of the same class.

    With enough classes a batch holds `rows` images each of batch_size / `rows` classes, the images of a class
    in neighbouring rows. With fewer classes a batch holds images of all of them, as evenly as possible; the
    rows that remain are given to each class in turn. No image stands twice in a batch: a class with fewer
    images than its part gives all it has, and the others give more.

    Classes are visited equally often, not in proportion to their images: the authors of MCL and DeepCluster
    draw classes (clusters) uniformly, and a small class then has as many positives as a large one. On a
    balanced set an epoch is one pass through the data, less what no complete batch holds. Classes, and the
    images of each class, are visited in shuffled passes across the borders of epochs, so that at any time
    two images of a class have been drawn equally often or one once more.

    A class of one image is drawn alone. Two such classes share a group; an odd one joins another such
    group, or the largest class. Images without a label are not drawn.

    Sources: Yang et al., "Mutual contrastive learning for visual representation learning" (AAAI 2022), the
    authors' batches of 64 × 2, which are drawn independently where these are passes; Caron et al., "Deep
    clustering for unsupervised learning of visual features" (ECCV 2018), for uniform clusters.

    Args:
        labels: `[N]` int64; -1: not drawn.
        rows: Images of a group: 2, or 1 for classes alone.
        batch_size: Rows of a batch in all processes together, a multiple of `rows`, at most the number of
            labelled images.
        seed: The run's seed.

    Attributes:
        steps: Batches of an epoch: labelled images / batch_size, rounded down.
    """

    def __init__(self, labels: Tensor, *, rows: int, batch_size: int, seed: int) -> None:
        self._seed = seed
        self.steps = int((labels >= 0).sum()) // batch_size
        by_label = labels.argsort(stable=True)[int((labels < 0).sum()) :]
        sizes = labels[labels >= 0].bincount()
        classes = list(torch.split(by_label, sizes[sizes > 0].tolist()))
        groups = _joined_groups(classes, rows)
        if len(groups) * rows >= batch_size:
            self._groups, self._rows_in_turn = groups, rows
            self._rows_always = [0] * len(groups)
            self._in_turn = list(range(len(groups)))
            self._turns = batch_size // rows
        else:
            self._groups, self._rows_in_turn = classes, 1
            self._rows_always = _even_rows([len(images) for images in classes], batch_size)
            self._in_turn = [number for number, n in enumerate(self._rows_always) if len(classes[number]) > n]
            self._turns = batch_size - sum(self._rows_always)
        # A pair of each class, then the next pair of each: every process's part of the batch has all classes.
        self._group_of_row = torch.tensor(
            [
                number
                for level in range(0, max(self._rows_always), rows)
                for number, n in enumerate(self._rows_always)
                for _ in range(min(rows, n - level))
            ],
            dtype=torch.int64,
        )

    def __call__(self, epoch: int) -> Tensor:
        """Returns the sample indices of an epoch, `[steps · batch_size]` int64."""
        before = epoch * self.steps
        turns = self._turn_draws(before * self._turns, self.steps * self._turns)
        turns = turns.repeat_interleave(self._rows_in_turn).reshape(self.steps, -1)
        group_of_row = torch.cat([self._group_of_row.expand(self.steps, -1), turns], 1).flatten()
        lengths = group_of_row.bincount(minlength=len(self._groups)).tolist()
        turns_before = self._turns_before(before * self._turns)
        images = []
        for number, (group, length) in enumerate(zip(self._groups, lengths, strict=True)):
            always = self._rows_always[number]
            start = before * always + turns_before[number] * self._rows_in_turn
            together = min(always + self._rows_in_turn, len(group))
            stream = (number + 2) * _STREAM
            images.append(group[_draws(self._seed, stream, len(group), start, length, together)])
        order = torch.empty_like(group_of_row)
        order[group_of_row.argsort(stable=True)] = torch.cat(images)
        return order

    def _turn_draws(self, start: int, length: int) -> Tensor:
        """Draws the groups that get rows in turn, `[length]` int64."""
        if length == 0:
            return torch.empty(0, dtype=torch.int64)
        count = len(self._in_turn)
        return torch.tensor(self._in_turn)[_draws(self._seed, _STREAM, count, start, length, self._turns)]

    def _turns_before(self, start: int) -> list[int]:
        """Counts the turns of each group among the first `start`."""
        turns = [0] * len(self._groups)
        if self._turns == 0:
            return turns
        passes, rest = divmod(start, len(self._in_turn))
        begun = set(self._turn_draws(passes * len(self._in_turn), rest).tolist())
        for number in self._in_turn:
            turns[number] = passes + (number in begun)
        return turns


def _check_labels(name: str, labels: Tensor, batch_size: int) -> None:
    counts = labels[labels >= 0].bincount()
    count = int(counts.sum())
    if count == 0:
        raise UserError(f"data: the method's batches are {name}, and no training image has a label")
    if count < batch_size:
        raise UserError(
            f"data.batch_size: {batch_size} is more than the {count} training images with a label, of "
            f"which {name} batches are made; choose at most {count}"
        )
    if name == "cluster_uniform":
        return
    if batch_size % 2:
        raise UserError(
            f"data.batch_size: {batch_size} is odd, and the method's batches hold pairs of images of a "
            "class; choose an even number"
        )
    if batch_size < 4:
        raise UserError(
            f"data.batch_size: {batch_size} is too small to hold two images of two classes; choose 4 or more"
        )
    if int(counts.max()) < 2:
        raise UserError(
            "data: the method's batches hold pairs of images of a class, and no class has two images with a "
            "label"
        )


def _joined_groups(classes: list[Tensor], rows: int) -> list[Tensor]:
    """Groups of at least `rows` images: the classes, those of one image two by two where `rows` is 2."""
    groups = sorted((images for images in classes if len(images) >= rows), key=len)
    single = [images for images in classes if len(images) < rows]
    groups += [torch.cat(single[i : i + 2]) for i in range(0, len(single) - 1, 2)]
    if len(single) % 2:
        groups[-1] = torch.cat([groups[-1], single[-1]])
    return groups


def _even_rows(sizes: list[int], batch_size: int) -> list[int]:
    """Rows of every batch that each class has: all alike, but never more than the class has images.

    Returns:
        One number per class; batch_size less their sum is smaller than the number of classes that have more
        images than rows.
    """
    level = 1
    while sum(min(size, level + 1) for size in sizes) <= batch_size and level < max(sizes):
        level += 1
    return [min(size, level) for size in sizes]


def _draws(seed: int, stream: int, count: int, start: int, length: int, together: int = 1) -> Tensor:
    """Returns a slice of an endless sequence of shuffled passes through 0 … count - 1.

    Args:
        seed: The run's seed.
        stream: Number of the first pass among all permutations of the seed.
        count: Members of a pass.
        start: Position of the first draw given.
        length: Draws given.
        together: So many draws in a row are all different, also across two passes; at most `count`.

    Returns:
        `[length]` int64.
    """
    passes = range(start // count, (start + length - 1) // count + 1)
    rows = torch.cat(
        [torch.empty(0, dtype=torch.int64), *(_pass(seed, stream, each, count, together) for each in passes)]
    )
    first = start - passes.start * count
    return rows[first : first + length]


def _pass(seed: int, stream: int, number: int, count: int, together: int) -> Tensor:
    """Draws one shuffled pass, `[count]` int64; it depends only on the previous pass as drawn."""
    order = permutation(seed, stream + number, count)
    edge = together - 1
    if edge == 0:
        return order
    if count >= 3 * edge:
        if number == 0:
            return order
        # The last `edge` of the pass before do not come among the first of this one. The end of a pass is
        # left as it was drawn: so a pass is known without all those before it.
        first, last = order[: count - edge], order[count - edge :]
        late = torch.isin(first, permutation(seed, stream + number - 1, count)[count - edge :])
        return torch.cat([first[~late], first[late], last])
    # Few members: they keep their block in every pass and are shuffled within it. Blocks of at most
    # count - together + 1 keep two draws of a member `together` apart.
    blocks = -(-count // (count - together + 1))
    place = permutation(seed, stream - 1, count)
    return order[(place[order] * blocks // count).argsort(stable=True)]
