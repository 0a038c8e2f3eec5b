"""Moves tensors to a GPU and back without waiting for it, and the next batch during the present step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from kdcompress.data.batch import Batch


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Moves a tensor to a device; from the CPU to CUDA through pinned memory, so that nothing waits."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class HostCopy:
    """Copies a tensor to the host's memory; on CUDA nothing waits until the copy is read.

    Args:
        tensor: On any device.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor
        self._event: Any = None  # torch's own types say nothing of CUDA events
        if tensor.device.type == "cuda":
            self._copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(tensor.device))

    def ready(self) -> bool:
        """Returns True once the copy can be read without waiting."""
        return self._event is None or bool(self._event.query())

    def array(self) -> npt.NDArray[Any]:
        """Waits for the copy and returns it."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy.numpy()


def prefetched(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yields the batches; on CUDA each is copied and augmented on a side stream, during the step before.

    Args:
        batches: Made on `device` when they are taken.
        device: Device of the batches.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))  # the data set itself was moved there
    with torch.cuda.stream(stream):
        batch = next(batches, None)
    while batch is not None:
        present = torch.cuda.current_stream(device)
        present.wait_stream(stream)  # the device waits, the program does not
        for tensor in _tensors(batch):
            tensor.record_stream(present)  # its memory is not given away while the step reads it
        yield batch
        # Only now: the step has been launched, and what is loaded next runs beside it.
        with torch.cuda.stream(stream):
            batch = next(batches, None)


def _tensors(batch: Batch) -> list[Tensor]:
    every = [batch.labels, batch.indices]
    for view in batch.views:
        every += [view.images, view.indices]
    return [tensor for tensor in every if tensor.device.type == "cuda"]
