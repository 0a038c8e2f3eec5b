"""The arithmetic of int8 as onnxruntime does it: levels of activations, of weights and of biases."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 255
"""Steps between the least and the greatest value of an activation: uint8, or int8 with its zero moved."""
MOST = {8: 127, 7: 64}
"""Steps from 0 to the largest weight, by bits."""


def activation_levels(low_S: Tensor, high_S: Tensor) -> tuple[Tensor, Tensor]:
    """Scales `[S]` float32 and zero points `[S]` int32 (in 0 to 255) of ranges, as onnxruntime takes them.

    Args:
        low_S: Least values; those above 0 count as 0, which must be a level.
        high_S: Greatest values; those below 0 count as 0.
    """
    low, high = low_S.double().clamp(max=0), high_S.double().clamp(min=0)
    scale = (high - low) / LEVELS
    flat = scale < torch.finfo(torch.float32).tiny
    scale = scale.masked_fill(flat, 1.0)
    zero = (-low / scale).round().masked_fill(flat, 0.0)
    return scale.float(), zero.to(torch.int32)


def rounded_activation(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Rounds each value to the nearest level, clamped; straight-through gradient."""
    rounded: Tensor = torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, LEVELS)
    return rounded


def rounded_weight(weight: Tensor, axis: int | None, bits: int = 8) -> Tensor:
    """Rounds a weight to whole multiples of its symmetric scale; straight-through gradient.

    Args:
        weight: A tensor of any shape.
        axis: That of the output channels, which have a scale each; None: one scale for all.
        bits: 8, or 7 for processors whose sums of two products saturate.
    """
    most = MOST[bits]
    scale = weight_scales(weight, axis, most)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    if axis is None:
        one: Tensor = torch.fake_quantize_per_tensor_affine(weight, scale, zero, -most, most)
        return one
    rounded: Tensor = torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -most, most)
    return rounded


@torch.no_grad()
def weight_scales(weight: Tensor, axis: int | None, most: int) -> Tensor:
    """Returns the scale of each output channel, `[C]` float32, or `[1]` without an axis.

    Args:
        weight: A tensor of any shape.
        axis: That of the C output channels.
        most: Steps from 0 to the largest weight of a channel.
    """
    size = weight.detach().abs().double()
    largest = size.amax() if axis is None else size.transpose(0, axis).flatten(1).amax(1)
    scale = (largest / most).reshape(-1)
    return scale.masked_fill(scale < torch.finfo(torch.float32).tiny, 1.0).float()


def to_whole(values_C: Tensor, unit_C: Tensor) -> Tensor:
    """Returns the summand that makes values whole multiples of a unit; 0 where the unit is 0."""
    return ((values_C / unit_C).round() * unit_C - values_C).nan_to_num(0.0, 0.0, 0.0)
