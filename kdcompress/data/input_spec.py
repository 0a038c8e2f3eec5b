"""Input specification of a deployed network, written to `config.json` and into the exported files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Fit = Literal["crop", "whole", "pad"]
"""How a picture of any shape becomes a square: its centre, all of it squeezed, or all of it on a border."""
BORDER = 114
"""Grey value, 0 to 255, of the border of `pad`: 255 x 0.449, the mean of ImageNet's three channel means."""


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
        fit: "crop": as `resize` and `crop` say. "whole": all of the picture is resized to height and
            width. "pad": all of it is resized so that its longer side fits, and put amid a border.
            Both leave `resize` and `crop` empty.
        border: Grey value of the border of "pad", 0 to 255, the same in every channel; None: no border.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"
    fit: Fit = "crop"
    border: int | None = None

    def __post_init__(self) -> None:
        if self.fit not in get_args(Fit):
            raise TypeError(f"fit: expected one of {', '.join(get_args(Fit))}, got {self.fit!r}")
        if (self.border is not None) != (self.fit == "pad"):
            raise TypeError(f"border: {self.border!r} with fit {self.fit!r}; pad has one, and nothing else")

    @property
    def known_fit(self) -> Fit | None:
        """How pictures become squares; None: the file does not say, since its images came in its own size."""
        return None if self.fit == "crop" and self.resize is None and self.crop is None else self.fit

    def to_json(self) -> dict[str, Any]:
        """Returns the `input` object of `config.json`; without `fit` and `border` where the centre is cut."""
        document = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        if self.fit == "crop":  # as files were written before there was a choice
            del document["fit"]
        if self.border is None:
            del document["border"]
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> InputSpec:
        """Reads the object that `to_json` writes."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
        return cls(**fields)
