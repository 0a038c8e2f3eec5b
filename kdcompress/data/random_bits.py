"""Randomness without a state: every number is a hash of what it is for.

A draw depends on (seed, view, sample index, number of the draw) and on nothing else, so it is the same on any
device, in any worker, for any batch it is made in, and after any resume. The hash is SplitMix64 (Steele, Lea
and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): a Weyl sequence whose terms go
through a 64-bit finaliser.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: the step of the Weyl sequence
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_ORDER_VIEW = -2  # views of images count from 0, evaluation is -1: sample orders get a stream of their own


def uniform(seed: int, view: int, indices: Tensor, draw: int) -> Tensor:
    """Draws uniform numbers, one per sample.

    Args:
        seed: The run's seed.
        view: Number of the replayable view.
        indices: `[B]` int64, positions in the training set; the result is on their device.
        draw: Number of the draw within the view.

    Returns:
        `[B]` float32 in [0, 1), multiples of 2^-24.
    """
    bits = _hash(_key(seed, view, draw), indices)
    return _shift(bits, 40).to(torch.float32) * 2.0**-24  # the upper 24 bits: what a float32 holds exactly


def uniform_of_one(seed: int, view: int, index: int, draw: int) -> float:
    """Draws `uniform` of a single sample, as a Python number with the same bits."""
    x = (_key(seed, view, draw) + (index + 1) * _GAMMA) & _MASK
    return (_mix(x) >> 40) * 2.0**-24


def integers(seed: int, view: int, indices: Tensor, draw: int, count: int) -> Tensor:
    """Draws uniform integers, one per sample.

    Args:
        seed: The run's seed.
        view: Number of the replayable view.
        indices: `[B]` int64.
        draw: Number of the draw within the view.
        count: Number of values, at most 2^24.

    Returns:
        `[B]` int64 in 0 … count - 1.
    """
    # The product never rounds up to count: 1 - 2^-24 is the largest uniform, and count · 2^-24 is at least
    # half a unit in the last place below count.
    return (uniform(seed, view, indices, draw) * count).to(torch.int64)


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """Draws the order in which an epoch visits n samples.

    Returns:
        `[n]` int64, each of 0 … n - 1 once.
    """
    bits = _hash(_key(seed, _ORDER_VIEW, epoch), torch.arange(n))
    return torch.argsort(bits, stable=True)


def _key(seed: int, view: int, draw: int) -> int:
    key = 0
    for part in (seed, view, draw):
        key = _mix((key + part * _GAMMA + _GAMMA) & _MASK)
    return key


def _mix(x: int) -> int:
    for shift, factor in _MIX:
        x = ((x ^ (x >> shift)) * factor) & _MASK
    return x ^ (x >> 31)


def _hash(key: int, indices: Tensor) -> Tensor:
    # int64 arithmetic wraps around, which is arithmetic modulo 2^64 with the upper half read as negative.
    x = (indices.to(torch.int64) + 1) * _signed(_GAMMA) + _signed(key)
    for shift, factor in _MIX:
        x = (x ^ _shift(x, shift)) * _signed(factor)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    # `>>` copies the sign into the upper bits; the hash wants zeros there.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x
