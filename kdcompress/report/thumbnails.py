"""Small pictures of images for the report, as data URIs."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor

SIDE = 112
"""Pixels of the longer side, at the most."""
_LOSSLESS = 48
"""Pixels of the longer side up to which PNG is the smaller format."""


def thumbnail(pixels_CHW: Tensor) -> str:
    """Encodes an image as a `data:` URI, without any metadata.

    Args:
        pixels_CHW: uint8; C is 1 or 3.
    """
    array = pixels_CHW.cpu().permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    image.thumbnail((SIDE, SIDE))
    kind = "PNG" if max(image.size) <= _LOSSLESS else "JPEG"
    file = io.BytesIO()
    options = {"optimize": True} if kind == "PNG" else {"quality": 80, "optimize": True}
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
