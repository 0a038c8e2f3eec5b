"""The channel shuffle of both ShuffleNets."""

from __future__ import annotations

from torch import Tensor, nn


class ChannelShuffle(nn.Module):
    """Channel j of group i becomes channel i of group j (Zhang et al., CVPR 2018, §3.1).

    Args:
        groups: Divides the number of channels.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Returns `[B, C, H, W]`, with C in another order."""
        _, channels, height, width = x.shape
        # The batch is the free dimension: it is the one that stays dynamic in an exported graph.
        grouped = x.reshape(-1, self.groups, channels // self.groups, height, width)
        return grouped.transpose(1, 2).reshape(-1, channels, height, width)
