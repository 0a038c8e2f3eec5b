"""Forms in which a teacher's outputs are kept: 16-bit features, 16-bit logits, or the largest logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from kdcompress.networks.activations import LOGITS, POOLED, Activations, Want

Kind = Literal["pooled", "logits", "top_k"]

_LARGEST = 2.0**15
"""Values above are scaled down by a power of two, which loses nothing: float16 ends at 65,504."""


class Codec(Protocol):
    """One form; what is decoded is what a training sees, whether it was just computed or kept."""

    @property
    def kind(self) -> Kind:
        """Name of the form in recipes."""

    @property
    def width(self) -> int:
        """Bytes of one image's outputs."""

    @property
    def reads(self) -> Want:
        """Outputs that a teacher must give to be kept."""

    @property
    def gives(self) -> Want:
        """Outputs that can be had back."""

    def encode(self, outputs: Activations) -> Tensor:
        """Returns `[B, width]` uint8, on the outputs' device."""

    def decode(self, rows: Tensor, want: Want) -> Activations:
        """Returns float32 outputs of `[B, width]` uint8, on the rows' device."""


class PooledCodec:
    """Keeps pooled features in 16 bits; logits come from them by the teacher's own classifier.

    Args:
        features: D.
        classify: Returns logits `[B, K]` of pooled features `[B, D]`; None: a backbone without a classifier.
    """

    kind: Kind = "pooled"
    reads = POOLED

    def __init__(self, features: int, classify: Callable[[Tensor], Tensor] | None) -> None:
        self._classify = classify
        self.width = _width(features)
        self.gives: Want = POOLED if classify is None else LOGITS | POOLED

    def encode(self, outputs: Activations) -> Tensor:
        """Returns `[B, width]` uint8."""
        assert outputs.pooled is not None
        return _halves(outputs.pooled)

    def decode(self, rows: Tensor, want: Want) -> Activations:
        """Returns pooled features, and logits if they are wanted."""
        pooled, logits = _floats(rows), None
        if "logits" in want:
            assert self._classify is not None
            with torch.no_grad():
                logits = self._classify(pooled)
        return Activations(logits=logits, pooled=pooled if "pooled" in want else None)


class LogitsCodec:
    """Keeps all logits in 16 bits.

    Args:
        classes: K.
    """

    kind: Kind = "logits"
    reads = LOGITS
    gives = LOGITS

    def __init__(self, classes: int) -> None:
        self.width = _width(classes)

    def encode(self, outputs: Activations) -> Tensor:
        """Returns `[B, width]` uint8."""
        assert outputs.logits is not None
        return _halves(outputs.logits)

    def decode(self, rows: Tensor, want: Want) -> Activations:
        """Returns the logits."""
        return Activations(logits=_floats(rows))


class TopKCodec:
    """Keeps the k largest logits and the mass of the others, which share it equally when they come back.

    The probabilities of the k classes at temperature 1 are those of the teacher; at higher temperatures the
    others count, and they are not what they were.

    Args:
        classes: K.
        kept: k.
    """

    kind: Kind = "top_k"
    reads = LOGITS
    gives = LOGITS

    def __init__(self, classes: int, kept: int) -> None:
        self.kept, self._classes = min(kept, classes), classes
        self._index_type = torch.int16 if classes <= 2**15 else torch.int32
        index_bytes = 2 if classes <= 2**15 else 4
        self._values = _width(self.kept + 1)
        self.width = self._values + index_bytes * self.kept

    def encode(self, outputs: Activations) -> Tensor:
        """Returns `[B, width]` uint8."""
        assert outputs.logits is not None
        logits = outputs.logits.float()
        values, places = logits.topk(self.kept, dim=1)
        others = logits.scatter(1, places, -math.inf).logsumexp(1, keepdim=True)
        left = self._classes - self.kept
        level = others - math.log(left) if left else values[:, -1:]
        indices = places.to(self._index_type).contiguous().view(torch.uint8)
        return torch.cat([_halves(torch.cat([values, level], 1)), indices], 1)

    def decode(self, rows: Tensor, want: Want) -> Activations:
        """Returns logits `[B, K]`."""
        values = _floats(rows[:, : self._values])
        places = _viewed(rows[:, self._values :], self._index_type).to(torch.int64)
        # A row that a damaged disk changed has no valid checksum; this bounds what a foreign one can do.
        places = places.clamp(0, self._classes - 1)
        level = values[:, -1:].expand(-1, self._classes)
        return Activations(logits=level.scatter(1, places, values[:, :-1]))


def _width(count: int) -> int:
    return 4 + 2 * count


def _halves(values: Tensor) -> Tensor:
    """Packs `[B, D]` floats: a float32 scale per row, a power of two, and D float16."""
    values = values.float()
    largest = values.abs().amax(1, keepdim=True).clamp(min=_LARGEST)
    scale = torch.exp2(torch.ceil(torch.log2(largest / _LARGEST)))
    halves = (values / scale).to(torch.float16).contiguous()
    return torch.cat([scale.contiguous().view(torch.uint8), halves.view(torch.uint8)], 1)


def _floats(rows: Tensor) -> Tensor:
    """Unpacks what `_halves` gave."""
    return _viewed(rows[:, 4:], torch.float16).float() * _viewed(rows[:, :4], torch.float32)


def _viewed(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Reads `[B, n]` bytes as numbers; a copy, since one row of a part keeps the stride of the whole."""
    return part.clone(memory_format=torch.contiguous_format).view(dtype)
