"""Re-estimates batch-norm statistics, so that a network is scored and shipped with those of its own weights.

The running statistics of a training are an exponential mean over its last steps: hundreds of steps where the
momentum is 0.01 (torchvision's MobileNetV3), thousands where it is 0.0003 (MNASNet). After a short training
they still describe much earlier weights. Here they are measured again, with the weights as they are.

Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, section 3 ("PreciseBN").
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcompress.data.batch import Batch
from kdcompress.networks.tapped import Tapped

SHARE = 0.05
"""Share of the training images that a candidate's statistics are estimated on after every epoch, and share of
the images that a training sees that those of the network that ships are estimated on. A step costs at least
three forward passes, so both together are at most 3.4 % of a training, 5 % where the lower bounds count."""
FEWEST, MOST = 64, 2_048
"""Bounds of the number for a candidate."""
SHIPPED_FEWEST, SHIPPED_MOST = 1_000, 32_768
"""Bounds of the number for the network that ships. 1,000 images gave the accuracy of 2,000 after a training
of five epochs (benchmarks/batch_norm.md); the upper one is enough for statistics that settle late."""
CONVERGED = 0.005
"""Change of the statistics over the last half of the images below which more images are not needed: mean
over the channels of a layer, in standard deviations for a mean and as a share for a variance."""

BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, slots=True)
class StatisticsImages:
    """Un-augmented training images in shuffled order.

    Args:
        sample: `sample_size` of them, for scoring candidates.
        shipping_images: `shipping_size` of them, for the network that ships.
    """

    sample: Iterable[Batch]
    shipping_images: Iterable[Batch]


def sample_size(images: int) -> int:
    """Returns the number of training images that candidates' statistics are estimated on.

    Args:
        images: Number of training images.
    """
    return min(images, max(FEWEST, min(MOST, round(SHARE * images))))


def shipping_size(images: int, seen: int) -> int:
    """Returns the number of training images that the statistics of the network that ships are estimated on.

    Args:
        images: Number of training images.
        seen: Number of images that the training sees, in all epochs.
    """
    return min(images, max(SHIPPED_FEWEST, min(SHIPPED_MOST, round(SHARE * seen))))


def tracked_norms(module: nn.Module) -> list[BatchNorm]:
    """Lists the batch norms of a network that have running statistics."""
    norms = [child for child in module.modules() if isinstance(child, BatchNorm)]
    return [norm for norm in norms if norm.running_mean is not None]


@torch.no_grad()
def reestimate(
    module: nn.Module,
    like: Tapped,
    batches: Iterable[Batch],
    *,
    shown: Callable[[Tensor], Tensor] | None = None,
    until_converged: bool = False,
    within: nn.Module | None = None,
) -> int:
    """Replaces the running statistics by the mean over batches, weighted by their size.

    Everything else is in eval mode, dropout too, as in use. In a batch of one image a layer may have a single
    value per channel, which has no variance; such a batch is left out.

    Args:
        module: The network; left in eval mode.
        like: A network of its class; its normalisation and precision are used.
        batches: Un-augmented training images.
        shown: Gives what the network sees of a batch's images (`Method.statistics_images`); None: these.
        until_converged: True stops as soon as the last half of the images changed less than `CONVERGED`.
        within: Part of the network whose statistics are replaced, the others are used as they are; None: all.

    Returns:
        Number of images that were used. 0 leaves the statistics as they were.
    """
    norms = tracked_norms(module if within is None else within)
    module.eval()
    if not norms:
        return 0
    shown = shown or _as_they_are
    momenta = [norm.momentum for norm in norms]
    steps = [norm.num_batches_tracked.clone() for norm in norms if norm.num_batches_tracked is not None]
    images, checked, earlier = 0, 0, _statistics(norms)
    try:
        for norm in norms:
            norm.train()
        for batch in batches:
            if len(batch) < 2:
                continue
            images += len(batch)
            for norm in norms:
                norm.momentum = len(batch) / images  # the first batch replaces what was there
            with like.autocast():
                module(like.normalise(shown(batch.images)))
            if until_converged and images >= 2 * checked:
                present = _statistics(norms)
                if checked and images >= MOST and _change(earlier, present) < CONVERGED:
                    break
                checked, earlier = images, present
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
        # The count belongs to the training: it weights the mean of a norm without momentum.
        counters = (norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None)
        for counter, value in zip(counters, steps, strict=True):
            counter.copy_(value)
    return images


@contextlib.contextmanager
def reestimated(
    module: nn.Module,
    like: Tapped,
    batches: Iterable[Batch] | None,
    shown: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """Re-estimates the statistics for the length of a block; afterwards they are what they were before.

    Args:
        module: The network; left in eval mode.
        like: A network of its class; its normalisation and precision are used.
        batches: Un-augmented training images; None: the statistics stay.
        shown: As for `reestimate`.
    """
    if batches is None:
        yield
        return
    norms = tracked_norms(module)
    before = _statistics(norms)
    try:
        reestimate(module, like, batches, shown=shown)
        yield
    finally:
        for norm, (mean, variance) in zip(norms, before, strict=True):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)


def _as_they_are(images: Tensor) -> Tensor:
    return images


def _statistics(norms: list[BatchNorm]) -> list[tuple[Tensor, Tensor]]:
    tensors = ((norm.running_mean, norm.running_var) for norm in norms)
    return [(m.clone(), v.clone()) for m, v in tensors if m is not None and v is not None]


def _change(earlier: list[tuple[Tensor, Tensor]], present: list[tuple[Tensor, Tensor]]) -> float:
    """Returns the largest change of a layer's statistics, in the units of `CONVERGED`."""
    changes = []
    for (old_mean, old_variance), (mean, variance) in zip(earlier, present, strict=True):
        scale = variance.clamp_min(torch.finfo(variance.dtype).tiny)
        changes.append(((mean - old_mean).abs() / scale.sqrt()).mean())
        changes.append(((variance - old_variance).abs() / scale).mean())
    return float(torch.stack(changes).max())
