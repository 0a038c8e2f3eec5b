"""Batch norm over groups of a batch, as if every group were the batch of a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def grouped_batch_norm(network: nn.Module, groups: int) -> Iterator[None]:
    """Makes the batch norms of a network normalise every group of rows by its own mean and variance.

    Batch norms in evaluation mode are left alone. The running statistics move once per pass, towards the
    mean of the groups' statistics. The network is as before when the block ends.

    Args:
        network: Its passes within the block have batches of a multiple of `groups` rows; consecutive rows
            are one group.
        groups: 1 changes nothing.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training] if groups > 1 else []
    before = [vars(norm).get("forward") for norm in norms]
    try:
        for norm in norms:
            norm.forward = _grouped(norm, groups)  # type: ignore[method-assign, assignment]
        yield
    finally:
        for norm, own in zip(norms, before, strict=True):
            del norm.forward
            if own is not None:
                norm.forward = own  # type: ignore[method-assign]


def _grouped(norm: _BatchNorm, groups: int) -> Callable[[Tensor], Tensor]:
    # The module's own forward: subclasses add an activation to it.
    plain, momentum = norm.forward, norm.momentum

    def forward(input: Tensor) -> Tensor:
        assert len(input) % groups == 0, f"{len(input)} rows are not {groups} equal groups"
        outputs = []
        try:
            for number, rows in enumerate(input.chunk(groups), start=1):
                if momentum is not None:
                    # The last m/G, the one before (m/G) / (1 - m/G), …: each group ends with the weight m/G.
                    share = momentum / groups
                    norm.momentum = share / (1 - (groups - number) * share)
                outputs.append(plain(rows))
        finally:
            norm.momentum = momentum
        return torch.cat(outputs)

    return forward
