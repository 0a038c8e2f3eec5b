from __future__ import annotations

import pytest
import torch
from small_training import Small

from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.offline.reviewkd import Fusion, ReviewKD


def test_scales_weigh_half_of_the_one_before_and_are_divided_by_their_sum():
    student, teacher = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    difference = student - teacher
    sides = {8: 1.0, 4: 1 / 2, 2: 1 / 4, 1: 1 / 8}
    expected = 0.0
    for side, weight in sides.items():
        averaged = difference.reshape(2, 3, side, 8 // side, side, 8 // side).mean((3, 5))
        expected += weight * averaged.square().mean().item()
    got = losses.hierarchical_context(student, teacher).item()
    assert got == pytest.approx(expected / sum(sides.values()), rel=1e-12)
    assert losses.hierarchical_context(student, student).item() == 0


def test_only_scales_smaller_than_the_map_count():
    student, teacher = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    for side in (1, 2):
        small = student[:, :, :side, :side], teacher[:, :, :side, :side]
        plain = (small[0] - small[1]).square().mean()
        if side == 2:
            plain = (plain + 0.5 * (small[0] - small[1]).mean((2, 3)).square().mean()) / 1.5
        assert losses.hierarchical_context(*small).item() == pytest.approx(plain.item(), rel=1e-12)


def test_the_term_ramps_up_from_nothing_in_the_first_epoch(tmp_path):
    small = Small(tmp_path, "reviewkd", config={"warmup_epochs": 4})
    batch, found = next(small.loader.epoch(0)), []
    small.student.train_mode(False)
    small.method.eval()
    for epoch in range(7):
        small.method.on_epoch_start(epoch, 7)
        found.append(small.method.losses(batch)["review"].item())
    full = found[-1]
    assert [value / full for value in found] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1], rel=1e-5)


@pytest.mark.parametrize(
    ("epochs", "ramp"), [(240, [0, 1 / 20, 2 / 20]), (24, [0, 0.5, 1]), (12, [0, 1, 1]), (5, [1, 1, 1])]
)
def test_the_default_ramp_is_the_published_share_of_the_run_and_a_short_run_has_none(tmp_path, epochs, ramp):
    method, got = Small(tmp_path, "reviewkd").method, []
    for epoch in range(3):
        method.on_epoch_start(epoch, epochs)
        got.append(method.ramp())
    assert got == pytest.approx(ramp)


def test_the_convolutions_of_a_fusion_start_as_the_authors_and_its_gates_as_torchs():
    torch.manual_seed(0)
    fusion = Fusion(32, 64, 48, reviews=True)
    # Uniform up to √(6 / ((1 + slope²) · inputs)): slope 1, and √5 for torch's own.
    for weight, slope in (
        (fusion.reduce[0].weight, 1), (fusion.expand[0].weight, 1), (fusion.gates[0].weight, 5**0.5),
    ):  # fmt: skip
        bound = (6 / ((1 + slope**2) * weight[0].numel())) ** 0.5
        assert 0.98 * bound < weight.abs().max() <= bound


def test_levels_are_the_pooled_vector_and_the_paired_stages_deepest_first(tmp_path):
    method = Small(tmp_path, "reviewkd").method
    want = method.needs(method.config)
    images = torch.rand(3, 3, 8, 8)
    seen, taught = (
        method.networks.student(images, want.student),
        method.networks.teacher(images, want.read_of_teacher),
    )
    maps, targets = method.levels(seen, taught)
    assert [tuple(m.shape[2:]) for m in maps] == [(1, 1), (2, 2), (4, 4), (8, 8)]
    assert torch.equal(targets[1], taught.pre["stage3"])
    assert [f.shape for f in method.fuse(maps, targets)] == [t.shape for t in targets]
    method.config = method.config.model_copy(update={"student_maps": "pre"})
    assert "pre" in method.needs(method.config).student


def test_stages_of_other_sizes_are_resized_and_channels_stay_within_bounds():
    fusion = Fusion(5, 4, 7, reviews=True)
    fused, output = fusion(torch.randn(2, 5, 2, 2), torch.randn(2, 4, 1, 1), torch.Size((3, 6)))
    assert fused.shape == (2, 4, 3, 6)
    assert output.shape == (2, 7, 3, 6)


def test_a_student_that_halves_its_maps_more_often_than_its_teacher_is_reviewed_too(tmp_path):
    small = Small(tmp_path, "reviewkd", student="torchvision/mobilenet_v3_small")
    shapes = small.student.shapes()
    deepest = small.method.pairs[-1]
    assert deepest.student_shape[1:] != deepest.teacher_shape[1:]
    assert {f.reduce[0].out_channels for f in small.method.fusions} == {min(512, shapes.pooled.shape[1])}
    assert small.method.losses(next(small.loader.epoch(0)))["review"].isfinite()


def test_networks_without_common_levels_are_refused_with_their_maps(tmp_path):
    method = Small(tmp_path, "reviewkd").method
    teacher = method.networks.teacher
    whole = teacher.shapes()
    teacher.shapes = lambda: type(whole)(logits=whole.logits, stages=whole.stages)
    with pytest.raises(
        NetworkError,
        match=r"student cifar/resnet8 \(stage1 16×8×8.* and teacher cifar/resnet14 \(stage1 16×8×8.*\) "
        r"without a linear classifier; name them in student.taps and teacher.taps",
    ):
        ReviewKD(method.config, method.networks, method.data)
