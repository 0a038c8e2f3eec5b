"""Several sources as one training set: real images first, then those that were generated beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from kdcompress.data.source import FolderSource, MemorySource

Part = MemorySource | FolderSource
IDS_PER_SET = 1 << 40
"""Ids of the images of each joined set: more than any set has."""


@dataclass(frozen=True, eq=False)
class JoinedSource:
    """Sources one after the other, numbered through.

    Each set keeps its own ids, in a range of its own: those of the first set are what they are alone.

    Args:
        parts: At least one; all give images of the same size and number of channels.
    """

    parts: tuple[Part, ...]
    labels: Tensor = field(init=False, repr=False)
    """`[N]` int64."""
    ids: Tensor = field(init=False, repr=False)
    """`[N]` int64, as of `Source`."""
    _starts: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shapes = {(part.channels, part.image_size) for part in self.parts}
        assert len(shapes) == 1, shapes
        parts, starts, start = [], [], 0
        for number, part in enumerate(self.parts):
            # What is joined already has its range: a subset is made of parts of a joined source.
            parts.append(replace(part, ids=part.ids % IDS_PER_SET + number * IDS_PER_SET))
            starts.append(start)
            start += len(part)
        object.__setattr__(self, "parts", tuple(parts))
        object.__setattr__(self, "_starts", tuple(starts))
        object.__setattr__(self, "labels", torch.cat([part.labels for part in parts]))
        object.__setattr__(self, "ids", torch.cat([part.ids for part in parts]))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.parts[0].channels

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images it gives."""
        return self.parts[0].image_size

    @property
    def in_memory(self) -> bool:
        """True if no part has files to decode."""
        return all(isinstance(part, MemorySource) for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels in memory."""
        return sum(part.nbytes for part in self.parts if isinstance(part, MemorySource))

    def to(self, device: torch.device) -> Self:
        """Moves the pixels to a device; only for a set that is all in memory."""
        assert self.in_memory
        parts = [part.to(device) for part in self.parts if isinstance(part, MemorySource)]
        return replace(self, parts=tuple(parts))

    def subset(self, indices: Tensor) -> Self:
        """Selects the images at these positions, renumbered from 0, in the order of the parts."""
        number = self._part_of(indices)
        assert bool((number.diff() >= 0).all()), "the parts cannot be mixed"
        parts = [
            part.subset(indices[number == i] - start)
            for i, (part, start) in enumerate(zip(self.parts, self._starts, strict=True))
        ]
        return replace(self, parts=tuple(parts))

    def with_augment(self, preset: str) -> Self:
        """Gives the same images with another preset; weak and strong depend on each part's present one."""
        return replace(self, parts=tuple(part.with_augment(preset) for part in self.parts))

    def training_images(self, indices: Tensor, view: int, seed: int) -> Tensor:
        """Returns one augmented view of each image, `[B, C, H, W]` uint8.

        Raises:
            DataError: A file cannot be read.
        """
        return self._collected(indices, lambda part, inside: part.training_images(inside, view, seed))

    def evaluation_images(self, indices: Tensor) -> Tensor:
        """Returns the images `[B, C, H, W]` uint8, not augmented.

        Raises:
            DataError: A file cannot be read.
        """
        return self._collected(indices, lambda part, inside: part.evaluation_images(inside))

    def _collected(self, indices: Tensor, images: Callable[[Part, Tensor], Tensor]) -> Tensor:
        """Collects each part's images at their rows of the batch."""
        indices = indices.cpu()
        number, together = self._part_of(indices), None
        for i, part in enumerate(self.parts):
            rows = (number == i).nonzero().flatten()
            if len(rows) == 0:
                continue
            pixels = images(part, indices[rows] - self._starts[i])
            if len(rows) == len(indices):
                return pixels
            if together is None:
                shape = (len(indices), *pixels.shape[1:])
                together = pixels.new_empty(shape).contiguous(memory_format=torch.channels_last)
            together[rows.to(together.device)] = pixels
        if together is None:
            return torch.empty((0, self.channels, *self.image_size), dtype=torch.uint8)
        return together

    def _part_of(self, indices: Tensor) -> Tensor:
        """Returns the number of the part that holds each position, `[B]` int64."""
        starts = torch.tensor(self._starts[1:], dtype=torch.int64)
        return torch.bucketize(indices.cpu(), starts, right=True)
