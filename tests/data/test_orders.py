"""Composition of every batch, evenness over epochs, and that an order depends on (seed, epoch) alone."""

from __future__ import annotations

import pytest
import torch

from kdcompress.data.loader import TrainingLoader
from kdcompress.data.orders import _draws, batch_order
from kdcompress.data.pools import Pool
from kdcompress.data.random_bits import permutation
from kdcompress.data.source import MemorySource
from kdcompress.errors import UserError


def labels_of(sizes, unlabelled=0):
    """Labels of classes of these sizes, mixed, and images without a label among them."""
    labels = torch.cat(
        [torch.full((size,), c) for c, size in enumerate(sizes)] + [torch.full((unlabelled,), -1)]
    )
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(4))]


def batches(name, labels, batch_size, epochs, seed=0):
    """`[E · S, B]` sample indices."""
    order = batch_order(name, labels, batch_size=batch_size, seed=seed)
    drawn = [order(epoch) for epoch in range(epochs)]
    assert all(len(each) == order.steps * batch_size for each in drawn)
    return torch.cat(drawn).reshape(-1, batch_size)


MANY_CLASSES = [7, 5, 2, 3, 11, 6, 4, 9, 2, 3, 8, 5]  # more than half of a batch of 16
FEW_CLASSES = [40, 31, 3, 25, 18]
PAIRED = [(MANY_CLASSES, 16), ([8] * 100, 128), (FEW_CLASSES, 16), ([2, 2], 4), ([5] * 8, 16), ([3] * 7, 4)]
UNIFORM = [*PAIRED, (MANY_CLASSES, 6), (FEW_CLASSES, 17), ([1, 1, 9, 30], 10), ([4] * 50, 31)]
CASES = [("class_paired", *case) for case in PAIRED] + [("cluster_uniform", *case) for case in UNIFORM]


def test_shuffled_is_the_permutation_of_the_epoch_without_its_incomplete_batch():
    order = batch_order("shuffled", torch.zeros(22), batch_size=4, seed=5)
    assert order.steps == 5
    assert all(torch.equal(order(epoch), permutation(5, epoch, 22)[:20]) for epoch in range(3))


def test_a_set_smaller_than_a_batch_is_one_batch_of_all():
    order = batch_order("shuffled", torch.zeros(5), batch_size=64, seed=0)
    assert order.steps == 1
    assert sorted(order(0).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("name", "sizes", "batch_size"), CASES)
def test_an_order_is_a_function_of_seed_and_epoch(name, sizes, batch_size):
    labels = labels_of(sizes, unlabelled=3)
    whole = batch_order(name, labels, batch_size=batch_size, seed=1)
    epochs = [whole(epoch) for epoch in range(4)]
    fresh = batch_order(name, labels, batch_size=batch_size, seed=1)
    assert torch.equal(fresh(3), epochs[3])  # no earlier epoch was asked for
    assert torch.equal(fresh(1), epochs[1])
    if max(sizes) > 2:
        assert not torch.equal(epochs[0], epochs[1])
        assert not torch.equal(batch_order(name, labels, batch_size=batch_size, seed=2)(0), epochs[0])


@pytest.mark.parametrize(("name", "sizes", "batch_size"), CASES)
def test_no_image_stands_twice_in_a_batch_and_none_without_a_label_does(name, sizes, batch_size):
    labels = labels_of(sizes, unlabelled=9)
    drawn = batches(name, labels, batch_size, epochs=6)
    assert (labels[drawn] >= 0).all()
    assert (drawn.sort(1).values.diff(dim=1) > 0).all()


@pytest.mark.parametrize(("name", "sizes", "batch_size"), CASES)
def test_the_images_of_a_class_are_drawn_equally_often_at_any_time(name, sizes, batch_size):
    labels = labels_of(sizes)
    drawn = batches(name, labels, batch_size, epochs=9)
    for steps in range(1, len(drawn) + 1):
        counts = drawn[:steps].flatten().bincount(minlength=len(labels))
        for label in range(len(sizes)):
            of_class = counts[labels == label]
            assert of_class.max() - of_class.min() <= 1
    assert counts.min() > 0


@pytest.mark.parametrize(("sizes", "batch_size"), [(MANY_CLASSES, 16), ([8] * 100, 128), ([3] * 7, 4)])
def test_pairs_of_half_as_many_classes_as_rows_each_class_equally_often(sizes, batch_size):
    labels = labels_of(sizes)
    drawn = batches("class_paired", labels, batch_size, epochs=5)
    of_row = labels[drawn].reshape(len(drawn), -1, 2)
    assert torch.equal(of_row[:, :, 0], of_row[:, :, 1])  # partners are neighbours
    assert (of_row[:, :, 0].sort(1).values.diff(dim=1) > 0).all()  # the classes of a batch differ
    visits = of_row[:, :, 0].flatten().bincount(minlength=len(sizes))
    assert visits.max() - visits.min() <= 1


def test_with_few_classes_every_batch_holds_all_as_evenly_as_they_allow():
    labels = labels_of([40, 31, 25, 18, 3])
    drawn = batches("class_paired", labels, 17 + 1, epochs=5)
    rows = torch.stack([labels[batch].bincount(minlength=5) for batch in drawn])
    assert (rows[:, 4] == 3).all()  # all that the class has
    assert set(rows[:, :4].flatten().tolist()) == {3, 4}
    assert (rows[:, :4].sum(1) == 15).all()
    assert rows.sum(0)[:4].max() - rows.sum(0)[:4].min() <= 1  # who gets one more takes turns


def test_every_process_has_images_of_every_class_where_classes_are_few():
    labels = labels_of([30] * 5)
    drawn = batches("class_paired", labels, 20, epochs=2)
    for part in drawn.split(10, 1):
        assert all(len(labels[rows].unique()) == 5 for rows in part)


def test_partners_change():
    labels = labels_of([6] * 12)
    pairs = batches("class_paired", labels, 16, epochs=60).reshape(-1, 2).sort(1).values
    met = {tuple(pair) for pair in pairs.tolist()}
    assert len(met) == 12 * 15  # all pairs of all classes


def test_images_of_classes_of_one_are_drawn_alone():
    labels = labels_of([5, 4, 6, 5, 1, 1, 1])
    drawn = batches("class_paired", labels, 8, epochs=20)
    alone = 0
    for batch in labels[drawn]:
        counts = batch.bincount(minlength=7)
        assert set(counts[:4].tolist()) <= {0, 2}
        assert counts[4:].max() <= 1
        alone += int(counts[4:].sum())
    assert alone > 0
    odd = labels_of([5, 4, 9, 5, 1])
    counts = batches("class_paired", odd, 8, epochs=20).flatten().bincount(minlength=len(odd))
    assert counts[odd == 4] > 0


def test_clusters_are_drawn_equally_often_and_empty_ones_never():
    labels = labels_of([3, 0, 50, 12, 0, 7])
    counts = labels[batches("cluster_uniform", labels, 3, epochs=5)].flatten().bincount(minlength=6)
    assert counts[[1, 4]].tolist() == [0, 0]
    filled = counts[[0, 2, 3, 5]]
    assert filled.max() - filled.min() <= 1
    for batch in labels[batches("cluster_uniform", labels, 12, epochs=2)]:
        assert batch.bincount(minlength=6).tolist() == [3, 0, 3, 3, 0, 3]


@pytest.mark.parametrize("name", ["class_paired", "cluster_uniform"])
def test_processes_together_see_what_one_sees(name):
    stock = MemorySource(torch.zeros(60, 1, 4, 4, dtype=torch.uint8), labels_of([12] * 5))

    def indices(**more):
        order = batch_order(name, stock.labels, batch_size=12, seed=0)
        loader = TrainingLoader(
            stock, batch_size=12, seed=0, augment="none", device="cpu", order=order, **more
        )
        return [batch.indices for batch in loader.epoch(1, start_step=2)]

    parts = [indices(rank=rank, world=3) for rank in range(3)]
    for step, batch in enumerate(indices()):
        assert torch.equal(torch.cat([part[step] for part in parts]), batch)


@pytest.mark.parametrize("together", [1, 2, 3, 4, 5, 9, 10])
@pytest.mark.parametrize("start", [0, 7, 23])
def test_draws_in_a_row_differ_and_the_sequence_is_one(together, start):
    count = 10
    drawn = _draws(3, 1 << 40, count, 0, 400, together)
    windows = drawn.unfold(0, together, 1)
    assert (windows.sort(1).values.diff(dim=1) > 0).all()
    assert all(sorted(each.tolist()) == list(range(count)) for each in drawn.split(count))
    assert torch.equal(_draws(3, 1 << 40, count, start, 31, together), drawn[start : start + 31])
    assert len(_draws(3, 1 << 40, count, start, 0, together)) == 0


@pytest.mark.parametrize(
    ("name", "sizes", "batch_size", "sentence"),
    [
        ("class_paired", [], 4, "no training image has a label"),
        ("cluster_uniform", [], 4, "no training image has a label"),
        ("class_paired", [3, 3], 8, "8 is more than the 6 training images with a label"),
        ("class_paired", [3, 3], 5, "5 is odd"),
        ("class_paired", [3, 3], 2, "2 is too small to hold two images of two classes"),
        ("class_paired", [1] * 8, 4, "no class has two images"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(name, sizes, batch_size, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        batch_order(name, labels_of(sizes, unlabelled=9), batch_size=batch_size, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["class_paired", "cluster_uniform"])
def test_groups_and_fixed_shares_exclude_each_other(name):
    pools = (Pool("real", torch.arange(6), 0.5), Pool("generated", torch.arange(6, 12), 0.5))
    with pytest.raises(
        UserError, match=rf"{name}, .*several kinds \(real, generated\); leave data\.extra out"
    ):
        batch_order(name, labels_of([6, 6]), batch_size=4, seed=0, pools=pools)
