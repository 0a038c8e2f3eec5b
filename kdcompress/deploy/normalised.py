"""The exported network: the student with its normalisation in front, so nobody can forget it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcompress.data.input_spec import InputSpec


class Deployed(nn.Module):
    """A network that takes images in [0, 1].

    Args:
        network: Takes normalised images `[B, C, H, W]`, gives logits `[B, K]`, or features `[B, D]` as a
            backbone does.
        spec: Says mean and std, and how many channels there are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.network = network
        # Not persistent: they belong to the input's description, not to the weights.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Computes the network's outputs `[B, K]` of images `[B, C, H, W]` in [0, 1].

        The mean is subtracted here and not folded into the first convolution: that one pads with zeros, which
        are the mean's value only after the subtraction.
        """
        outputs: Tensor = self.network((images - self.mean) / self.std)
        return outputs

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Runs `forward` as an exported file does: on arrays on the CPU, without gradients."""
        with torch.no_grad():
            outputs: NDArray[np.float32] = self(torch.from_numpy(images)).numpy()
        return outputs
