from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from small_training import Small

from kdcompress.errors import NetworkError
from kdcompress.methods import losses

NAMES = ("sad", "spkd_self", "scd")


@pytest.mark.parametrize("name", NAMES)
def test_the_term_begins_after_its_share_of_the_epochs(name, tmp_path):
    small = Small(tmp_path, name, config={"start_share": 0.5})
    batch = next(small.loader.epoch(0))
    begun = []
    for epoch in range(4):
        small.method.on_epoch_start(epoch, 4)
        begun.append("stages" in small.method.losses(batch))
    assert begun == [False, False, True, True]
    small.method.on_epoch_start(0, 1)
    assert "stages" in small.method.losses(batch)


@pytest.mark.parametrize("name", NAMES)
def test_stages_imitate_the_next_one_or_the_deepest(name, tmp_path):
    stages = list(Small(tmp_path, name).student.shapes().stages)
    assert Small(tmp_path, name).method.pairs == [(stages[0], stages[1]), (stages[1], stages[2])]
    deepest = Small(tmp_path, name, config={"imitates": "deepest"}).method.pairs
    assert deepest == [(stages[0], stages[2]), (stages[1], stages[2])]


@pytest.mark.parametrize("name", NAMES)
def test_the_deeper_stage_is_a_constant(name, tmp_path):
    method = Small(tmp_path, name).method
    shallow = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    deep = torch.randn(4, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    method.compare(shallow, deep).backward()
    assert shallow.grad.abs().max() > 0
    assert deep.grad is None


def test_maps_that_are_active_at_the_same_places_cost_nothing():
    map_BCHW = torch.rand(3, 4, 6, 6, dtype=torch.float64)
    assert losses.energy_difference(map_BCHW, map_BCHW).item() == 0
    assert losses.map_similarity_difference(map_BCHW, map_BCHW).item() == 0
    other = losses.energy_difference(map_BCHW, map_BCHW.flip(3))
    assert other.item() > 0


def test_a_network_of_one_stage_is_refused_with_the_reason(tmp_path):
    method = Small(tmp_path, "scd").method
    method.networks.student.shapes = lambda: SimpleNamespace(stages={"stage1": torch.empty(2, 3, 4, 4)})
    with pytest.raises(NetworkError, match=r"method scd: needs two stages or more .*, cifar/resnet8 has 1"):
        type(method)(method.config, method.networks, method.data)


@pytest.mark.parametrize("name", NAMES)
def test_a_map_of_one_pixel_says_nothing_about_places_and_is_not_imitated(name, tmp_path):
    method = Small(tmp_path, name).method
    sizes = {"stage1": 4, "stage2": 2, "stage3": 1}
    maps = {stage: torch.empty(2, 3, side, side) for stage, side in sizes.items()}
    method.networks.student.shapes = lambda: SimpleNamespace(stages=maps)
    pairs = type(method)(method.config, method.networks, method.data).pairs
    # Similarities between images need no places.
    assert pairs == [("stage1", "stage2"), *([("stage2", "stage3")] if name == "spkd_self" else [])]
    del maps["stage1"]
    if name != "spkd_self":
        with pytest.raises(NetworkError, match="needs two stages or more whose maps have more than one"):
            type(method)(method.config, method.networks, method.data)
