"""A queue of earlier embeddings: its length and its update."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcompress.errors import UserError


def check_whole_batches(method: str, queue: int, batch_size: int) -> None:
    """Refuses a queue that is not made of whole batches, which replace each other.

    Args:
        method: Name of the method.
        queue: Embeddings in the queue.
        batch_size: Images of a training batch in all processes; 0: not known, and nothing is refused.

    Raises:
        UserError: The queue is no multiple of the batch.
    """
    if batch_size and queue % batch_size:
        nearest = max(1, round(queue / batch_size)) * batch_size
        raise UserError(
            f"method {method}: a queue of {queue} is not made of whole batches, which have "
            f"{batch_size} images; set method.queue to a multiple of that, such as {nearest}"
        )


@torch.no_grad()
def replace_oldest(queue_DQ: Tensor, pointer: Tensor, rows_BD: Tensor) -> None:
    """Writes rows over the oldest columns of a queue, in place.

    Args:
        queue_DQ: `[D, Q]`, one embedding per column.
        pointer: int64 scalar, the oldest column; it moves on by B.
        rows_BD: `[B, D]`, of all processes; Q is a multiple of B.
    """
    places, count = queue_DQ.shape[1], len(rows_BD)
    # Refused before training where the batch is known: DataInfo.batch_size.
    assert places % count == 0, f"a queue of {places} is not made of whole batches of {count}"
    queue_DQ[:, pointer + torch.arange(count, device=pointer.device)] = rows_BD.T
    pointer.add_(count).remainder_(places)
