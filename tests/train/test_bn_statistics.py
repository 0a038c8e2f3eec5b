"""Batch-norm statistics: re-estimated where a network is scored and shipped, and nowhere else."""

from __future__ import annotations

import json

import pytest
import torch
from small_training import Small, Watcher, assert_same, images
from torch import nn

from kdcompress.data.batch import Batch, View
from kdcompress.data.loader import EvaluationLoader
from kdcompress.errors import Interrupted
from kdcompress.networks.tapped import Tapped
from kdcompress.train import bn_statistics
from kdcompress.train.bn_statistics import (
    StatisticsImages,
    reestimate,
    reestimated,
    sample_size,
    shipping_size,
)


class Plain(nn.Module):
    """A batch norm behind a convolution that changes nothing, dropout, and a classifier."""

    def __init__(self, momentum=0.001):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.dirac_(self.conv.weight)
        self.bn = nn.BatchNorm2d(3, momentum=momentum)
        self.drop = nn.Dropout(0.5)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        return self.fc(self.pool(self.drop(self.bn(self.conv(x)))).flatten(1))


def tapped(network):
    return Tapped(network, "test/plain", image_size=(8, 8), channels=3, mean=(0.0,), std=(1.0,))


def batches(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        pixels = torch.rand(size, 3, 8, 8, generator=generator)
        index = torch.arange(size)
        yield Batch((View(pixels, index, -1),), torch.zeros(size, dtype=torch.int64), index)


def test_they_are_the_means_over_all_batches_weighted_by_size():
    network = Plain()
    given = list(batches(6, 2))
    assert reestimate(network, tapped(network), given) == 8
    means = [b.images.mean((0, 2, 3)) for b in given]
    variances = [b.images.var((0, 2, 3), correction=1) for b in given]
    for held, parts in ((network.bn.running_mean, means), (network.bn.running_var, variances)):
        assert torch.allclose(held, (6 * parts[0] + 2 * parts[1]) / 8, atol=1e-6)


def test_momentum_mode_and_the_count_of_steps_are_as_before():
    network = Plain(momentum=None)
    network.bn.num_batches_tracked.fill_(7)
    reestimate(network, tapped(network), batches(4, 4))
    assert network.bn.momentum is None
    assert network.bn.num_batches_tracked == 7
    assert not network.bn.training


def test_a_batch_of_one_image_is_left_out():
    network = Plain()
    before = network.bn.running_mean.clone()
    assert reestimate(network, tapped(network), batches(1, 1)) == 0
    assert torch.equal(network.bn.running_mean, before)


def test_the_end_comes_when_they_stand_still(monkeypatch):
    monkeypatch.setattr(bn_statistics, "MOST", 32)
    network = Plain()
    same = next(iter(batches(8)))
    assert reestimate(network, tapped(network), [same] * 100, until_converged=True) == 32
    network, moving = Plain(), []
    for number in range(100):
        batch = next(iter(batches(8, seed=number)))
        pixels = batch.images + number
        moving.append(Batch((View(pixels, batch.indices, -1),), batch.labels, batch.indices))
    assert reestimate(network, tapped(network), moving, until_converged=True) == 800


def test_after_the_block_they_are_what_they_were():
    network = Plain()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with reestimated(network, tapped(network), list(batches(8))):
        assert not torch.equal(network.bn.running_mean, before["bn.running_mean"])
    assert_same(dict(network.state_dict()), before)


@pytest.mark.parametrize(("count", "sample"), [(20, 20), (400, 64), (2_000, 100), (1_281_167, 2_048)])
def test_the_sample_is_a_share_of_the_images_within_bounds(count, sample):
    assert sample_size(count) == sample


@pytest.mark.parametrize(
    ("count", "seen", "images"),
    [(400, 40_000, 400), (2_000, 10_000, 1_000), (2_000, 48_000, 2_000), (60_000, 300_000, 15_000)],
)
def test_a_short_training_ships_with_statistics_of_fewer_images(count, seen, images):
    assert shipping_size(count, seen) == images


def test_five_epochs_of_two_thousand_images_spend_a_twentieth_on_statistics():
    """Counted in forward passes, of which a step costs three at least."""
    count, epochs = 2_000, 5
    passes = epochs * sample_size(count) + shipping_size(count, epochs * count)
    assert passes <= 0.05 * 3 * epochs * count


def with_statistics(folder, method="none", *, count=200, **more):
    """A training whose running statistics lag: ten steps at a momentum of 0.01."""
    watcher = more.pop("watcher", None)
    more = {"statistics": a_third_and_all, **more}
    small = Small(folder, method, count=count, batch_size=40, watcher=watcher, **more)
    networks = [small.student, *small.peers]
    for network in networks:
        for module in network.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.01
    return small


def a_third_and_all(source):
    """64 of the images for candidates, all for what ships."""
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    sample, every = (EvaluationLoader(source.subset(order[:n]), device="cpu") for n in (64, len(source)))
    return StatisticsImages(sample, every)


def test_a_network_with_lagging_statistics_ships_with_new_ones_and_scores_higher(tmp_path):
    small = with_statistics(tmp_path / "new")
    outcome = small.run()
    lagging = with_statistics(tmp_path / "old", statistics=None)
    old = lagging.run()
    facts = outcome.bn_statistics
    assert facts["shipped"] == "re-estimated"
    assert facts["images"] == 200
    assert facts["held_out"]["running"]["top1"] < outcome.best["top1"]
    assert outcome.best["top1"] == facts["held_out"]["re-estimated"]["top1"]
    assert outcome.best["top1"] > old.best["top1"]
    assert old.bn_statistics is None
    # The training itself is the same to the bit.
    assert_same(small.tensors(), lagging.tensors())
    weights = {k for k in outcome.state if "running" not in k}
    if outcome.epoch == old.epoch:
        assert_same({k: outcome.state[k] for k in weights}, {k: old.state[k] for k in weights})


def test_running_statistics_that_score_higher_ship(tmp_path):
    dark = images(200, 8)
    dark = type(dark)(dark.images // 64, dark.labels)  # of other images, so that they do not fit
    loader = EvaluationLoader(dark, device="cpu")
    small = with_statistics(tmp_path, statistics=lambda _: StatisticsImages(loader, loader))
    for module in small.student.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
    outcome = small.run()
    assert outcome.bn_statistics["shipped"] == "running"
    assert outcome.best["top1"] == outcome.bn_statistics["held_out"]["running"]["top1"]
    assert_same(outcome.state, {**outcome.state, **_running(small, outcome)})


def _running(small, outcome):
    best = small.trainer.choice.best["state"]
    return {key: value for key, value in best.items() if "running" in key}


def test_with_ship_last_the_best_epoch_keeps_its_own_figures(tmp_path):
    small = with_statistics(tmp_path, train={"epochs": 3, "ship": "last"})
    outcome = small.run()
    recorded = small.trainer.choice.best
    assert outcome.epoch == 3
    assert outcome.best == {key: value for key, value in recorded.items() if key != "state"}


def test_without_held_out_images_the_new_ones_ship(tmp_path):
    outcome = with_statistics(tmp_path, held_out=0).run()
    assert outcome.bn_statistics["shipped"] == "re-estimated"
    assert outcome.bn_statistics["held_out"] is None


@pytest.mark.parametrize("ship", ["best", "ensemble"])
def test_a_stopped_and_resumed_training_ends_in_the_same_bits(tmp_path, ship):
    train = {"epochs": 2, "ship": ship}
    whole = with_statistics(tmp_path / "whole", "dml", train=train).run()
    with pytest.raises(Interrupted):
        with_statistics(tmp_path / "cut", "dml", train=train, watcher=Watcher(7)).run()
    resumed = with_statistics(tmp_path / "cut", "dml", train=train).run()
    assert_same(whole.state, resumed.state)
    for name, state in whole.ensemble.items():
        assert_same(state, resumed.ensemble[name])
    told = [
        [json.loads(line)["held_out"] for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("whole", "cut")
    ]
    assert told[0] == told[1]


def test_an_average_of_weights_gets_statistics_of_its_own(tmp_path):
    outcome = with_statistics(tmp_path, train={"epochs": 4, "ema": 0.9, "ship": "ema"}).run()
    assert outcome.candidate == "ema"
    assert outcome.bn_statistics["held_out"]["re-estimated"]["top1"] > 0.25
