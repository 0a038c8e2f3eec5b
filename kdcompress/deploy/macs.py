"""How large a network is: parameters, and multiply-accumulates of one image."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from kdcompress.networks.tap_points import Tap

_MOST_COMPUTED = 1 << 20
"""Numbers of an image that a network is run on to count its work. Larger ones are counted without values, in
no memory but ten times the time for a small image, and `suggest` counts hundreds of networks."""


def count_parameters(module: nn.Module) -> int:
    """Counts the parameters; a shared one counts once, buffers (batch-norm statistics) not at all."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, channels: int, height: int, width: int) -> int:
    """Counts the multiply-accumulates of one image in eval mode: of convolutions and matrix products.

    Element-wise work (batch norm, activations, pooling) is left out, as the literature does.

    Args:
        module: Takes `[1, channels, height, width]`; its mode, buffers and gradients are untouched.
        channels: C.
        height: Pixels.
        width: Pixels.
    """
    if channels * height * width > _MOST_COMPUTED:
        # A copy, since some networks keep tensors that they compute on their first call. A network that looks
        # at the values of its tensors cannot be run without them.
        without_values = copy.deepcopy(module)
        with contextlib.suppress(RuntimeError), FakeTensorMode(allow_non_fake_inputs=True):
            return _count(without_values, channels, height, width)
    return _count(module, channels, height, width)


def _count(module: nn.Module, channels: int, height: int, width: int) -> int:
    tensor = next(module.parameters(), torch.empty(0))
    images = torch.zeros(1, channels, height, width, device=tensor.device, dtype=tensor.dtype)
    counter = FlopCounterMode(display=False)
    with evaluating(module), torch.no_grad(), counter:
        module(images)
    # The counter calls one multiply-accumulate two operations.
    return int(counter.get_total_flops()) // 2


def count_macs_until(module: nn.Module, images: Tensor, taps: Sequence[Tap]) -> list[int]:
    """Counts the multiply-accumulates of one image that lead to each of several maps.

    Args:
        module: Its mode, buffers and gradients are untouched.
        images: `[1, C, H, W]`.
        taps: Places of the maps.
    """
    counter = FlopCounterMode(display=False)
    totals: list[list[int]] = [[] for _ in taps]
    hooks = []
    for tap, counts in zip(taps, totals, strict=True):
        part = module.get_submodule(tap.path)
        register = part.register_forward_hook if tap.side == "output" else part.register_forward_pre_hook
        hooks.append(register(lambda *_, counts=counts: counts.append(int(counter.get_total_flops()))))
    try:
        with evaluating(module), torch.no_grad(), counter:
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [counts[tap.call] // 2 for tap, counts in zip(taps, totals, strict=True)]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Sets eval mode within the block and restores the mode of every sub-module."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        # Part by part: train(True) on the whole would thaw a batch norm that was frozen on purpose.
        for part, training in modes:
            part.training = training
