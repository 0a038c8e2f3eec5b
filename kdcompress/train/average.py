"""Averages a network's weights over steps; the average often has a higher accuracy than the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


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
        averages: list[Tensor] = list(self.network.parameters())
        values: list[Tensor] = list(self._original.parameters())
        if averages:
            torch._foreach_lerp_(averages, values, 1 - decay)  # one launch for all of them
        self.copy_buffers()

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Copies the network's buffers, such as batch-norm statistics that were averaged over processes."""
        buffers, latest = list(self.network.buffers()), list(self._original.buffers())
        if buffers:
            torch._foreach_copy_(buffers, latest)
