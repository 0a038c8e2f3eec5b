from __future__ import annotations

import pytest
import torch

from kdcompress.methods import losses
from kdcompress.networks.activations import Activations


def shapes(*maps):
    stages = {
        f"stage{i}": torch.empty(2, *chw, device="meta")
        for i, chw in enumerate(((c, s, s) if isinstance(s, int) else (c, *s) for c, s in maps), start=1)
    }
    return Activations(stages=stages)


RESNET50 = shapes((256, 56), (512, 28), (1024, 14), (2048, 7))
MOBILENET_V3_SMALL = shapes((16, 112), (16, 56), (24, 28), (48, 14), (576, 7))


def names(found):
    return [(pair.student[-1] + pair.teacher[-1]) for pair in found]


def test_stages_pair_by_resolution_and_not_by_counting():
    assert names(losses.pairs(MOBILENET_V3_SMALL, RESNET50)) == ["21", "32", "43", "54"]
    assert names(losses.pairs(RESNET50, MOBILENET_V3_SMALL)) == ["12", "23", "34", "45"]


def test_a_pair_knows_both_shapes():
    deepest = losses.pairs(MOBILENET_V3_SMALL, RESNET50)[-1]
    assert deepest == losses.pair(MOBILENET_V3_SMALL, RESNET50, "stage5", "stage4")
    assert (deepest.student_shape, deepest.teacher_shape) == ((576, 7, 7), (2048, 7, 7))
    assert deepest.same_size
    assert not deepest.same_channels
    assert deepest.pixels == 49


def test_the_deepest_stage_pairs_with_the_deepest_whatever_their_sizes():
    student, teacher = shapes((8, 16), (16, 8), (32, 4), (64, 2)), shapes((8, 32), (16, 16), (32, 8))
    # The student's 8×8 stays out: its counterpart is taken by the deepest.
    assert names(losses.pairs(student, teacher)) == ["12", "43"]
    assert not losses.pairs(student, teacher)[-1].same_size
    assert losses.pairs(student, teacher)[-1].pixels == 4
    assert names(losses.pairs_of_one_size(student, teacher)) == ["12", "23"]


def test_sizes_that_differ_by_rounding_pair_and_those_of_another_resolution_do_not():
    down_rounded, up_rounded = shapes((8, 33), (8, 16), (8, 8)), shapes((8, 33), (8, 17), (8, 9))
    assert names(losses.pairs(down_rounded, up_rounded)) == ["11", "22", "33"]
    assert names(losses.pairs_of_one_size(down_rounded, up_rounded)) == ["11"]
    assert names(losses.pairs(shapes((8, 3), (8, 1)), shapes((8, 2), (8, 1)))) == ["22"]


def test_maps_that_are_not_square_pair_by_both_sides():
    student, teacher = shapes((8, (16, 8)), (8, (4, 2))), shapes((8, (8, 16)), (8, (4, 2)))
    assert names(losses.pairs(student, teacher)) == ["22"]


def test_of_several_stages_of_one_resolution_the_deepest_pair_first():
    twice, once = shapes((8, 8), (8, 8), (16, 4)), shapes((8, 8), (16, 4))
    assert names(losses.pairs(twice, once)) == ["21", "32"]
    assert names(losses.pairs(once, twice)) == ["12", "23"]


@pytest.mark.parametrize("pairing", [losses.pairs, losses.pairs_of_one_size])
def test_a_network_without_stages_has_no_pairs(pairing):
    assert pairing(shapes(), RESNET50) == ()
    assert pairing(RESNET50, shapes()) == ()


def test_errors_say_what_the_stages_are():
    described = losses.stage_maps("cifar/resnet8", shapes((16, 8), (32, 4)))
    assert described == "cifar/resnet8 (stage1 16×8×8, stage2 32×4×4)"
    assert losses.stage_maps("timm/vit", shapes()) == "timm/vit (no stages)"
