from __future__ import annotations

import pytest
import torch

from kdcompress.data.splits import stratified
from kdcompress.errors import DataError


def counts(labels, indices):
    return torch.bincount(labels[indices], minlength=int(labels.max()) + 1).tolist()


def test_every_class_gives_its_share():
    labels = torch.arange(10).repeat_interleave(100)
    kept, cut = stratified(labels, 0.1)
    assert counts(labels, cut) == [10] * 10
    assert sorted(torch.cat([kept, cut]).tolist()) == list(range(1000))


def test_a_number_is_met_exactly():
    labels = torch.tensor([0] * 70 + [1] * 23 + [2] * 7)
    for count in range(3, 50):
        kept, cut = stratified(labels, count)
        assert len(cut) == count
        assert len(kept) == 100 - count
        assert min(counts(labels, cut)) >= 1
        assert min(counts(labels, kept)) >= 1
    assert counts(labels, stratified(labels, 10)[1]) == [7, 2, 1]


def test_a_class_of_one_image_stays_in_training():
    labels = torch.tensor([0] * 20 + [1] + [2, 2])
    kept, cut = stratified(labels, 5)
    assert counts(labels, kept)[1] == 1
    assert counts(labels, cut)[1:] == [0, 1]


def test_the_smallest_share_is_one_image():
    assert len(stratified(torch.tensor([0, 0, 0, 1, 1]), 0.01)[1]) == 1


def test_the_cut_is_the_same_every_time_and_moves_with_the_seed_alone():
    labels = torch.arange(5).repeat(40)
    first, again, other = stratified(labels, 0.2), stratified(labels, 0.2), stratified(labels, 0.2, seed=1)
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(first[1], first[1].sort().values)


def test_a_cut_that_would_empty_a_class_is_refused():
    labels = torch.tensor([0, 0, 1, 1])
    assert len(stratified(labels, 2)[1]) == 2
    with pytest.raises(DataError, match="at most 2 can be"):
        stratified(labels, 3)
    with pytest.raises(DataError, match="at most 0 can be"):
        stratified(torch.tensor([0, 1]), 0.5)
