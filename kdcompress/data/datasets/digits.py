"""1,797 handwritten digits of 8 × 8 pixels in grey, bundled with scikit-learn: for trials in seconds.

The test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository (1998). It has no official split.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from sklearn.datasets import load_digits

from kdcompress.data.raw import OnProgress, Raw
from kdcompress.data.source import MemorySource
from kdcompress.errors import DataError
from kdcompress.recipe import DataSection

CLASSES = 10
SIZE = 8
CHANNELS = 1
IMAGES = 1797
LICENSE = "CC BY 4.0"

_MOST = 16  # the pixels count set bits in 4 × 4 blocks: 0 to 16


def read(section: DataSection, progress: OnProgress | None) -> Raw:
    """Returns all digits, without splits.

    Raises:
        DataError: A folder is named, which the set has no use for.
    """
    if section.root is not None:
        raise DataError("data.root: the digits come with scikit-learn; leave data.root and --data out")
    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / _MOST)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    return Raw(
        train=MemorySource(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels), pad=1),
        class_names=tuple(str(digit) for digit in range(CLASSES)),
        listing_sha256=digest,
        augment="crop",
        license=LICENSE,
    )
