"""Averages a network's weights over steps; the average often has a higher accuracy than the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """Exponential moving average of a network's parameters; its buffers are those of the last step.

    Args:
        network: The trained network.
        decay: Per step, in (0, 1).

    Attributes:
        network: The averaged copy.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._original, self._decay = network, decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the average after a step.

        Args:
            step: 0-based. Early on the average follows the weights more closely than the decay says, or it
                would remember the initialisation for 1 / (1 - decay) steps.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        for average, value in zip(self.network.parameters(), self._original.parameters(), strict=True):
            average.lerp_(value, 1 - decay)
        self.copy_buffers()

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Copies the network's buffers, such as batch-norm statistics that were averaged over processes."""
        for buffer, latest in zip(self.network.buffers(), self._original.buffers(), strict=True):
            buffer.copy_(latest)
