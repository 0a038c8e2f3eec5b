"""Losses between a discriminator and what it judges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision


@full_precision
def discriminator_loss(own_B: Tensor, peer_B: Tensor) -> Tensor:
    """Computes the loss of a discriminator that takes the peer's maps for real: mean (1 - peer)² + own².

    Args:
        own_B: `[B]` its judgement of the learner's maps, 0 for false to 1 for real.
        peer_B: `[B]` its judgement of the peer's maps.

    Returns:
        Scalar ≥ 0; 0.5 when it always answers 0.5.

    Source:
        Chung et al., AFD, ICML 2020; least squares as in Mao et al., ICCV 2017.
    """
    return (1 - peer_B).square().mean() + own_B.square().mean()


@full_precision
def imitation_loss(own_B: Tensor) -> Tensor:
    """Computes the loss of a learner that is to be taken for its peer: mean (1 - own)².

    Args:
        own_B: `[B]` the discriminator's judgement of the learner's maps.

    Returns:
        Scalar ≥ 0; 0 when the discriminator takes every map for the peer's.
    """
    return (1 - own_B).square().mean()


@full_precision
def side_cross_entropy(first_B2: Tensor, second_B2: Tensor) -> Tensor:
    """Computes the binary cross-entropy of a discriminator that tells two kinds of rows apart.

    Args:
        first_B2: `[B, 2]` its logits of rows of the first kind, whose target is [1, 0].
        second_B2: `[B, 2]` its logits of rows of the second kind, whose target is [0, 1].

    Returns:
        Scalar ≥ 0, a mean over rows and both logits; ln 2 when it always answers 0.

    Source:
        Yang et al., MixSKD, ECCV 2022; the authors' code.
    """
    right = torch.stack([first_B2[:, 0], second_B2[:, 1]])
    wrong = torch.stack([first_B2[:, 1], second_B2[:, 0]])
    return (F.softplus(-right) + F.softplus(wrong)).mean() / 2


def reverse_gradient(features: Tensor) -> Tensor:
    """Returns the features unchanged; what a loss of them sends back has the opposite sign.

    Source:
        Ganin & Lempitsky, Unsupervised Domain Adaptation by Backpropagation, ICML 2015.
    """
    fixed = features.detach()
    return fixed - (features - fixed)
