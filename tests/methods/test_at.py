from __future__ import annotations

import pytest
import torch
from small_training import Small

from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.offline.at import AT
from kdcompress.networks.activations import Activations


def test_attention_is_the_mean_square_over_channels_of_unit_length_and_its_difference_a_mean():
    # Energies 25 and 0 against 0 and 4: unit vectors (1, 0) and (0, 1), squared differences 1 and 1.
    student = torch.tensor([[[[5.0, 0.0]], [[-5.0, 0.0]]]])
    teacher = torch.tensor([[[[0.0, 2.0]]]])
    assert losses.attention_transfer(student, teacher).item() == pytest.approx(1)


def test_attention_knows_neither_scale_nor_sign_nor_channels():
    student = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    assert losses.attention_transfer(student, -7 * student).item() == pytest.approx(0, abs=1e-15)
    assert losses.attention_transfer(student, student.repeat(1, 3, 1, 1)).item() == pytest.approx(
        0, abs=1e-15
    )
    assert losses.attention_transfer(student, torch.randn_like(student)).item() > 0


@pytest.mark.parametrize("sides", [(8, 4), (4, 8)])
def test_the_larger_map_is_averaged_down(sides):
    student, teacher = (torch.randn(2, 3, side, side, dtype=torch.float64) for side in sides)
    pooled = [m if m.shape[2] == 4 else m.reshape(2, 3, 4, 2, 4, 2).mean((3, 5)) for m in (student, teacher)]
    expected = losses.attention_transfer(*pooled).item()
    assert losses.attention_transfer(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_a_dead_map_gives_no_nan():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = losses.attention_transfer(student, torch.rand(2, 3, 4, 4))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_pairs_are_added_up_and_weighed(tmp_path):
    at = Small(tmp_path, "at", config={"weight": 1000}).method
    maps = [torch.randn(2, 3, side, side, dtype=torch.float64) for side in (8, 4)]
    others = [torch.randn(2, 5, side, side, dtype=torch.float64) for side in (8, 4)]
    expected = sum(losses.attention_transfer(s, t).item() for s, t in zip(maps, others, strict=True))
    assert at.attention(maps, others).item() == pytest.approx(1000 * expected, rel=1e-12)


def test_by_default_a_pair_weighs_the_same_whatever_the_size_of_its_maps(tmp_path):
    at = Small(tmp_path, "at").method
    # The mean squared difference of opposite maps is 2 / positions, its bound.
    for side, other in ((16, 16), (4, 4), (4, 8)):
        student, teacher = torch.zeros(1, 1, side, side), torch.zeros(1, 1, other, other)
        student[..., 0, 0], teacher[..., -1, -1] = 1.0, 1.0
        assert at.attention([student], [teacher]).item() == pytest.approx(2 * 1000 / 256)
    published = Small(tmp_path / "b", "at", config={"weight": 1000}).method
    maps = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    assert at.attention(*[[m] for m in maps]).item() == pytest.approx(
        published.attention(*[[m] for m in maps]).item(), rel=1e-6
    )


def test_a_student_that_is_its_teacher_has_no_attention_to_learn(tmp_path):
    small = Small(tmp_path, "at")
    small.student.network.eval()
    networks = small.method.networks
    same = AT(small.method.config, type(networks)(small.student, networks.teacher), small.method.data)
    batch = next(small.loader.epoch(0))
    seen = small.student(batch.images, frozenset({"stages"})).stages
    maps = [seen[pair.student] for pair in same.pairs]
    assert same.attention(maps, [m.detach() for m in maps]).item() == pytest.approx(0, abs=1e-6)


def test_networks_whose_pairs_are_single_pixels_are_refused(tmp_path):
    small = Small(tmp_path, "at")
    networks = small.method.networks
    pixel = Activations(stages={"stage1": torch.empty(2, 64, 1, 1, device="meta")})
    networks.student.shapes = lambda: pixel
    with pytest.raises(
        NetworkError,
        match=r"more than one pixel.*cifar/resnet8 \(stage1 64×1×1\).*cifar/resnet14 \(.*larger images",
    ):
        AT(small.method.config, networks, small.method.data)
