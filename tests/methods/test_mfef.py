from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from small_training import Small
from torch import nn

from kdcompress.methods.base import find_method
from kdcompress.methods.online.mfef import MFEF, ChannelGate, MultiScale, SpatialGate


def test_groups_are_processed_one_after_the_other_and_concatenated():
    scale = MultiScale(8, 4).eval()
    assert len(scale.blocks) == 3
    for block in scale.blocks:
        block[0] = nn.Conv2d(2, 2, 1, bias=False)
        block[0].weight.data = 2 * torch.eye(2)[:, :, None, None]
        block[1].eps = 0.0
    maps = torch.arange(1.0, 9.0).reshape(1, 8, 1, 1).repeat(1, 1, 3, 3)
    # y1 = x1; y2 = 2 x2; y3 = 2 (x3 + y2); y4 = 2 (x4 + y3)
    expected = [1, 2, 6, 8, 22, 28, 58, 72]
    assert scale(maps)[0, :, 1, 1].tolist() == expected


@pytest.mark.parametrize(("channels", "groups", "used"), [(6, 4, 2), (7, 4, 1), (64, 4, 4)])
def test_groups_divide_the_channels_evenly(channels, groups, used):
    scale = MultiScale(channels, groups)
    assert scale.groups == used
    assert scale(torch.rand(2, channels, 2, 3)).shape == (2, channels, 2, 3)


def test_gates_multiply_by_factors_between_0_and_1_per_channel_and_per_position():
    maps = torch.rand(2, 16, 3, 3) + 0.1
    per_channel = ChannelGate(16, 4)(maps) / maps
    assert ((per_channel > 0) & (per_channel < 1)).all()
    torch.testing.assert_close(per_channel, per_channel[:, :, :1, :1].expand_as(maps))
    per_position = SpatialGate(7)(maps) / maps
    assert ((per_position > 0) & (per_position < 1)).all()
    torch.testing.assert_close(per_position, per_position[:, :1].expand_as(maps))


def test_its_loss_is_that_of_ffl(tmp_path):
    torch.manual_seed(0)
    logits = [torch.randn(4, 4, dtype=torch.float64) for _ in range(3)]
    labels = torch.tensor([0, 1, 2, 3])
    got, expected = (
        Small(tmp_path, name).method.terms(logits[:2], logits[2], labels) for name in ("mfef", "ffl")
    )
    assert {k: v.item() for k, v in got.items()} == {k: v.item() for k, v in expected.items()}


def test_it_is_marked_as_our_own_reading_wherever_it_is_described():
    cls = find_method("mfef")
    assert "our own reading" in (__import__(cls.__module__, fromlist=["x"]).__doc__)
    assert "our own design" in cls.__doc__
    assert not cls.FIGURES
    assert all("Our own reading" in preset.note for preset in cls.PRESETS.values())


def test_a_spatial_gate_has_an_odd_side():
    with pytest.raises(ValidationError, match="expected an odd number"):
        MFEF.Config(spatial_kernel=4)
