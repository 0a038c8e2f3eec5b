"""Spatial energies of feature maps, and the similarity of images that they show.

Shape letter: P positions of a map.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.maps import similarity_preserving
from kdcompress.methods.losses.widening import full_precision


@full_precision
def energy_difference(
    shallow_BCHW: Tensor,
    deep_BCHW: Tensor,
    *,
    energy: Literal["mean", "sum"] = "mean",
    enlarge: Literal["energy", "map"] = "energy",
) -> Tensor:
    """Computes the squared difference of two maps' spatial softmaxes, mean over rows and positions.

    The energy of a position is the mean or the sum of squares over channels; the deeper map is enlarged to
    the size of the shallower one (bilinear).

    Args:
        shallow_BCHW: `[B, C, H, W]`.
        deep_BCHW: `[B, C', H', W']`; the caller detaches it.
        energy: mean or sum over channels; with the sum the softmax is sharper by the number of channels.
        enlarge: Enlarge the energies, or the map before it is squared.

    Returns:
        Scalar ≥ 0.

    Source:
        Hou et al., Learning Lightweight Lane Detection CNNs by Self Attention Distillation, ICCV 2019: the
        sum, energies enlarged. Self-KD-Lib: the mean, maps enlarged.
    """
    size = shallow_BCHW.shape[2:]
    if enlarge == "map":
        deep_BCHW = _enlarged(deep_BCHW, size)
    target_BP = _spatial_softmax(_enlarged(_energy(deep_BCHW, energy), size))
    return (_spatial_softmax(_energy(shallow_BCHW, energy)) - target_BP).square().mean()


@full_precision
def map_similarity_difference(
    shallow_BCHW: Tensor, deep_BCHW: Tensor, *, norm: Literal["l2", "softmax"] = "l2"
) -> Tensor:
    """Computes the squared difference of two matrices of attention-map similarities, divided by B².

    The attention map of an image is its mean of squares over channels, of unit length (l2) or as a softmax
    over positions. A matrix has the products of all images' maps, each row divided by its L2 norm.

    Args:
        shallow_BCHW: `[B, C, H, W]`, all rows of the global batch.
        deep_BCHW: `[B, C', H', W']`; the caller detaches it.
        norm: Normalisation of the attention maps.

    Returns:
        Scalar in [0, 4 / B].
    """
    return similarity_preserving(attention_rows(shallow_BCHW, norm), attention_rows(deep_BCHW, norm))


def attention_rows(map_BCHW: Tensor, norm: Literal["l2", "softmax"]) -> Tensor:
    """Computes the attention maps `[B, P]` of `map_similarity_difference`."""
    energy_BP = map_BCHW.square().mean(1).flatten(1)
    return F.normalize(energy_BP, dim=1) if norm == "l2" else energy_BP.softmax(1)


def _energy(map_BCHW: Tensor, energy: Literal["mean", "sum"]) -> Tensor:
    squares = map_BCHW.square()
    return squares.mean(1, keepdim=True) if energy == "mean" else squares.sum(1, keepdim=True)


def _enlarged(map_BCHW: Tensor, size: tuple[int, ...]) -> Tensor:
    if map_BCHW.shape[2:] == size:
        return map_BCHW
    return F.interpolate(map_BCHW, size=size, mode="bilinear", align_corners=False)


def _spatial_softmax(energy_B1HW: Tensor) -> Tensor:
    return energy_B1HW.flatten(1).softmax(1)
