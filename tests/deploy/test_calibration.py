from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcompress.deploy.calibration import BATCH, calibration, draw_balanced


def counts(labels, taken):
    return torch.bincount(labels[taken] + 1, minlength=5).tolist()


def test_every_class_gives_as_many_images():
    labels = torch.cat([torch.zeros(500), torch.ones(40), torch.full((60,), 2)]).long()
    taken = draw_balanced(labels, 30, 0)
    assert counts(labels, taken)[1:4] == [10, 10, 10]
    assert len(set(taken.tolist())) == 30


def test_what_a_small_class_lacks_the_others_give_in_equal_parts():
    labels = torch.cat([torch.zeros(500), torch.ones(4), torch.full((60,), 2)]).long()
    assert counts(labels, draw_balanced(labels, 30, 0))[1:4] == [13, 4, 13]


def test_the_first_of_them_are_balanced_too():
    labels = torch.arange(300) // 100  # in the order of the classes, as folders are
    assert sorted(labels[draw_balanced(labels, 60, 3)[:6]].tolist()) == [0, 0, 1, 1, 2, 2]


def test_the_seed_decides_and_nothing_else():
    labels = torch.arange(200) % 4
    assert torch.equal(draw_balanced(labels, 20, 5), draw_balanced(labels, 20, 5))
    assert not torch.equal(draw_balanced(labels, 20, 5), draw_balanced(labels, 20, 6))


def test_images_without_labels_are_drawn_from_all_over_the_set():
    labels = torch.full((1000,), -1)
    taken = draw_balanced(labels, 200, 0)
    assert len(set(taken.tolist())) == 200
    assert [int(((taken >= start) & (taken < start + 250)).sum()) for start in range(0, 1000, 250)] == [
        pytest.approx(50, abs=20)
    ] * 4


def test_unlabelled_images_count_as_one_more_class():
    labels = torch.cat([torch.full((400,), -1), torch.arange(40) % 2])
    assert counts(labels, draw_balanced(labels, 30, 0))[:3] == [10, 10, 10]


def test_more_than_there_are_is_all_of_them():
    assert sorted(draw_balanced(torch.zeros(7).long(), 128, 0).tolist()) == list(range(7))


def test_the_images_come_in_small_batches_and_have_a_hash():
    everything = torch.randint(0, 256, (50, 1, 4, 4), generator=torch.Generator().manual_seed(0)) / 255
    labels = torch.arange(50) % 5

    def read(at):
        return everything[at].split(9)

    one, again, other = (calibration(labels, read, 40, seed) for seed in (0, 0, 1))
    assert len(one) == 40
    assert [len(batch) for batch in one.batches] == [BATCH, BATCH, 8]
    assert one.batches[0].dtype == np.float32
    np.testing.assert_array_equal(one.first(20), everything[draw_balanced(labels, 40, 0)[:20]].numpy())
    assert one.sha256 == again.sha256 != other.sha256
    assert one.to_json() == {"split": "train", "images": 40, "seed": 0, "sha256": one.sha256}
