"""Initial weights of the convolutions of these networks."""

from __future__ import annotations

import math

from torch import nn


def he_normal(network: nn.Module) -> None:
    """Draws every convolution anew, normal with variance 2 / fan-out (He et al., ICCV 2015, eq. 14).

    The fan-out is that of one group. Taken over all channels, as the distillation literature's code has it,
    it makes the maps of a fresh depthwise network smaller with every block.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
