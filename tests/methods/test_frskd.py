from __future__ import annotations

import pytest
import torch
from small_training import Small

from kdcompress.errors import NetworkError
from kdcompress.methods.selfkd.frskd import FRSKD, FeaturePyramid, WeightedFusion, resized


@pytest.mark.parametrize(
    "sizes", [[(8, 8), (4, 4), (2, 2)], [(7, 9), (4, 5), (4, 5)], [(9, 9), (3, 3), (5, 1)]]
)
def test_refined_maps_have_the_stages_sizes_and_a_multiple_of_their_channels(sizes):
    channels = [3, 4, 6]
    maps = [torch.rand(2, c, *size) for c, size in zip(channels, sizes, strict=True)]
    logits, refined = FeaturePyramid(channels, 10, width=2)(maps)
    assert logits.shape == (2, 10)
    assert [tuple(r.shape) for r in refined] == [
        (2, 2 * c, *size) for c, size in zip(channels, sizes, strict=True)
    ]
    assert all((r >= 0).all() for r in refined)


def test_every_map_has_a_part_in_the_self_teachers_logits():
    torch.manual_seed(0)
    channels = [3, 4, 6, 8]
    maps = [torch.rand(2, c, 2 ** (4 - i), 2 ** (4 - i), requires_grad=True) for i, c in enumerate(channels)]
    FeaturePyramid(channels, 10)(maps)[0].square().sum().backward()
    assert all(m.grad.any() for m in maps)


def test_deep_maps_reach_the_shallowest_refined_map():
    torch.manual_seed(0)
    maps = [torch.rand(2, c, 4, 4, requires_grad=True) for c in (3, 4, 6)]
    FeaturePyramid([3, 4, 6], 10)(maps)[1][0].square().sum().backward()
    assert maps[2].grad.any()


def test_a_fusion_weighs_maps_by_shares_and_drops_what_has_a_negative_weight():
    fusion = WeightedFusion(3, 1, depth=1)
    fusion.block = torch.nn.Identity()
    fusion.weights.data = torch.tensor([1.0, 3.0, -2.0])
    maps = [torch.full((1, 1, 1, 1), value) for value in (4.0, 8.0, 1000.0)]
    assert fusion(maps).item() == pytest.approx(7.0, rel=1e-5)


def test_maps_shrink_by_a_maximum_and_grow_by_repetition():
    rising = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resized(rising, torch.empty(1, 1, 2, 2)).flatten().tolist() == [5, 7, 13, 15]
    small = torch.tensor([[[[1.0, 2.0]]]])
    assert resized(small, torch.empty(1, 1, 2, 4)).squeeze().tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    assert resized(rising, torch.empty(1, 5, 4, 4)) is rising


def test_the_network_learns_from_constants_and_the_self_teacher_from_labels_alone(tmp_path):
    method = Small(tmp_path, "frskd").method
    logits, taught = (torch.randn(4, 4, requires_grad=True) for _ in range(2))
    maps = [torch.rand(4, 3, 2, 2, requires_grad=True) for _ in range(2)]
    refined = [torch.rand(4, 6, 2, 2, requires_grad=True) for _ in range(2)]
    terms = method.terms(logits, taught, maps, refined, torch.arange(4))
    (terms["soft"] + terms["attention"]).backward()
    assert taught.grad is None
    assert all(r.grad is None for r in refined)
    assert logits.grad.any()
    assert all(m.grad.any() for m in maps)
    terms["ce_self_teacher"].backward()
    assert taught.grad.any()


def test_the_self_teachers_labels_also_teach_the_stages_of_the_network(tmp_path):
    small = Small(tmp_path, "frskd")
    small.method.losses(next(small.loader.epoch(0)))["ce_self_teacher"].backward()
    assert small.student.network.conv1.weight.grad.any()
    assert small.student.classifier.weight.grad is None


def test_terms_have_the_weights_of_the_config(tmp_path):
    terms = []
    for factor in (1, 3):
        config = {"soft_weight": 0.5 * factor, "attention_weight": 10.0 * factor}
        small = Small(tmp_path / str(factor), "frskd", config=config)
        terms.append(small.method.losses(next(small.loader.epoch(0))))
    for name, ratio in {"ce": 1, "ce_self_teacher": 1, "soft": 3, "attention": 3}.items():
        assert (terms[1][name] / terms[0][name]).item() == pytest.approx(ratio, rel=1e-5), name


def test_a_network_of_one_stage_is_refused_with_what_to_change(tmp_path):
    small = Small(tmp_path, "frskd")
    networks = small.method.networks
    whole = networks.student.shapes()
    one = type(whole)(logits=whole.logits, pooled=whole.pooled, stages={"stage1": whole.stages["stage1"]})
    networks.student.shapes = lambda: one
    with pytest.raises(NetworkError, match=r"two stages or more; cifar/resnet8 has 1 at 8x8.*student.taps"):
        FRSKD(small.method.config, networks, small.method.data)
