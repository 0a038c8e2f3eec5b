"""Batch norm of a method's own head over the rows of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcompress.methods.gather import gather_rows, world_size
from kdcompress.networks.tapped import wide


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Normalises the maps of a global batch by one mean and variance, however many processes share it.

    Only the mean and variance of each channel travel between the processes, never a map. In a run of one
    process, and in evaluation mode, it is torch's own batch norm.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises `[B, C, H, W]`, B equal in all processes; running statistics become equal in all."""
        world = world_size()
        if not self.training or world == 1:
            return super().forward(input)
        maps = wide(input)
        variance_C, mean_C = torch.var_mean(maps, (0, 2, 3), correction=0)
        gathered = gather_rows(torch.stack([mean_C, variance_C])[None])
        means, variances = gathered.unbind(1)
        mean_C = means.mean(0)
        variance_C = variances.mean(0) + (means - mean_C).square().mean(0)
        self._update_running(mean_C, variance_C, world * maps.numel() // maps.shape[1])
        scale_C = self.weight * (variance_C + self.eps).rsqrt()
        shift_C = self.bias - mean_C * scale_C
        return maps * scale_C[:, None, None] + shift_C[:, None, None]

    @torch.no_grad()
    def _update_running(self, mean_C: Tensor, variance_C: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C * (count / max(1, count - 1)), self.momentum)
