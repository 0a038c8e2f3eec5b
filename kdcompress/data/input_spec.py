"""Input specification of a deployed network, written to `config.json` and into the exported files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The way from an image file to the network's input.

    Args:
        channels: 1 or 3.
        height: Pixels.
        width: Pixels.
        mean: Per channel, of images in [0, 1]; to be subtracted.
        std: Per channel; to divide by.
        resize: Length in pixels that the shorter side is resized to (antialiased), or None: no resize.
        crop: Side in pixels of the central crop after the resize, or None: no crop.
        interpolation: "bilinear" or "bicubic".
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"

    def to_json(self) -> dict[str, Any]:
        """Returns the `input` object of `config.json`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> InputSpec:
        """Reads the object that `to_json` writes."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
        return cls(**fields)
