"""Batch-norm statistics are re-estimated on what a training step shows the student, for every method."""

from __future__ import annotations

import pytest
import torch
from small_training import Small, assert_same, images
from torch import nn

from kdcompress import discovery
from kdcompress.data.loader import EvaluationLoader
from kdcompress.methods.mixup import Mixup
from kdcompress.train.bn_statistics import StatisticsImages, reestimate


@pytest.mark.parametrize("name", discovery.names("method"))
def test_they_are_the_images_that_a_step_shows(name, tmp_path):
    small = Small(tmp_path, name, train={"epochs": 1})
    method, student = small.method, small.student
    first = next(module for module in student.network.modules() if isinstance(module, nn.Conv2d))
    steps, seen = [], []
    own_step = method.step

    def step(batch, minimise):
        if not steps:  # the first one only
            steps.append(batch)
            hook = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            own_step(batch, minimise)
            hook.remove()
        else:
            own_step(batch, minimise)

    method.step = step
    small.run()
    shown = rows(torch.cat(seen))
    if name == "mixskd":  # the share of a mixed image is drawn in each step
        assert rows(student.normalise(steps[0].images)) <= shown
        assert [len(x) for x in seen] == [len(method.statistics_images(steps[0].images))]
        return
    expected = [method.statistics_images(view.images) for view in steps[0].views]
    # Views differ by their augmentation; each of those that are turned has a turn of its own.
    expected = torch.cat([method.statistics_images(view.images) for view in steps[0].views])
    assert shown <= rows(student.normalise(expected))
    assert max(len(x) for x in seen) >= len(method.statistics_images(steps[0].images))


def test_mixed_images_have_the_shares_of_the_distribution():
    values = torch.arange(8, dtype=torch.float32).reshape(8, 1, 1, 1)
    mixed = Mixup(1.0).spread(values.expand(8, 3, 2, 2))
    shares = (torch.arange(8) + 0.5) / 8  # uniform
    expected = shares * values.flatten() + (1 - shares) * values.roll(1, 0).flatten()
    assert torch.allclose(mixed, expected.reshape(8, 1, 1, 1).expand_as(mixed))


@pytest.mark.parametrize("name", ["hsakd", "mixskd"])
def test_a_student_ships_with_the_statistics_of_these_images(name, tmp_path):
    source = images(40, 8, seed=3)
    shaded = (source.images * torch.linspace(0, 1, 8)[:, None]).to(torch.uint8)  # dark above, so turns differ
    loader = EvaluationLoader(type(source)(shaded, source.labels), device="cpu")
    given = StatisticsImages(loader, loader)
    small = Small(tmp_path, name, train={"epochs": 1}, held_out=0, statistics=lambda _: given)
    shipped = small.run().state
    network = small.student.network
    network.load_state_dict(shipped)
    reestimate(network, small.student, loader, shown=small.method.statistics_images)
    assert_same(network.state_dict(), shipped)
    reestimate(network, small.student, loader)
    first = next(key for key in shipped if key.endswith("running_mean"))
    assert not torch.allclose(network.state_dict()[first], shipped[first], rtol=0.01)


def rows(images):
    return {row.numpy().tobytes() for row in images.detach().cpu()}
