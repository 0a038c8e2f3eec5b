"""What a family hands over with published weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Published weights and what they expect of their images.

    Args:
        state_dict: On the CPU.
        mean: Per channel, of images in [0, 1].
        std: Per channel.
        size: (H, W) they were evaluated at.
        class_names: In the order of the logits, or None if not told.
        license_note: One sentence on the terms of the weights and of their data, or None if not told.
        sha256: Of the file they came in.
    """

    state_dict: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    class_names: tuple[str, ...] | None
    license_note: str | None
    sha256: str
