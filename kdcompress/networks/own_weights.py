"""Telling whether a `python:` builder loads weights of its own, by comparing two builds under two seeds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcompress.errors import NetworkError

LEAST_EQUAL = 0.5
"""Share of equal weight tensors from which a builder counts as one that loads weights. A classifier that is
drawn afresh is one tensor, or three in VGG; in a random network only a fixed position encoding is equal."""


@dataclass(frozen=True, slots=True)
class OwnWeights:
    """Result of comparing two builds of one network under different seeds.

    Args:
        equal: Number of weight tensors that are the same in both, bit for bit.
        total: Number of weight tensors.
        classifier_drawn: True if some tensor differs, or if the last layer is constant, as a zero-initialised
            classifier is: the network has to be fine-tuned before its logits mean anything.
    """

    equal: int
    total: int
    classifier_drawn: bool

    @property
    def pretrained(self) -> bool:
        """True if the builder loads weights for most of the network."""
        return self.total > 0 and self.equal >= LEAST_EQUAL * self.total


def compare_builds(first: nn.Module, second: nn.Module, model: str) -> OwnWeights:
    """Counts the weight tensors that two builds have in common.

    Only tensors of two or more dimensions that are not constant count: biases and the scales of batch norm
    begin with the same constants in every build.

    Args:
        first: One build.
        second: Another, under another seed.
        model: Named in the error.

    Raises:
        NetworkError: The two have other tensors.
    """
    pairs = [(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=False) if a.ndim > 1]
    names = [[(name, p.shape) for name, p in network.named_parameters()] for network in (first, second)]
    if names[0] != names[1]:
        raise NetworkError(f"{model}: two calls built networks with different parameters")
    drawn = [(a, b) for a, b in pairs if not _is_constant(a)]
    equal = sum(torch.equal(a, b) for a, b in drawn)
    constant_classifier = bool(pairs) and _is_constant(pairs[-1][0])
    return OwnWeights(equal, len(drawn), equal < len(drawn) or constant_classifier)


def fingerprint(network: nn.Module) -> str:
    """Returns a SHA-256 of all tensors of a network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.reshape(-1)[0]).all())
