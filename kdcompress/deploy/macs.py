"""How large a network is: parameters, and multiply-accumulates of one image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module) -> int:
    """The number of parameters; a shared one counts once, buffers (batch-norm statistics) not at all."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, channels: int, height: int, width: int) -> int:
    """Multiply-accumulates of one image in eval mode: those of convolutions and matrix products.

    Element-wise work (batch norm, activations, pooling) is left out, as the literature does.

    Args:
        module: Takes `[1, channels, height, width]`; its mode, buffers and gradients are untouched.
        channels: C.
        height: Pixels.
        width: Pixels.
    """
    tensor = next(module.parameters(), torch.empty(0))
    images = torch.zeros(1, channels, height, width, device=tensor.device, dtype=tensor.dtype)
    counter = FlopCounterMode(display=False)
    with evaluating(module), torch.no_grad(), counter:
        module(images)
    # The counter calls one multiply-accumulate two operations.
    return int(counter.get_total_flops()) // 2


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode within the block; afterwards every sub-module is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        # Part by part: train(True) on the whole would thaw a batch norm that was frozen on purpose.
        for part, training in modes:
            part.training = training
