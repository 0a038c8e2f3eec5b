from __future__ import annotations

import contextlib
import dataclasses
from typing import ClassVar

import pytest
import torch

from kdcompress.data import dataset
from kdcompress.data.batch import DataInfo, no_labels
from kdcompress.data.class_weights import scaled_class_weights
from kdcompress.data.dataset import open_data
from kdcompress.data.loader import EvaluationLoader, TrainingLoader
from kdcompress.data.statistics import channel_statistics
from kdcompress.errors import DataError, UserError
from kdcompress.recipe import DataSection


def digits(channels=(1, 3), **more):
    return open_data(DataSection(dataset="digits", **more), channels=frozenset(channels))


def test_grey_is_repeated_where_the_networks_want_colour():
    data = digits(channels=(3,))
    assert data.channels == data.input_spec().channels == 3
    assert data.mean == digits().mean * 3
    assert data.test.evaluation_images(torch.arange(2)).shape == (2, 3, 8, 8)


def test_networks_that_agree_on_no_channels_are_an_error():
    with pytest.raises(DataError, match="the networks accept no common number"):
        digits(channels=())


def test_another_size_is_resized_to_and_written_into_the_input_specification():
    data = digits(image_size=16)
    assert data.image_size == (16, 16)
    assert data.train.training_images(torch.arange(3), 0, 0).shape == (3, 1, 16, 16)
    spec = data.input_spec()
    assert (spec.height, spec.width, spec.resize, spec.crop) == (16, 16, 16, 16)
    assert data.mean == digits().mean
    assert digits(image_size=8).input_spec().resize is None


def test_held_out_is_a_share_a_number_or_nothing():
    assert digits(held_out=0.2).counts["held_out"] == 359
    assert digits(held_out=100.0).counts["held_out"] == 100
    nothing = digits(held_out=0.0)
    assert nothing.held_out is None
    assert nothing.counts == {"train": 1617, "held_out": 0, "test": 180, "broken": 0}
    with pytest.raises(DataError, match="at most"):
        digits(held_out=5000.0)


def test_the_test_split_does_not_move_with_held_out():
    assert torch.equal(digits(held_out=0.0).test.images, digits(held_out=0.3).test.images)


def test_a_named_augmentation_goes_before_the_usual_one():
    data = digits(augment="none")
    assert data.augment == data.train.preset == "none"
    assert digits(augment="weak").augment == digits().augment == "crop"
    strong = digits(augment="strong")
    assert strong.augment == strong.train.preset == "crop+strong"  # no mirror image: these are digits
    assert digits(augment="simsiam").augment == "simsiam"


def test_the_information_for_methods_is_of_the_training_split():
    data = digits()
    info = data.info("balanced", 0.1)
    assert torch.equal(info.labels, data.train.labels)
    assert (info.num_classes, info.channels, info.image_size, info.label_smoothing) == (10, 1, (8, 8), 0.1)
    for _ in range(2):  # each call opens the batches anew
        batches = list(info.held_out())
        assert torch.equal(torch.cat([batch.labels for batch in batches]), data.held_out.labels)
    assert info.class_weights[info.labels].mean() == pytest.approx(1.0, abs=1e-5)
    assert list(digits(held_out=0.0).info().held_out()) == []
    assert list(DataInfo(2, no_labels(4), (8, 8), 1).held_out()) == []


class WatchedLoader(EvaluationLoader):
    events: ClassVar[list[str]] = []

    def __init__(self, *args, **settings):
        self.events.append("opened")
        super().__init__(*args, **settings)

    def close(self):
        self.events.append("closed")
        super().close()


def test_held_out_batches_are_opened_when_they_are_read_and_closed_with_the_iteration(monkeypatch):
    monkeypatch.setattr(dataset, "EvaluationLoader", WatchedLoader)
    events = WatchedLoader.events
    info = digits().info(batch_size=100)
    batches = info.held_out()
    assert events == []
    assert len(next(batches)) == 100
    assert events == ["opened"]
    assert len(list(batches)) == 1
    assert events == ["opened", "closed"]
    with contextlib.closing(info.held_out()) as begun:
        next(begun)
    assert events == ["opened", "closed"] * 2


def test_the_batch_that_methods_hear_of_is_the_loaders():
    data = digits()
    for asked, known in ((64, 64), (5000, len(data.train)), (0, 0)):
        assert data.info(train_batch_size=asked).batch_size == known
    loader = TrainingLoader(data.train, batch_size=5000, seed=0, augment="none", device="cpu")
    assert loader.batch_size == data.info(train_batch_size=5000).batch_size


def test_statistics_are_exact():
    images = torch.tensor([[[[0, 255]], [[51, 51]]]], dtype=torch.uint8)
    assert channel_statistics(images) == ((0.5, 0.2), (0.5, 1.0))  # a flat channel is divided by 1


def test_balanced_weights_are_inverse_to_frequency():
    labels = torch.tensor([0, 0, 0, 1, -1])
    weights = scaled_class_weights("balanced", labels, 2)
    assert torch.allclose(weights, torch.tensor([2 / 3, 2.0]))
    assert scaled_class_weights("none", labels, 2) is None
    assert scaled_class_weights(None, labels, 2) is None


def test_given_weights_are_scaled_to_a_mean_of_one_over_the_images():
    labels = torch.tensor([0, 0, 0, 1])
    weights = scaled_class_weights([1, 5], labels, 2)
    assert torch.allclose(weights, torch.tensor([0.5, 2.5]))
    assert weights[labels].mean() == 1


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([1.0], "expected 2 numbers, one per class, got 1"),
        ([1.0, -1.0], "from 0 on"),
        ([0.0, 0.0], "positive one"),
        ([1.0, float("nan")], "from 0 on"),
    ],
)
def test_weights_that_fit_no_class_are_refused(weights, sentence):
    with pytest.raises(UserError, match=sentence):
        scaled_class_weights(weights, torch.tensor([0, 1]), 2)


def labels_of(data):
    return data.train.labels


def test_a_number_of_labels_is_stratified_and_the_same_for_everybody():
    data = digits(labels=100)
    known = labels_of(data) >= 0
    assert int(known.sum()) == data.labelled == 100
    assert (torch.bincount(labels_of(data)[known]) >= 9).all()
    assert torch.equal(labels_of(data), labels_of(digits(labels=100)))
    everything = labels_of(digits())
    assert torch.equal(labels_of(data)[known], everything[known])
    assert (data.held_out.labels >= 0).all()
    assert (data.test.labels >= 0).all()


def test_who_learns_from_labels_alone_gets_the_labelled_images_others_get_pools():
    data = digits(labels=100)
    alone = data.for_method(labels=True, unlabelled=False)
    assert len(alone.train) == 100
    assert alone.pools == ()
    assert (alone.train.labels >= 0).all()
    both = data.for_method(labels=True, unlabelled=True)
    assert len(both.train) == len(data.train)
    labelled, unlabelled = both.pools
    assert labelled.share == unlabelled.share == 0.5
    assert (labels_of(data)[labelled.indices] >= 0).all()
    assert (labels_of(data)[unlabelled.indices] == -1).all()
    assert data.for_method(labels=False, unlabelled=True).pools == ()
    mostly = digits(labels=1000).for_method(labels=True, unlabelled=True)
    assert mostly.pools[0].share == 1000 / len(data.train)


def test_no_labels_hides_those_of_training_and_choice_and_leaves_those_of_the_test():
    data = digits(labels="none")
    assert (labels_of(data) == -1).all()
    assert (data.held_out.labels == -1).all()
    assert (data.test.labels >= 0).all()
    assert data.num_classes == 10
    with pytest.raises(UserError, match="no training image has a label to weight"):
        data.info(class_weights="balanced")


@pytest.mark.parametrize("count", [9, 100_000])
def test_labels_that_cannot_be_had_are_refused(count):
    with pytest.raises(DataError, match=rf"data\.labels: {count} of \d+ training labels in 10 classes"):
        digits(labels=count)


def test_batches_that_draw_every_class_equally_often_need_no_weights():
    data = digits(held_out=0.0)
    labels = labels_of(data)
    keep = torch.cat([(labels == 0).nonzero().flatten()[:20], (labels != 0).nonzero().flatten()])
    unequal = dataclasses.replace(data, train=data.train.subset(keep))
    assert unequal.info("auto").class_weights[0] > 3
    for asked in ("auto", "balanced"):
        assert unequal.info(asked, order="class_paired").class_weights is None
    own = [2.0, *[1.0] * 9]
    weights = unequal.info(own, order="class_paired").class_weights
    # Of mean 1 over the images that are drawn: each class equally often.
    assert weights.mean().item() == pytest.approx(1)
    assert weights[0].item() == pytest.approx(2 * weights[1].item())
